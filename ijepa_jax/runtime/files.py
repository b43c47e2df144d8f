"""Paths that users give, the cache folder, and files that appear whole."""

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
  """$IJEPA_JAX_CACHE, else ~/.cache/ijepa_jax; it may not exist."""
  given = os.environ.get('IJEPA_JAX_CACHE') or '~/.cache/ijepa_jax'
  return pathlib.Path(resolve(given))


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
def atomic_write(path):
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


def atomic_write_text(path: epath.Path, text: str) -> None:
  """Writes a file whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if '://' in str(path):
    path.write_text(text)  # A bucket shows the whole object or the old one.
    return
  # Of no number of a process: another machine may have the same.
  temporary = path.parent / f'.{path.name}.{uuid.uuid4().hex}'
  with open(temporary, 'w', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


# What TensorStore reads as a slash, and what epath takes for a pattern.
_LOST = re.compile(r'\\|\*\*|[\ud800-\udfff]')
# Orbax finds what it has just written by a pattern: in another folder, or none.
_LOST_AT_SAVE = re.compile(rf'{_LOST.pattern}|[*?\[]')


def is_url(path) -> bool:
  """Whether `path` is on a bucket, such as gs://bucket/folder."""
  return '://' in os.fspath(path)


def resolve(path) -> epath.Path:
  """Gives the absolute path, with ~ as the home folder; a URL as it is.

  Raises:
    UserError: `path` is empty, has a null byte, or gs:/ with one slash.
  """
  text = os.fspath(path)
  if not text or '\0' in text:
    raise UserError(f'{text!r} is no path: give one that is not empty.')
  if is_url(text):
    return epath.Path(text)
  if re.search(r'(^|/)\w{2,}:/', text):  # epath would take it for a bucket
    raise UserError(
      f'{text!r} is no path: a bucket has two slashes, as in gs://bucket.'
    )
  return epath.Path(os.path.abspath(os.path.expanduser(text)))


def check_checkpoints(path, *, save: bool = True) -> None:
  """Refuses a folder whose name makes Orbax lose the checkpoints in it.

  Args:
    path: of the folder.
    save: refuses also those that can be read, were they renamed afterwards.

  Raises:
    UserError: the absolute path has a backslash, **, or bytes that are no
      UTF-8; or with `save` one of *, ? and [.
  """
  text = os.fspath(path)
  if match := (_LOST_AT_SAVE if save else _LOST).search(text):
    raise UserError(
      f'{text!r} has {match[0]!r}, with which checkpoints can not be '
      f'{"saved" if save else "read"}: take a path without *, ?, [, '
      'backslashes and bytes that are no UTF-8.'
    )
