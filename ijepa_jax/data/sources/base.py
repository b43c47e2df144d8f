"""Helpers of the sources: splits, features, file stamps, records."""

import errno
import os
from collections.abc import Callable

import numpy as np

from ijepa_jax.data import decode
from ijepa_jax.errors import UserError

NO_LABEL = np.zeros(0, np.int32)


class ReopenedAfterPickling:
  """Drops its open file when pickled; `_data` reopens it in the worker."""

  def __getstate__(self):
    return {k: v for k, v in vars(self).items() if k != '_data'}


def class_of_one_only(train, test) -> str | None:
  """Returns a class that only one of two sources has.

  A folder numbers its own classes: one missing would shift all after it.
  """
  names = [getattr(source, 'class_names', ()) for source in (train, test)]
  if names[0] != names[1]:
    return min(set(names[0]) ^ set(names[1]), default='in another order')


def split_folder(
  path: str, split: str, exists: Callable[[str], bool], kind: str
) -> str:
  """Returns `path`/`split` if `exists` says so, and else `path` itself.

  Raises:
    UserError: a split other than 'train' does not exist: `path` itself may hold
      the training images, on which no test is to run.
  """
  inner = os.path.join(path, split)
  if split and exists(inner):
    return inner
  if split not in ('', 'train'):
    raise UserError(f'There is no {kind} {split!r} in {path}: check split.')
  return path


def features_of_type(features: dict, feature_type) -> list[str]:
  """Returns the names of all features of this type."""
  return [k for k, v in features.items() if isinstance(v, feature_type)]


def choose_image(
  names: list[str], preferred: tuple[str, ...], title: str, columns: str
) -> str:
  """Returns the feature that is the image: a preferred or the only one.

  Args:
    names: of all features that may be an image.
    preferred: lower-case names that mean an image, the best one first.
    title, columns: of the data set and of all its features, for the error.

  Raises:
    UserError: there is none, or there are several of no preferred name.
  """
  names = sorted(names, key=lambda n: [*preferred, n.lower()].index(n.lower()))
  if not names or (len(names) > 1 and names[0].lower() not in preferred):
    raise UserError(f'{title} has no one image feature: it has {columns}.')
  return names[0]


def stamp(path) -> tuple[int, int, int]:
  """Returns size and times of a file: others if its bytes may have changed.

  The time of the last change can be set to anything: rsync and mv keep that of
  the original. The time of the change of the file's entry cannot be set.
  """
  try:
    stat = os.stat(path)
  except OSError:  # there is no such file any more
    return -1, -1, -1
  return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def stamps(folder: str) -> str:
  """Returns the stamps of all files below a folder, with their paths there."""
  entries = []
  for parent, folders, names in os.walk(folder):
    folders.sort()
    for name in sorted(names):
      path = os.path.join(parent, name)
      entries.append((os.path.relpath(path, folder), *stamp(path)))
  return repr(entries)


def decode_if_npy(data: bytes, name: str) -> bytes | np.ndarray:
  """Returns the pixels of a .npy file, and any other image still encoded.

  Raises:
    OSError: it is a .npy file that holds no image.
  """
  if not data.startswith(decode.NPY_MAGIC):
    return data
  try:
    return decode.decode_npy(data)
  except decode.BadImage as error:
    raise OSError(errno.EINVAL, str(error), name) from error


def read_record(data, index: int, name: str):
  """Returns data[index]; an error of ArrayRecord's reader becomes an OSError.

  The reader checks the checksum that every record has.
  """
  try:
    return data[index]
  except RuntimeError as error:
    reason = str(error).split(';')[0]
    raise OSError(errno.EIO, reason, name) from error
