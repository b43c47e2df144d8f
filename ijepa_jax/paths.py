"""The one way in for every path that a user gives, whatever the job."""

import os
import re

from etils import epath

from ijepa_jax.errors import UserError

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
