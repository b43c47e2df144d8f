"""What can be made again: where it is kept, its name, and that it is whole."""

import contextlib
import hashlib
import json
import os
import pathlib
import uuid

from ijepa_jax import paths


def folder() -> pathlib.Path:
  """$IJEPA_JAX_CACHE, else ~/.cache/ijepa_jax; it may not exist."""
  given = os.environ.get('IJEPA_JAX_CACHE') or '~/.cache/ijepa_jax'
  return pathlib.Path(paths.resolve(given))


def name_of(**depends_on) -> str:
  """Names what is kept by EVERYTHING that it depends on: 24 hex digits.

  What is left out here is a wrong number later: the same name would stand for
  two results.

  Args:
    **depends_on: values that JSON has; the identity of a source, the
      fingerprint of an encoder, the repr of a transform, a seed, ...

  Raises:
    TypeError: a value has no text of its own in JSON.
  """
  text = json.dumps(depends_on, sort_keys=True, allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()[:24]


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
