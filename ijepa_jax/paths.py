"""Paths as people write them, and as Orbax can take them."""

import glob
import os

from etils import epath
from etils.epath import gpath


def resolve(path) -> epath.Path:
  """The path with `~` expanded and absolute; a bucket's (gs://) as it is."""
  path = os.fspath(path)
  if '://' not in path:
    path = os.path.abspath(os.path.expanduser(path))
  return epath.Path(path)


def writable(path) -> epath.Path:
  """As `resolve`, of what is written to.

  Raises:
    ValueError: it has characters that TensorStore, which writes checkpoints,
      takes for something else.
  """
  path = resolve(path)
  try:
    os.fspath(path).encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f'{os.fspath(path)!a} is not UTF-8: take another name.'
    ) from error
  if '\\' in os.fspath(path) or any(part.endswith(':') for part in path.parts):
    raise ValueError(
      f'{path} has a backslash, or a part that ends in a colon, which is taken '
      'for another place: take another name.'
    )
  return path


def _glob(self, pattern):
  here = self._path_str
  # epath takes the folder itself for a pattern: Orbax would find none of its
  # own files below `lr[1e-3]`, and below `a*` those of others too.
  here = here if self._uri_scheme else glob.escape(here)
  return map(self._new, self._backend.glob(self._PATH.join(here, pattern)))


gpath._GPath.glob = _glob
