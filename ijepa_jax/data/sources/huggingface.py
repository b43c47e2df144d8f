"""Image data sets of Hugging Face's `datasets` that lie on this machine."""

import errno
import functools
import glob
import hashlib
import os

import numpy as np
from absl import logging

from ijepa_jax.data.sources.base import (
  NO_LABEL,
  ReopenedAfterPickling,
  stamp,
  stamps,
)
from ijepa_jax.errors import UserError

# Columns that are the image or the label where no feature says so, as in
# parquet files that pyarrow, pandas or Spark wrote; the first ones first.
_IMAGES = (
  *('image', 'img', 'picture', 'photo', 'jpg', 'jpeg', 'png', 'webp'),
  *('image_bytes', 'bytes', 'content', 'image_path', 'path', 'file_name'),
)
_LABELS = (
  *('label', 'labels', 'class', 'target', 'category', 'label_id', 'class_id'),
  *('cls', 'y', 'class_name', 'label_name'),
)
_MOST_CLASSES = 100_000  # that numbers may stand for


class HuggingFace(ReopenedAfterPickling):
  """A folder that `save_to_disk` left, or of parquet files.

  The images stay encoded. Every ClassLabel is a label; where there is none, a
  column of numbers or words that is called like one, see _LABELS: numbers from
  0 on are classes as they are, -1 and nulls are labels that are not known, and
  words are numbered in their order, over all splits. A label that is the only
  one is called `label`. Parquet files are unpacked by `datasets`, once and to
  about their own size, into its own cache: HF_DATASETS_CACHE says where.
  """

  def __init__(self, path: str, split: str = 'train'):
    self._key = os.path.abspath(os.path.expanduser(path)), split
    data, self._image, labels = self._data
    self.labels = labels.counts
    self.class_names = labels.names
    self.unlabelled = labels.missing
    if labels.missing:
      logging.warning('%s: no labels: %s.', self._key[0], labels.missing)
    self._length = len(data)
    self._shown = f'{os.path.basename(self._key[0])}/{split}'

  @functools.cached_property
  def _data(self):
    return _open(*self._key)

  @functools.cached_property
  def identity(self) -> str:
    files = stamps(self._key[0])
    # Images that are names of files, wherever those lie.
    others = [
      (path, stamp(_file(self._key[0], path)))
      for path, inside in self._paths()
      if path and not inside
    ]
    digest = hashlib.sha256(f'{self.listing} {files} {others}'.encode())
    return f'huggingface {self._key} {digest.hexdigest()}'

  @functools.cached_property
  def listing(self) -> str:
    paths = [os.path.basename(path or '') for path, _ in self._paths()]
    content = repr((paths, self.labels, self.class_names)).encode()
    labels = self._data[2].values_NL
    more = b'' if labels is None else labels.tobytes()
    return hashlib.sha256(content + more).hexdigest()

  def _paths(self) -> list[tuple[str | None, bool]]:
    """Of each image the path, or None, and whether its bytes are here."""
    column = _column(self._data[0], self._image)
    return [
      pair
      for part in column.chunks
      for pair in zip(
        part.field('path').to_pylist(),
        part.field('bytes').is_valid().to_pylist(),
        strict=True,
      )
    ]

  def __len__(self):
    return self._length

  def keys(self) -> list[str]:
    """The keys of all images, without reading one."""
    return [self._key_of(i, path) for i, (path, _) in enumerate(self._paths())]

  def every_label(self) -> np.ndarray:
    """int32 [N, L] of all images, without reading one; -1: not known."""
    if not self.labels:
      return np.zeros((len(self), 0), np.int32)
    return self._data[2].values_NL

  def _key_of(self, index, path):
    # A path on the machine that made it names nothing by its folders.
    name = os.path.basename(path) if path else index
    return f'{self._shown}/{name}'

  def __getitem__(self, index):
    data, _, labels = self._data
    row = data[index][self._image]
    if row is None:
      raise OSError(errno.ENODATA, 'no image', self._key_of(index, None))
    image, path = row['bytes'], row['path']
    if image is None and path is None:
      raise OSError(errno.ENODATA, 'no image', self._key_of(index, None))
    if image is None:
      with open(_file(self._key[0], path), 'rb') as file:
        image = file.read()
    return {
      'image': image,
      'label': labels.values_NL[index] if self.labels else NO_LABEL,
      'key': self._key_of(index, path),
    }


