"""The house: imports point down, rooms are small, and workers have no JAX."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'ijepa_jax'

# The floor on which each room stands; a room imports from lower floors only.
FLOORS = {
  'errors': 0,
  'runtime': 1,
  'models': 1,
  'methods': 2,
  'data': 3,
  'pretrained': 4,
  'probes': 4,
  'train': 5,
  'convert': 5,
  'evals': 6,
  'visualize': 6,
  'recipes': 6,  # for the commands
  'plan': 7,
  'start': 7,
  'watch': 7,
  '__main__': 8,
  'goodput': 2,  # a command
  # Each says where a command of old is now.
  'interop': 0,
  'pack': 0,
}

# They read and write config.json.
CONFIGS = 'config.py', 'orbax.py'


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: say where from in full'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def room(path):
  return path.relative_to(PACKAGE).with_suffix('').parts[0]


def files():
  return [p for p in PACKAGE.rglob('*.py') if room(p) != '__init__']


def test_imports_point_down():
  assert {room(p) for p in files()} == set(FLOORS)
  for path in files():
    for name in imports(path):
      assert not name.startswith('configs'), path
      if name.startswith('ijepa_jax.'):
        other = name.split('.')[1]
        assert other == room(path) or FLOORS[other] < FLOORS[room(path)], (
          f'{path.relative_to(PACKAGE)} imports {name}'
        )


def test_no_circles():
  """Of files: none imports another that needs it."""
  names = {
    '.'.join(p.relative_to(ROOT).with_suffix('').parts): p for p in files()
  }
  needs = {
    name: {
      other
      for wanted in imports(path)
      for other in (wanted, wanted.rpartition('.')[0])
      if other in names and other != name
    }
    for name, path in names.items()
  }
  while free := {n for n, others in needs.items() if not others & needs.keys()}:
    needs = {n: others for n, others in needs.items() if n not in free}
  assert not needs


def test_only_jobs_see_the_config():
  for path in files():
    if FLOORS[room(path)] < FLOORS['train'] and path.name not in CONFIGS:
      assert not any(n.startswith('ml_collections') for n in imports(path))


def test_every_room_says_what_it_is_for():
  for folder in {p.parent for p in files()} - {PACKAGE}:
    words = ast.get_docstring(ast.parse((folder / '__init__.py').read_text()))
    assert words and 'May import' in words, folder


def test_workers_have_no_jax():
  """What they unpickle needs none: Grain alone decides what it imports."""
  code = (
    'import sys\n'
    'from ijepa_jax.methods import masks\n'
    'from ijepa_jax.data import batch, sources\n'
    'from ijepa_jax.data.transforms import color_jitter, crop, views\n'
    'from ijepa_jax.data.transforms import randaugment\n'
    "sys.exit('jax' in sys.modules)"
  )
  assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


# Their arguments are the knobs of a user, one each.
MANY_ARGUMENTS = {'make_models', 'load_encoder'}


def test_rooms_are_small():
  """At most nine files a folder, 300 lines a file, 60 of code a function."""
  folders = {p.parent for p in files()}
  for folder in folders:
    rooms = [p for p in folder.glob('*.py') if not p.stem.startswith('__')]
    assert len(rooms) <= 9, folder
  for path in files():
    text = path.read_text()
    assert text.count('\n') <= 300, path
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.FunctionDef):
        where = f'{path.relative_to(PACKAGE)}: {node.name}'
        docstring = ast.get_docstring(node, clean=False) or ''
        lines = node.end_lineno - node.lineno + 1 - docstring.count('\n')
        assert lines <= 60, where
        a = node.args
        names = {x.arg for x in a.posonlyargs + a.args + a.kwonlyargs}
        many = len(names - {'self', 'cls'}) > 8
        assert not many or node.name in MANY_ARGUMENTS, where


def test_names_are_no_pronouns():
  """The names of a reader who must not look back to see what they stand for."""
  pronouns = {'there', 'found', 'theirs', 'ours', 'said', 'wanted', 'told'}
  pronouns |= {'whole', 'what', 'asked', 'made', 'look'}
  for path in files():
    for node in ast.walk(ast.parse(path.read_text())):
      names = {
        getattr(node, key, None) for key in ('id', 'arg', 'attr', 'name')
      }
      assert not names & pronouns, f'{path}: {names & pronouns}'
