"""Where weights came from, and what that says of their licence.

Told in a model card; whatever the source's own card says is carried over.
"""

import json
import pathlib
import re
from collections.abc import Mapping

from etils import epath

from ijepa_jax.runtime import files

HEADING = '## Origin and licence'
_CHARACTERS = 100_000  # of a card that are looked at
_LICENCE = 'license', 'license_name', 'license_link'
_RELEASED = (
  'Weights released with the paper are CC BY-NC 4.0, not for commercial use, '
  'and what is made from them stays so: see to it that you may use these.'
)


def card_path(path) -> pathlib.Path:
  """Of the card of a folder, or of a file (that need not be there yet)."""
  path = pathlib.Path(path)
  return (
    path / 'README.md' if path.is_dir() else path.with_name(path.name + '.md')
  )


def public_name(path) -> str:
  """A path's last part: where it lay is nobody's business."""
  name = epath.Path(path).name or epath.Path(path).resolve().name
  return re.sub(r'[^\w.,:@+ -]', '_', name)


def provenance(source, config: Mapping, seen=()) -> tuple[dict, str]:
  """Front matter's licence, and in words what this was made from.

  Args:
    source: path of what is handed on.
    config: of the run that it is, or `orbax.plain_config`, or {}.
    seen: runs on the way here, should one have begun from itself.
  """
  source = files.resolve(source)
  before = _read_card(source)
  name = f'`{public_name(source)}`'
  if HEADING in before:
    # Of a card from here: its story is this one's.
    told = before.split(HEADING)[1].split('\n## ')[0].strip()
    return _licence(before), f'{told}\n\nConverted from {name}.'
  if licence := _licence(before):
    return licence, (
      f'Made from {name}, whose card says: licence {licence["license"]}. That '
      f'is carried over. {_RELEASED}'
    )
  if 'total_steps' not in config:
    source = config.get('converted_from', public_name(source))
    return _of_the_source(), f'Converted from `{source}`. {_RELEASED}'
  if first := config.get('init_from'):
    licence, told = {}, _RELEASED
    if first not in seen and files.resolve(first).exists():
      licence, told = provenance(first, _config(first), (*seen, first))
    return licence or _of_the_source(), (
      f'Trained with ijepa_jax, beginning with the weights of '
      f'`{public_name(first)}`.\n\nOf those: {told}'
    )
  return {'license': 'other', 'license_name': 'not-chosen-yet'}, (
    'Trained from scratch with ijepa_jax, which is Apache-2.0: the licence of '
    "the weights is the trainer's to choose."
  )


def _of_the_source() -> dict:
  return {'license': 'other', 'license_name': 'as-the-source'}


def _config(path) -> dict:
  try:
    found = json.loads((files.resolve(path) / 'config.json').read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _read_card(path) -> str:
  path = epath.Path(path)
  path = (
    path / 'README.md' if path.is_dir() else path.parent / f'{path.name}.md'
  )
  try:
    return path.read_text()[:_CHARACTERS] if path.is_file() else ''
  except (OSError, ValueError):
    return ''


def _licence(card: str) -> dict[str, str]:
  """What the front matter says: plain words alone are taken."""
  front = re.match(r'---\s*\n(.*?)\n---', card, re.DOTALL)
  found = {}
  for line in front[1].splitlines() if front else ():
    key, _, value = line.partition(':')
    value = value.strip().strip('\'"')
    if key in _LICENCE and re.fullmatch(r'[\w.+:/-]+', value):
      found[key] = value
  return found if 'license' in found else {}
