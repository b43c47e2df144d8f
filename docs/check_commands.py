"""Checks the commands, paths, knobs and Python of a page.

Of a command: its module or script, its flags, its recipe with all knobs and
their types, its extras, its targets of make. Of Python: that it is Python, and
that what it imports from here exists.
"""

import ast
import functools
import importlib.util
import pathlib
import re
import shlex
import sys
from unittest import mock

from absl import flags
from ml_collections import config_flags

import ijepa_jax
from ijepa_jax import recipes
from ijepa_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
JOB = ROOT / 'ijepa_jax/__main__.py'
OURS = 'python', 'python3', 'make', 'pip'
# Programs of others, which are taken as they are.
PROGRAMS = {
  *('.', 'apt-get', 'cd', 'curl', 'do', 'docker', 'done', 'dpkg', 'for'),
  *('gcloud', 'git'),
  *('kubectl', 'mkdir', 'mpirun', 'rm', 'sbatch', 'srun', 'tar', 'tfds'),
  'torchrun',
}
FOLDERS = (
  *('benchmarks', 'configs', 'docs', 'ijepa_jax', 'launch', 'notebooks'),
  'tests',
)
_SCRIPT = re.compile(r'main\.py|(launch|benchmarks|docs)/.*\.\w+')
_KNOB_FLAG = re.compile(r'--(config|encoder)\.')


# ---- Recipes and their knobs ----


def parse_config(recipe: str, *overrides: str):
  """Returns a recipe after flags such as --config.optim.peak_lr=1, as jobs do.

  Raises:
    UserError, flags.Error, AttributeError, KeyError: something is wrong.
  """
  values = flags.FlagValues()
  argv = ['main.py', f'--config={recipes.find(recipe)}', *overrides]
  with mock.patch.object(sys, 'argv', argv):  # ml_collections reads it
    config_flags.DEFINE_config_file('config', flag_values=values)
    values(argv)
  return values.config


@functools.cache
def knobs() -> frozenset[str]:
  """Returns all knobs and sections of all recipes: 'data', 'data.path'."""

  def names(config, prefix=''):
    for key, value in config.items():
      yield prefix + key
      if hasattr(value, 'items'):
        yield from names(value, f'{prefix}{key}.')

  configs = [parse_config(recipe) for recipe in recipes.names()]
  return frozenset(name for config in configs for name in names(config))


def check_knobs(words: list[str]):
  """Checks names such as data.path or --config.data.path=x, of any recipe."""
  for word in words:
    name = _KNOB_FLAG.sub('', word).partition('=')[0]
    if name not in knobs():
      yield f'{name} is no knob'


# ---- Commands ----


@functools.cache
def flags_of(path: pathlib.Path) -> set[str]:
  """Returns the flags that a file defines, by absl or by argparse."""
  defined = {'help', 'helpshort', 'helpfull'}
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Call) and node.args:
      name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
      first = getattr(node.args[0], 'value', None)
      if re.match('DEFINE|define_flag|add', name) and isinstance(first, str):
        defined.add(first.lstrip('-'))
  return defined


def check_flags(path: pathlib.Path, words: list[str]):
  """Checks the flags after a script or module, and its recipe."""
  given = [w for w in words if w.startswith('--')]
  overrides = [w for w in given if _KNOB_FLAG.match(w)]
  for word in given:
    name = word.lstrip('-').partition('=')[0]
    if word not in overrides and name not in flags_of(path):
      yield f'{path.relative_to(ROOT)} has no flag --{name}'
  named = [w.partition('=')[2] for w in given if w.startswith('--config=')]
  recipe = re.sub(r'^configs/|\.py(?=:|$)', '', (named or ['...'])[0])
  if recipe in ('...', 'my'):
    yield from check_knobs(overrides)
    return
  try:
    parse_config(recipe, *overrides)
  except (flags.Error, UserError, AttributeError, KeyError) as error:
    yield f'{" ".join(given)}: {error}'


def module_path(name: str) -> pathlib.Path | None:
  """Returns the file that `python -m name` runs; None: there is none."""
  try:
    spec = importlib.util.find_spec(name)
  except ModuleNotFoundError:
    return None
  path = pathlib.Path(spec.origin) if spec and spec.origin else None
  main = path.with_name('__main__.py') if path else None
  return main if path and path.stem == '__init__' and main.exists() else path


