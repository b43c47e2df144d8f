"""Image data sets of Hugging Face's `datasets` that lie on this machine."""

import errno
import functools
import os

import numpy as np

from ijepa_jax.sources.opened import NO_LABEL, Opened


class HuggingFace(Opened):
  """A folder that `save_to_disk` left, or of parquet files as the Hub has them.

  The images stay encoded; every ClassLabel is a label. Parquet files are
  unpacked by `datasets`, once and to about their own size, into its own cache:
  HF_DATASETS_CACHE says where.
  """

  def __init__(self, path: str, split: str = 'train'):
    self._key = os.path.abspath(os.path.expanduser(path)), split
    data, self._image = self._data
    import datasets

    classes = {
      name: feature
      for name, feature in data.features.items()
      if isinstance(feature, datasets.ClassLabel)
    }
    self.labels = {name: f.num_classes for name, f in classes.items()}
    self.class_names = ()
    if len(classes) == 1:
      self.class_names = tuple(*(f.names for f in classes.values()))
    self._length = len(data)
    self._shown = f'{os.path.basename(self._key[0])}/{split}'
    self.identity = f'huggingface {self._shown} {data._fingerprint}'

  @functools.cached_property
  def _data(self):
    return _open(*self._key)

  def __len__(self):
    return self._length

  def keys(self) -> list[str]:
    """The keys of all images, without reading one."""
    table = self._data[0].select_columns(self._image).with_format('arrow')
    column = table[:][self._image]
    paths = (
      p for part in column.chunks for p in part.field('path').to_pylist()
    )
    return [self._key_of(i, path) for i, path in enumerate(paths)]

  def every_label(self) -> np.ndarray:
    """int32 [N, L] of all images, without reading one; -1: not known."""
    names = list(self.labels)
    table = self._data[0].select_columns(names).with_format('arrow')[:]
    columns = [table[name].fill_null(-1).to_numpy() for name in names]
    return np.array(columns, np.int32).reshape(len(names), -1).T

  def _key_of(self, index, path):
    # A path on the machine that made it names nothing by its folders.
    name = os.path.basename(path) if path else index
    return f'{self._shown}/{name}'

  def __getitem__(self, index):
    row = self._data[0][index]
    if row[self._image] is None:
      raise OSError(errno.ENODATA, 'no image', self._key_of(index, None))
    image, path = row[self._image]['bytes'], row[self._image]['path']
    if image is None:
      with open(path, 'rb') as file:
        image = file.read()
    # None is a label that is not known.
    labels = [-1 if row[n] is None else row[n] for n in self.labels]
    return {
      'image': image,
      'label': np.array(labels, np.int32) if labels else NO_LABEL,
      'key': self._key_of(index, path),
    }


def _open(path, split):
  """-> the data set, its images still encoded, and the name of the image."""
  try:
    import datasets
  except ImportError as error:
    raise ValueError(
      'data.source is huggingface and the package datasets is missing: '
      "pip install 'ijepa_jax[huggingface]'."
    ) from error
  if not os.path.isdir(path):
    raise ValueError(f'There is no folder {path}: check data.path.')
  split = split or 'train'
  try:
    if os.path.exists(os.path.join(path, 'dataset_dict.json')):
      there = datasets.load_from_disk(path)
      if split not in there:
        raise ValueError(f'there are {", ".join(there)}')
      data = there[split]
    elif os.path.exists(os.path.join(path, 'state.json')):
      data = datasets.load_from_disk(path)
      # Else one would test on what one trained on.
      if split not in ('train', str(data.split)):
        raise ValueError(f'it is {data.split or "one without a name"}')
    else:
      data = datasets.load_dataset(path, split=split)
  # Its own errors are of many kinds, down to one for an empty folder.
  except Exception as error:
    words = ' '.join(str(error).split())
    raise ValueError(
      f'There is no split {split!r} of a Hugging Face data set in {path}: '
      f'{words.rstrip(".")}.'
    ) from error
  images = [
    name
    for name, feature in data.features.items()
    if isinstance(feature, datasets.Image)
  ]
  if 'image' not in images and len(images) != 1:
    raise ValueError(
      f'{path} has no one image feature: it has {", ".join(data.features)}.'
    )
  image = 'image' if 'image' in images else images[0]
  return data.cast_column(image, datasets.Image(decode=False)), image
