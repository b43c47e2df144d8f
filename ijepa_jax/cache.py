"""What can be made again: where it is kept, and how files appear whole."""

import contextlib
import os
import pathlib
import uuid

try:
  import fcntl
except ImportError:  # not on Windows
  fcntl = None


def folder() -> pathlib.Path:
  """$IJEPA_JAX_CACHE, else ~/.cache/ijepa_jax; it may not exist."""
  given = os.environ.get('IJEPA_JAX_CACHE')
  return pathlib.Path(given or pathlib.Path.home() / '.cache/ijepa_jax')


@contextlib.contextmanager
def replacing(path):
  """Gives a temporary path beside `path` that takes its place at the end.

  The folder is made if need be. After an error nothing is left of it, and what
  was at `path` stays.

  Raises:
    OSError: it can't be written.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'{path.name}.{uuid.uuid4().hex}.tmp')
  try:
    yield temporary
    with open(temporary, 'rb+') as file:
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()


@contextlib.contextmanager
def only_one(path):
  """One process at a time holds the file `path`; the others wait.

  Where the disk knows no locks, nobody waits.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, 'w') as file:
    with contextlib.suppress(OSError, AttributeError):
      fcntl.flock(file, fcntl.LOCK_EX)
    yield
