"""What the sources share."""

import errno

import numpy as np

from ijepa_jax import decode

NO_LABEL = np.zeros(0, np.int32)


class Opened:
  """Leaves what it has opened behind when pickled, and opens it again."""

  def __getstate__(self):
    return {k: v for k, v in vars(self).items() if k != '_data'}


def image(data: bytes, name: str) -> bytes | np.ndarray:
  """An encoded image as it is, and of a .npy file the pixels.

  Raises:
    OSError: it is a .npy file, and of no image.
  """
  if not data.startswith(decode.ARRAY):
    return data
  try:
    return decode.array(data)
  except decode.BadImage as error:
    raise OSError(errno.EINVAL, str(error), name) from error


def read(data, index: int, name: str):
  """data[index], with what ArrayRecord's reader finds wrong as an OSError.

  Every record has a checksum, which is looked at.
  """
  try:
    return data[index]
  except RuntimeError as error:
    reason = str(error).split(';')[0]
    raise OSError(errno.EIO, reason, name) from error
