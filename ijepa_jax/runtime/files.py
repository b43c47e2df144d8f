"""Paths from users, the cache folder, and atomic writes."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import uuid

from etils import epath

from ijepa_jax.errors import UserError


def cache_dir() -> pathlib.Path:
  """Returns $IJEPA_JAX_CACHE, else ~/.cache/ijepa_jax; it may not exist."""
  path = os.environ.get('IJEPA_JAX_CACHE') or '~/.cache/ijepa_jax'
  return pathlib.Path(resolve(path))


def name_of(**depends_on) -> str:
  """Names a stored result by EVERYTHING that it depends on: 24 hex digits.

  Anything left out here gives a wrong number later: two results would have the
  same name.

  Args:
    **depends_on: values that JSON has; the identity of a source, the
      fingerprint of an encoder, the repr of a transform, a seed, ...

  Raises:
    TypeError: JSON has no such value.
  """
  text = json.dumps(depends_on, sort_keys=True, allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()[:24]


@contextlib.contextmanager
def atomic_write(path):
  """A context that gives a temporary path, which replaces `path` at its end.

  The folder is made if needed. After an error the temporary file is removed,
  and `path` stays as it was. Not for URLs, see `atomic_write_text`.

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


def atomic_write_text(path: epath.Path, text: str) -> None:
  """Writes a file whole or not at all, on a disk or a bucket."""
  if is_url(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)  # A bucket shows the complete object or the old one.
    return
  with atomic_write(path) as temporary:
    temporary.write_text(text, encoding='utf-8')


# TensorStore reads a backslash as a slash, epath reads ** as a pattern.
_LOST = re.compile(r'\\|\*\*|[\ud800-\udfff]')
# Orbax looks for its own files by a pattern: it would find others, or none.
_LOST_AT_SAVE = re.compile(rf'{_LOST.pattern}|[*?\[]')


def is_url(path) -> bool:
  """Returns whether `path` is on a bucket, such as gs://bucket/folder."""
  return '://' in os.fspath(path)


def resolve(path) -> epath.Path:
  """Returns the absolute path, with ~ as the home folder; a URL as it is.

  Raises:
    UserError: `path` is empty, has a null byte, or gs:/ with one slash.
  """
  text = os.fspath(path)
  if not text or '\0' in text:
    raise UserError(f'{text!r} is no path: give one that is not empty.')
  if is_url(text):
    return epath.Path(text)
  if re.search(r'(^|/)\w{2,}:/', text):  # epath would read it as a bucket
    raise UserError(
      f'{text!r} is no path: a bucket has two slashes, as in gs://bucket.'
    )
  return epath.Path(os.path.abspath(os.path.expanduser(text)))


def check_checkpoints(path, *, save: bool = True) -> None:
  """Refuses a folder whose name makes Orbax lose the checkpoints in it.

  Args:
    path: of the folder.
    save: False: Orbax has only to read there, which more names allow.

  Raises:
    UserError: the absolute path has a backslash, **, or bytes that are no
      UTF-8; or with `save` one of *, ? and [.
  """
  text = os.fspath(path)
  if match := (_LOST_AT_SAVE if save else _LOST).search(text):
    raise UserError(
      f'{text!r} has {match[0]!r}, with which checkpoints cannot be '
      f'{"saved" if save else "read"}: take a path without *, ?, [, '
      'backslashes and bytes that are no UTF-8.'
    )
