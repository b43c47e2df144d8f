"""The source of data sets of Hugging Face's `datasets`, on this machine."""

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
from ijepa_jax.data.sources.huggingface.columns import (
  Labels,
  image_column,
  read_column,
)
from ijepa_jax.errors import UserError


class HuggingFace(ReopenedAfterPickling):
  """A folder that `save_to_disk` made, or one of parquet files.

  The images stay encoded. Every ClassLabel is a label; if there is none, a
  column of numbers or strings with a name of LABEL_COLUMNS: numbers from 0 on
  are classes as they are, -1 and nulls are labels that are not known, and
  strings are numbered in their order, over all splits. A label that is the only
  one is called `label`. `datasets` unpacks parquet files once, to about their
  own size, into its own cache: HF_DATASETS_CACHE says where.
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
    stored = stamps(self._key[0])
    # Images that are stored as names of files, wherever those lie.
    linked = [
      (path, stamp(_file(self._key[0], path)))
      for path, has_bytes in self._paths()
      if path and not has_bytes
    ]
    digest = hashlib.sha256(f'{self.listing} {stored} {linked}'.encode())
    return f'huggingface {self._key} {digest.hexdigest()}'

  @functools.cached_property
  def listing(self) -> str:
    paths = [os.path.basename(path or '') for path, _ in self._paths()]
    content = repr((paths, self.labels, self.class_names)).encode()
    if (labels := self._data[2].values_NL) is not None:
      content += labels.tobytes()
    return hashlib.sha256(content).hexdigest()

  def _paths(self) -> list[tuple[str | None, bool]]:
    """Returns (path or None, whether the bytes are stored) of each image."""
    column = read_column(self._data[0], self._image)
    return [
      pair
      for chunk in column.chunks
      for pair in zip(
        chunk.field('path').to_pylist(),
        chunk.field('bytes').is_valid().to_pylist(),
        strict=True,
      )
    ]

  def __len__(self):
    return self._length

  def keys(self) -> list[str]:
    """Returns the keys of all images, without reading one."""
    return [self._key_of(i, path) for i, (path, _) in enumerate(self._paths())]

  def every_label(self) -> np.ndarray:
    """Returns int32 [N, L] of all images; -1: not known."""
    if not self.labels:
      return np.zeros((len(self), 0), np.int32)
    return self._data[2].values_NL

  def _key_of(self, index, path):
    # The folders of a path are those of the machine that made the data set.
    name = os.path.basename(path) if path else index
    return f'{self._shown}/{name}'

  def __getitem__(self, index):
    data, _, labels = self._data
    row = data[index][self._image] or {'bytes': None, 'path': None}
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


def _open(path, split):
  """Returns the data set of the encoded images, their column, and labels."""
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
    data, splits = _load(path, split)
  # `datasets` has errors of many types, such as one for an empty folder.
  except Exception as error:
    reason = ' '.join(str(error).split())
    raise UserError(
      f'There is no split {split!r} of a Hugging Face data set in {path}: '
      f'{reason.rstrip(".")}.'
    ) from error
  image = image_column(data, path)
  labels = Labels(data, splits)
  return (
    data.select_columns(image).cast_column(image, datasets.Image(decode=False)),
    image,
    labels,
  )


def _load(path, split):
  """Returns this split, and a list of all splits."""
  import datasets

  if os.path.exists(os.path.join(path, 'dataset_dict.json')):
    splits = datasets.load_from_disk(path)
    if split not in splits:
      raise UserError(f'there are {", ".join(splits)}')
    return splits[split], list(splits.values())
  if os.path.exists(os.path.join(path, 'state.json')):
    data = datasets.load_from_disk(path)
    # See base.split_folder: one would test on the training images.
    if split not in ('train', str(data.split)):
      raise UserError(f'it is {data.split or "one without a name"}')
    return data, [data]
  files = _data_files(path)
  splits = datasets.load_dataset(path)
  # `datasets` goes by the files' times, which a copy or a move may keep.
  changed = max((stamp(file)[2] for file in files), default=0)
  unpacked = [f['filename'] for d in splits.values() for f in d.cache_files]
  if any(os.stat(file).st_mtime_ns < changed for file in unpacked):
    logging.info('Unpacking %s again: it has changed.', path)
    splits = datasets.load_dataset(path, download_mode='reuse_cache_if_exists')
  if split in splits:
    return splits[split], list(splits.values())
  return datasets.load_dataset(path, split=split), list(splits.values())


def _data_files(path) -> list[str]:
  """Returns the files of a data set; refuses files that are in no split."""
  import datasets

  splits = datasets.load_dataset_builder(path).config.data_files or {}
  files = [str(file) for names in splits.values() for file in names]
  used = {os.path.realpath(file) for file in files}
  unused = [
    file
    for file in glob.glob(f'{glob.escape(path)}/**/*.parquet', recursive=True)
    if os.path.isfile(file) and os.path.realpath(file) not in used
  ]
  if unused and not _has_configs(path):
    raise UserError(
      f'of its {len(unused) + len(files)} files {unused[0]} and '
      f'{len(unused) - 1} more are in none of the splits '
      f'{", ".join(map(str, splits))}, which have files like {files[0]}: name '
      'them after a split, or move them away'
    )
  return files


def _has_configs(path) -> bool:
  """Whether its README says which files are in which split, as on the Hub."""
  try:
    with open(os.path.join(path, 'README.md'), encoding='utf-8') as file:
      return 'configs:' in file.read()
  except OSError:
    return False