def _file(folder, path):
  return os.path.join(folder, path.removeprefix('file://'))


def _columns(data) -> str:
  def kind(feature):
    return getattr(feature, 'dtype', None) or type(feature).__name__

  return ', '.join(f'{n} ({kind(f)})' for n, f in data.features.items())


def _column(data, name):
  return data.select_columns(name).with_format('arrow')[:][name]


class _Labels:
  """The labels of one split of several.

  Attributes:
    counts: name of each label -> number of its classes.
    names: of the classes, where there is one label and they are known.
    values_NL: int32 [N, L].
    missing: why there is no label, or ''.
  """

  def __init__(self, data, splits):
    import datasets

    names = [
      name
      for name, feature in data.features.items()
      if isinstance(feature, datasets.ClassLabel)
    ]
    self.missing = ''
    if not names:
      lower = {name.lower(): name for name in reversed(data.column_names)}
      names = [lower[name] for name in _LABELS if name in lower][:1]
      self.missing = (
        ''
        if names
        else (
          f'of the columns {_columns(data)} none is a ClassLabel or called '
          f'{", ".join(_LABELS[:5])}, ...'
        )
      )
    try:
      columns = [_classes(name, data, splits) for name in names]
    except _NoClassesError as error:
      self.missing, names, columns = str(error), [], []
    if len(names) == 1:
      names = ['label']
    self.counts = {n: c for n, (_, c, _) in zip(names, columns, strict=True)}
    self.names = columns[0][2] if len(columns) == 1 else ()
    values = [values for values, _, _ in columns]
    self.values_NL = np.stack(values, -1) if values else None


class _NoClassesError(Exception):
  """A column that can't be a label, in words."""


def _classes(name, data, splits) -> tuple[np.ndarray, int, tuple[str, ...]]:
  """A column as classes: int32 [N], how many there are, and their names."""
  import datasets
  import pyarrow as pa
  import pyarrow.compute as pc

  feature = data.features[name]
  column = _column(data, name)
  if isinstance(feature, datasets.ClassLabel):
    names = tuple(feature.names or ())
    return _filled(column), feature.num_classes, names
  kind = pa.types
  what = f'the column {name!r} of {feature}'
  try:
    known = [_whole(pc.unique(_column(part, name))) for part in splits]
    known = pc.unique(pa.concat_arrays(known).drop_null())
    if kind.is_boolean(known.type):
      return _filled(column.cast(pa.int8())), 2, ('False', 'True')
    if kind.is_string(known.type) or kind.is_large_string(known.type):
      names = known.sort()
      rows = _filled(pc.index_in(column, names))
      return rows, len(names), tuple(names.to_pylist())
    # Of pandas, whole numbers with gaps are floats.
    if kind.is_floating(known.type):
      column = pc.if_else(pc.is_nan(column), None, column)
      known = known.filter(pc.invert(pc.is_nan(known)))
    column, known = column.cast(pa.int64()), known.cast(pa.int64())
  except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
    raise _NoClassesError(
      f'{what} is neither words nor whole numbers'
    ) from error
  if not len(known):
    raise _NoClassesError(f'{what} is empty')
  least, most = (f(known).as_py() for f in (pc.min, pc.max))
  if least < -1 or most >= _MOST_CLASSES:
    raise _NoClassesError(
      f'{what} goes from {least} to {most}, and classes are numbered from 0 up '
      f'to {_MOST_CLASSES - 1}'
    )
  return _filled(column), most + 1, ()


def _whole(array):
  import pyarrow as pa

  chunked = isinstance(array, pa.ChunkedArray)
  return array.combine_chunks() if chunked else array


def _filled(column) -> np.ndarray:
  """int32, with -1 where there is nothing."""
  import pyarrow.compute as pc

  return pc.fill_null(column, -1).to_numpy().astype(np.int32)


