"""Recipes by name, from anywhere: --config=tiny, for the commands.

A name is a file of configs/ without its ending, such as `evals/knn`. What ends
in .py is a file of the user's. After a colon follows the argument of its
get_config().
"""

import importlib.util
import pathlib
import sys
import textwrap

from absl import flags
from ml_collections import config_flags

from ijepa_jax.errors import UserError, one_of

FOLDER = pathlib.Path(__file__).with_name('configs')
# --help has the flags under the command that defines them here.
flags.disclaim_key_flags()

_OVERVIEW = """\
I-JEPA in JAX and Flax. A toy, trained on this machine in minutes; what it
learned; what it predicts:

  python -m ijepa_jax --config=tiny --workdir=runs/tiny
  python -m ijepa_jax --config=evals/knn --config.init_from=runs/tiny \\
      --config.task=folder --config.data.path=/my/images
  python -m ijepa_jax --config=visualize --config.init_from=runs/tiny

The same command goes on from where it was stopped. --config= takes a file that
ends in .py, or one of

{names}

and --config.optim.peak_lr=5e-4 changes a knob; all of them, with their units,
are in {base}.
In Python, ijepa_jax.load_encoder('runs/tiny').features(['a.jpg', 'b.jpg']).

  python -m ijepa_jax.convert     hands a model on: Hugging Face, Orbax, release
  python -m ijepa_jax.data.pack   packs images into a few large files
  python -m ijepa_jax.goodput     says where the time of a run went
  python -m ijepa_jax.plan        says what a run takes on chips not here
  python -m ijepa_jax.start       looks at a folder of images, and trains on it
  python -m ijepa_jax.watch       shows runs while they train, on a page"""


def names() -> list[str]:
  """Returns the names of all recipes, sorted."""
  return sorted(
    path.relative_to(FOLDER).with_suffix('').as_posix()
    for path in FOLDER.rglob('*.py')
    if path.stem not in ('__init__', 'common')
  )


def find(value: str) -> str:
  """Returns `value` with a recipe's file in place of its name.

  Raises:
    UserError: there is no such recipe, or no such file.
  """
  name, colon, argument = value.partition(':')
  if not name.endswith('.py'):
    path = FOLDER / f'{one_of("The recipe", name, names())}.py'
  elif not (path := pathlib.Path(name)).is_file():
    stem = f'/{path.with_suffix("").as_posix()}'
    same = [n for n in names() if stem.endswith(f'/{n}')]
    raise UserError(
      f'There is no file {name} here.'
      + ''.join(f' The recipe of that name is --config={n}.' for n in same)
    )
  return f'{path}{colon}{argument}'


def load(name: str):
  """Returns the config of a recipe, by its name."""
  _offer_configs()
  module = f'ijepa_jax.configs.{name.replace("/", ".")}'
  return importlib.import_module(module).get_config()


def define_flag(flag: str, words: str) -> None:
  """Defines a flag that takes a recipe, with the words that --help has."""
  config_flags.DEFINE_config_file(flag, None, words, lock_config=True)
  parser = flags.FLAGS[flag].parser
  parse_file = parser.parse

  def parse(value):
    named = not value.partition(':')[0].endswith('.py')
    if named or importlib.util.find_spec('configs') is None:
      _offer_configs()
    return parse_file(find(value))

  parser.parse = parse


def _offer_configs() -> None:
  """Lets recipes import `configs`, as the repository has it at its top."""
  sys.modules['configs'] = importlib.import_module('ijepa_jax.configs')


def overview() -> str:
  """Returns what there is, in a few lines."""
  listed = textwrap.fill(
    ', '.join(names()), 80, initial_indent='  ', subsequent_indent='  '
  )
  return _OVERVIEW.format(names=listed, base=FOLDER / 'base.py')
