"""The origin and the licence of weights, for model cards.

What the source's own card says is carried over.
"""

import pathlib
import re
from collections.abc import Mapping

import yaml
from etils import epath

from ijepa_jax.errors import UserError
from ijepa_jax.pretrained import shipped
from ijepa_jax.runtime.config import read_config

HEADING = '## Origin and licence'
_CHARACTERS = 100_000  # of a card that are read
_LICENCE = 'license', 'license_name', 'license_link'
_OF_THE_SOURCE = {'license': 'other', 'license_name': 'as-the-source'}
_RELEASED = (
  'Weights released with the paper are CC BY-NC 4.0, not for commercial use, '
  'and what is made from them stays so: see to it that you may use these.'
)


def card_path(path) -> pathlib.Path:
  """Returns the path of the card of a folder, or of a file or file to be."""
  path = pathlib.Path(path)
  return (
    path / 'README.md' if path.is_dir() else path.with_name(path.name + '.md')
  )


def public_name(path) -> str:
  """Returns the last part of a path: a public card shows no local folders."""
  name = epath.Path(path).name or epath.Path(path).resolve().name
  return re.sub(r'[^\w.,:@+ -]', '_', name)


def provenance(
  source, config: Mapping, chosen: str | None = None, seen=()
) -> tuple[dict, str]:
  """Returns the front matter's licence, and the origin in words.

  Args:
    source: path of the weights.
    config: of the run that it is, or `orbax.plain_config`, or {}.
    chosen: the licence of a model of one's own, such as 'apache-2.0'.
    seen: runs on the way here, should one have begun from itself.

  Raises:
    UserError: a licence is chosen for what was made from others' weights.
  """
  source = shipped.locate(source)
  card = _read_card(source)
  name, licence = f'`{public_name(source)}`', _licence(card)
  own = 'total_steps' in config and not config.get('init_from')
  if chosen and (licence or HEADING in card or not own):
    raise UserError(
      f'license is {chosen}: {source} is not of your own training alone, and '
      'its licence is carried over. Leave --license away.'
    )
  if HEADING in card:
    # Of a card from here: its story is this one's.
    origin = card.split(HEADING)[1].split('\n## ')[0].strip()
    return licence, f'{origin}\n\nConverted from {name}.'
  if licence:
    return licence, (
      f'Made from {name}, whose card says: licence {licence["license"]}. That '
      f'is carried over. {_RELEASED}'
    )
  if 'total_steps' not in config:
    source = config.get('converted_from', public_name(source))
    return _OF_THE_SOURCE, f'Converted from `{source}`. {_RELEASED}'
  if first := config.get('init_from'):
    licence, origin = {}, _RELEASED
    if first not in seen and shipped.locate(first).exists():
      first_config = read_config(shipped.locate(first))
      licence, origin = provenance(first, first_config, seen=(*seen, first))
    return licence or _OF_THE_SOURCE, (
      f'Trained with ijepa_jax, beginning with the weights of '
      f'`{public_name(first)}`.\n\nOf those: {origin}'
    )
  if chosen:
    return {'license': chosen}, (
      f'Trained from scratch with ijepa_jax. Its trainer chose the licence '
      f'{chosen}.'
    )
  return {'license': 'other', 'license_name': 'not-chosen-yet'}, (
    'Trained from scratch with ijepa_jax, which is Apache-2.0: the licence of '
    "the weights is the trainer's to choose."
  )


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
  """Returns the licence in a card's front matter, or {}: plain words alone."""
  front = re.match(r'---\s*\n(.*?)\n---', card, re.DOTALL)
  try:
    # Of strings, lists and tables alone: nothing else is made of it.
    table = yaml.load(front[1], yaml.BaseLoader) if front else {}
  except (yaml.YAMLError, RecursionError):
    return {}
  if not isinstance(table, dict):
    return {}
  licence = {
    key: table[key]
    for key in _LICENCE
    if isinstance(table.get(key), str)
    and re.fullmatch(r'[\w.+:/-]+', table[key])
  }
  return licence if 'license' in licence else {}