def _open(path, split):
  """-> the data set, of its images alone and encoded; their column; labels."""
  try:
    import datasets
  except ImportError as error:
    raise UserError(
      'data.source is huggingface and the package datasets is missing: '
      "pip install 'ijepa_jax[huggingface]'."
    ) from error
  if not os.path.isdir(path):
    raise UserError(f'There is no folder {path}: check data.path.')
  split = split or 'train'
  try:
    data, splits = _loaded(path, split)
  # Its own errors are of many kinds, down to one for an empty folder.
  except Exception as error:
    words = ' '.join(str(error).split())
    raise UserError(
      f'There is no split {split!r} of a Hugging Face data set in {path}: '
      f'{words.rstrip(".")}.'
    ) from error
  image = _image_column(data, path)
  labels = _Labels(data, splits)
  return (
    data.select_columns(image).cast_column(image, datasets.Image(decode=False)),
    image,
    labels,
  )


def _loaded(path, split):
  """-> this split, and all that there are."""
  import datasets

  if os.path.exists(os.path.join(path, 'dataset_dict.json')):
    there = datasets.load_from_disk(path)
    if split not in there:
      raise UserError(f'there are {", ".join(there)}')
    return there[split], list(there.values())
  if os.path.exists(os.path.join(path, 'state.json')):
    data = datasets.load_from_disk(path)
    # Else one would test on what one trained on.
    if split not in ('train', str(data.split)):
      raise UserError(f'it is {data.split or "one without a name"}')
    return data, [data]
  files = _data_files(path)
  there = datasets.load_dataset(path)
  # `datasets` goes by the files' times, which a copy or a move may keep.
  changed = max((stamp(file)[2] for file in files), default=0)
  unpacked = [f['filename'] for d in there.values() for f in d.cache_files]
  if any(os.stat(file).st_mtime_ns < changed for file in unpacked):
    logging.info('Unpacking %s again: it has changed.', path)
    there = datasets.load_dataset(path, download_mode='reuse_cache_if_exists')
  if split in there:
    return there[split], list(there.values())
  return datasets.load_dataset(path, split=split), list(there.values())


def _data_files(path) -> list[str]:
  """The files of a data set; refuses those that would be left out."""
  import datasets

  given = datasets.load_dataset_builder(path).config.data_files or {}
  files = [str(file) for part in given.values() for file in part]
  taken = {os.path.realpath(file) for file in files}
  left = [
    file
    for file in glob.glob(f'{glob.escape(path)}/**/*.parquet', recursive=True)
    if os.path.isfile(file) and os.path.realpath(file) not in taken
  ]
  if left and not _has_configs(path):
    raise UserError(
      f'of its {len(left) + len(files)} files {left[0]} and {len(left) - 1} '
      f'more are in none of the splits {", ".join(map(str, given))}, which '
      f'have files like {files[0]}: name them after a split, or move them away'
    )
  return files


def _has_configs(path) -> bool:
  """Whether its README says which files are what, as on the Hub."""
  try:
    with open(os.path.join(path, 'README.md'), encoding='utf-8') as file:
      return 'configs:' in file.read()
  except OSError:
    return False


def _image_column(data, path) -> str:
  import datasets

  features = data.features
  images = [n for n, f in features.items() if isinstance(f, datasets.Image)]
  if not images:
    kinds = 'binary', 'large_binary'
    images = [
      n
      for n, f in features.items()
      if getattr(f, 'dtype', None) in kinds
      or (isinstance(f, dict) and f.keys() == {'bytes', 'path'})
    ]
  if not images:
    kinds = 'string', 'large_string'
    images = [
      n
      for n, f in features.items()
      if n.lower() in _IMAGES and getattr(f, 'dtype', None) in kinds
    ]
  images.sort(key=lambda n: [*_IMAGES, n.lower()].index(n.lower()))
  if not images or (len(images) > 1 and images[0].lower() not in _IMAGES):
    raise UserError(
      f'{path} has no one image feature: it has {_columns(data)}.'
    )
  return images[0]
