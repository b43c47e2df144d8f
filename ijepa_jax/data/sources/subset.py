"""Takes some images of a source: by index, or by a list of their names."""

import hashlib
import os

import numpy as np

from ijepa_jax.errors import UserError


class Subset:
  """Some images of another source, in the order of `indices`."""

  def __init__(self, source, indices):
    self._source, self._indices = source, np.asarray(indices)
    self.labels = source.labels
    self.class_names = getattr(source, 'class_names', ())
    self.manifest = getattr(source, 'manifest', None)  # of packed images
    self.unlabelled = getattr(source, 'unlabelled', '')
    digest = hashlib.sha256(self._indices.astype(np.int64).tobytes())
    self._digest = digest.hexdigest()

  @property
  def identity(self) -> str:
    return f'{self._source.identity} {self._digest}'

  @property
  def listing(self) -> str:
    content = f'{self._source.listing} {self._digest}'
    return hashlib.sha256(content.encode()).hexdigest()

  def __len__(self):
    return len(self._indices)

  def keys(self) -> list[str]:
    keys = self._source.keys()
    return [keys[i] for i in self._indices.tolist()]

  def every_label(self) -> np.ndarray | None:
    """Returns int32 [N, L] if the source knows them at no cost."""
    every = getattr(self._source, 'every_label', lambda: None)()
    return None if every is None else every[self._indices]

  def __getitem__(self, index):
    return self._source[int(self._indices[index])]


def filter_by_list(source, path: str) -> Subset:
  """Returns the images that a list names, see `indices_from_list`."""
  return Subset(source, indices_from_list(source.keys(), path))


def indices_from_list(keys, path: str) -> np.ndarray:
  """Finds the images that a text file names, such as ImageNet's 1%.

  Args:
    keys: names of all images in their order, such as
      'train/n01440764/n01440764_10026.JPEG'.
    path: of the file, with one name a line: the end of a key, with or without
      the ending of the file, as in 'n01440764_10026.JPEG' or
      'n01440764/n01440764_10026'.

  Returns:
    int64 indices, ascending.

  Raises:
    UserError: there is no such list or it is empty, or a line names no image
      or several.
  """
  names = _read_names(path)
  # Name -> indices of the keys that end in it, or do without their ending.
  by_name = {name: [] for name in names}
  by_stem = {name: [] for name in names}
  depths = {name.count('/') for name in names}
  for i, key in enumerate(keys):
    parts = key.replace(os.sep, '/').split('/')
    for depth in depths:
      end = '/'.join(parts[-depth - 1 :])
      if end in by_name:
        by_name[end].append(i)
      if (stem := os.path.splitext(end)[0]) in by_stem:
        by_stem[stem].append(i)
  matches = {name: by_name[name] or by_stem[name] for name in names}
  for wrong, fault in (
    ([n for n in names if not matches[n]], 'are not there'),
    ([n for n in names if len(matches[n]) > 1], 'stand for several images'),
  ):
    if wrong:
      examples = ', '.join(wrong[:3]) + (', ...' if wrong[3:] else '')
      raise UserError(
        f'{len(wrong)} of the {len(names)} names in {path} {fault} '
        f'({examples}): names look like {keys[0]} here.'
      )
  return np.unique([matches[name][0] for name in names])


def _read_names(path: str) -> list[str]:
  try:
    # Editors on Windows begin a file with a byte order mark.
    with open(
      os.path.expanduser(path), encoding='utf-8-sig', errors='surrogateescape'
    ) as file:
      names = [line.strip().removeprefix('./').strip('/') for line in file]
  except OSError as error:
    raise UserError(
      f'The list {path} cannot be read ({error.strerror}): check its path.'
    ) from error
  names = list(dict.fromkeys(filter(None, names)))
  if not names:
    raise UserError(f'The list {path} is empty: it needs one name a line.')
  return names
