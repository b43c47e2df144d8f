"""The line of this package that an instruction was traced from."""

import functools
import re

PACKAGE = 'ijepa_jax/'
_TABLE = r'^%s\n((?:\d+ .*\n)+)'


class Lines:
  """Finds lines by the tables of files and frames in a program's text."""

  def __init__(self, text: str):
    self._files, self._locations, self._frames = (
      _table(text, name)
      for name in ('FileNames', 'FileLocations', 'StackFrames')
    )

  def of(self, instruction) -> str:
    """'models/transformer.py:49'; '': it is of no line of this package."""
    if match := re.search(r'stack_frame_id=(\d+)', instruction.metadata):
      return self._innermost(int(match[1]))
    match = re.search(
      r'source_file="([^"]*)" source_line=(\d+)', instruction.metadata
    )
    return _in_package(*match.groups()) if match else ''

  @functools.cache  # noqa: B019, lives as long as the text is read
  def _innermost(self, frame: int) -> str:
    while frame in self._frames:
      location, parent = _numbers(self._frames[frame])[:2]
      place = self._locations[location]
      name = self._files[_numbers(place)[0]].strip('"')
      line = re.search(r'\bline=(\d+)', place)[1]
      if inside := _in_package(name, line):
        return inside
      frame = parent - 1  # 1 is written where there is none
    return ''


def _table(text: str, name: str) -> dict[int, str]:
  match = re.search(_TABLE % name, text, re.MULTILINE)
  rows = match[1].splitlines() if match else []
  return {int(n): rest for n, _, rest in (r.partition(' ') for r in rows)}


def _numbers(text: str) -> list[int]:
  return [int(n) for n in re.findall(r'=(\d+)', text)]


def _in_package(name: str, line: str) -> str:
  _, package, rest = name.rpartition(PACKAGE)
  return f'{rest}:{line}' if package else ''
