"""What the sources share."""

import errno
import os

import numpy as np

from ijepa_jax.data import decode


def class_of_one_only(train, test) -> str | None:
  """A class that only one of two sources has.

  A folder numbers its own classes: one missing would shift the rest.
  """
  names = [getattr(source, 'class_names', ()) for source in (train, test)]
  if names[0] != names[1]:
    return min(set(names[0]) ^ set(names[1]), default='in another order')


NO_LABEL = np.zeros(0, np.int32)


class ReopenedAfterPickling:
  """Leaves what it has opened behind when pickled, and opens it again."""

  def __getstate__(self):
    return {k: v for k, v in vars(self).items() if k != '_data'}


def stamp(path) -> tuple[int, int, int]:
  """Of a file: differs where its bytes may have changed, or it is another.

  The time of its last change may be set to anything, as rsync and mv leave it
  what it was; the time of the change of its entry may not.
  """
  try:
    stat = os.stat(path)
  except OSError:  # it is gone
    return -1, -1, -1
  return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def stamps(folder: str) -> str:
  """Of all files of a folder and of folders in it, with their paths there."""
  found = []
  for where, folders, files in os.walk(folder):
    folders.sort()
    for name in sorted(files):
      path = os.path.join(where, name)
      found.append((os.path.relpath(path, folder), *stamp(path)))
  return repr(found)


def decode_if_npy(data: bytes, name: str) -> bytes | np.ndarray:
  """An encoded image as it is, and of a .npy file the pixels.

  Raises:
    OSError: it is a .npy file, and of no image.
  """
  if not data.startswith(decode.NPY_MAGIC):
    return data
  try:
    return decode.decode_npy(data)
  except decode.BadImage as error:
    raise OSError(errno.EINVAL, str(error), name) from error


def read_record(data, index: int, name: str):
  """data[index], with what ArrayRecord's reader finds wrong as an OSError.

  Every record has a checksum, which is looked at.
  """
  try:
    return data[index]
  except RuntimeError as error:
    reason = str(error).split(';')[0]
    raise OSError(errno.EIO, reason, name) from error
