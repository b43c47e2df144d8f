"""What the sources share."""

import errno

import numpy as np

NO_LABEL = np.zeros(0, np.int32)


class Opened:
  """Leaves what it has opened behind when pickled, and opens it again."""

  def __getstate__(self):
    return {k: v for k, v in vars(self).items() if k != '_data'}


def read(data, index: int, name: str):
  """data[index], with what ArrayRecord's reader finds wrong as an OSError.

  Every record has a checksum, which is looked at.
  """
  try:
    return data[index]
  except RuntimeError as error:
    reason = str(error).split(';')[0]
    raise OSError(errno.EIO, reason, name) from error
