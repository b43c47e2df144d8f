"""Some images of a source: by index, or by a list of their names."""

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
    both = f'{self._source.listing} {self._digest}'
    return hashlib.sha256(both.encode()).hexdigest()

  def __len__(self):
    return len(self._indices)

  def keys(self) -> list[str]:
    keys = self._source.keys()
    return [keys[i] for i in self._indices.tolist()]

  def every_label(self) -> np.ndarray | None:
    """int32 [N, L] where the other source knows them at no cost."""
    every = getattr(self._source, 'every_label', lambda: None)()
    return None if every is None else every[self._indices]

  def __getitem__(self, index):
    return self._source[int(self._indices[index])]


def filter_by_list(source, path: str) -> Subset:
  """The images of a source that the list at `path` names, see
  `indices_from_list`."""
  return Subset(source, indices_from_list(source.keys(), path))


def indices_from_list(keys, path: str) -> np.ndarray:
  """The images that a text file names, one a line, such as ImageNet's 1%.

  Args:
    keys: names of all images in their order, such as
      'train/n01440764/n01440764_10026.JPEG'.
    path: of the file; a line is the end of a key, with or without the ending
      of the file: 'n01440764_10026.JPEG', 'n01440764/n01440764_10026'.

  Returns:
    int64 indices, rising.

  Raises:
    UserError: there is no such list or it is empty, or a line names no image
      or several.
  """
  try:
    # The sig is what editors on Windows begin with.
    with open(
      os.path.expanduser(path), encoding='utf-8-sig', errors='surrogateescape'
    ) as file:
      lines = [line.strip().removeprefix('./').strip('/') for line in file]
  except OSError as error:
    raise UserError(
      f'The list {path} can not be read ({error.strerror}): check its path.'
    ) from error
  lines = list(dict.fromkeys(line for line in lines if line))
  if not lines:
    raise UserError(f'The list {path} is empty: it needs one name a line.')
  # name -> indices, of whole names and of names without the file's ending
  whole, stems = {line: [] for line in lines}, {line: [] for line in lines}
  depths = {line.count('/') for line in lines}
  for i, key in enumerate(keys):
    parts = key.replace(os.sep, '/').split('/')
    for depth in depths:
      end = '/'.join(parts[-depth - 1 :])
      if end in whole:
        whole[end].append(i)
      if (stem := os.path.splitext(end)[0]) in stems:
        stems[stem].append(i)
  found = {line: whole[line] or stems[line] for line in lines}
  for wrong, words in (
    ([n for n in lines if not found[n]], 'are not there'),
    ([n for n in lines if len(found[n]) > 1], 'stand for several images'),
  ):
    if wrong:
      some = ', '.join(wrong[:3]) + (', ...' if wrong[3:] else '')
      raise UserError(
        f'{len(wrong)} of the {len(lines)} names in {path} {words} ({some}): '
        f'names look like {keys[0]} here.'
      )
  return np.unique([found[line][0] for line in lines])