@functools.cache
def extras() -> set[str]:
  """Returns the names of the extras that setup.py has."""
  for node in ast.walk(ast.parse((ROOT / 'setup.py').read_text())):
    if isinstance(node, ast.keyword) and node.arg == 'extras_require':
      return set(ast.literal_eval(node.value))
  return set()


def check_command(words: list[str]):
  """Checks one command without shell operators."""
  while words and re.match(r'\w+=', words[0]):
    words = words[1:]
  words = [w for w in words if not w.startswith(('[', '...'))]
  if not words:
    return
  head = words[0]
  at = next((i for i, w in enumerate(words) if _SCRIPT.fullmatch(w)), None)
  if at is not None:
    path = ROOT / words[at]
    if not path.exists():
      yield f'{words[at]} is not there'
    elif head != 'docker' and head != 'kubectl':
      job = words[at] == 'main.py' or path.suffix != '.py'
      yield from check_flags(JOB if job else path, words[at + 1 :])
  elif '-m' in words and 'python' in head:
    _, name, *after = words[words.index('-m') :]
    if name.split('.')[0] != 'ijepa_jax':  # venv, pytest, ...
      return
    if path := module_path(name):
      yield from check_flags(path, after)
    else:
      yield f'the module {name} is not there'
  elif head == 'make':
    targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.M)
    for word in words[1:]:
      if '=' not in word and word not in targets:
        yield f'make has no target {word}'
  elif head == 'pip':
    for names in re.findall(r'(?:ijepa_jax|\.)\[(.*?)\]', ' '.join(words)):
      for name in set(names.split(',')) - extras():
        yield f'setup.py has no extra {name}'
  elif head not in PROGRAMS and head not in OURS and not head.startswith('~'):
    yield f'{head} is no program that is known here'


def check_shell(text: str):
  """Checks lines of a shell; some are joined by backslashes or quotes."""
  text = re.sub(r'(?m)(^|\s)#.*$', '', text.replace('\\\n', ' '))
  lexer = shlex.shlex(text, posix=True, punctuation_chars=';&|()<>\n')
  lexer.whitespace, lexer.commenters = ' \t', ''
  lexer.whitespace_split = True
  command = []
  for word in [*lexer, ';']:
    if not re.fullmatch(r'[;&|()<>\n]+', word):
      command.append(word)
      continue
    yield from check_command(command)
    command = []


def is_shell(language: str, text: str) -> bool:
  """Whether a block has commands; without a language its first word tells."""
  if language:
    return language in ('sh', 'bash')
  first, *_ = re.sub(r'^(\w+=\S*\s+)*', '', text.strip()).split() or ['']
  return first in PROGRAMS or first in OURS or first.startswith('launch/')


# ---- Python, and code in a text ----


def check_python(text: str):
  """Checks that a block is Python, and that what it takes of here exists."""
  try:
    tree = ast.parse(text)
  except SyntaxError as error:
    yield f'no Python: {error}'
    return
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module.startswith('ijepa_jax'):
      source = pathlib.Path(importlib.util.find_spec(node.module).origin)
      for alias in node.names:
        inside = rf'^(def|class) {alias.name}\b|^{alias.name} ='
        if not re.search(inside, source.read_text(), re.M) and not module_path(
          f'{node.module}.{alias.name}'
        ):
          yield f'{node.module}.{alias.name} is not there'
  for name in re.findall(r'\bijepa_jax\.(\w+)\(', text):
    if name not in dir(ijepa_jax):
      yield f'ijepa_jax.{name} is not there'


def check_code(page: pathlib.Path, code: str):
  """Checks what stands between backticks in a text."""
  head, *rest = code.split()
  path = re.fullmatch(r'([\w.-]+/[\w./-]*)(:\w+)?', code)
  of_ours = path and path[1].split('/')[0] in FOLDERS
  if '...' in head:
    return
  if (head in OURS and rest) or re.fullmatch(r'launch/.*\.sh', head):
    yield from check_shell(code)
  elif _KNOB_FLAG.match(head):
    yield from check_knobs([head])
  elif of_ours or (path and path[1].endswith(('.py', '.ipynb'))):
    bases = ROOT, ROOT / 'ijepa_jax', page.parent
    if not any((base / path[1]).exists() for base in bases):
      yield f'{path[1]} is not there'
  elif re.fullmatch(r'[a-z]+\.[a-z_.]+(=\S*)?', code):
    ending = re.search(r'\.(html|json|md|pdf|png|py|safetensors)$', code)
    section = code.partition('.')[0]
    if any(k.startswith(f'{section}.') for k in knobs()) and not ending:
      yield from check_knobs([code])
