"""Imports only point down the house, and nothing imports the configs."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1] / 'ijepa_jax'

# The floor on which each room stands; a room imports from lower floors only.
FLOORS = {
  'errors': -1,
  'vit': 0,
  'masks': 0,
  'schedules': 0,
  'sharding': 0,
  'metrics': 0,
  'checkpoint': 1,
  'augment': 2,
  'colour': 0,
  'bare': 0,
  'decode': 1,
  'cache': 1,
  'cli': 0,
  'locks': 1,
  'paths': 0,
  'interruption': 0,
  'jax_flags': 0,
  'limits': 0,
  'void': 0,
  'parallel': 0,
  'randaugment': 0,
  'raycast': 0,
  'rows': 2,
  'scenes': 1,
  'gallery': 2,
  'sources': 3,
  'ijepa': 3,
  'optim': 3,
  'data': 4,
  'distributed': 0,
  'shards': 4,
  'pack': 5,
  'recipe': 5,
  'evals': 7,
  'interop': 6,
  'visualize': 6,
  'train': 8,
}


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: say where from in full'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def room(path):
  return path.relative_to(ROOT).with_suffix('').parts[0]


def test_imports_point_down():
  files = [p for p in ROOT.rglob('*.py') if room(p) != '__init__']
  assert {room(p) for p in files} == set(FLOORS)
  for path in files:
    for name in imports(path):
      assert not name.startswith('configs'), path
      if name.startswith('ijepa_jax.'):
        other = name.split('.')[1]
        assert other == room(path) or FLOORS[other] < FLOORS[room(path)], (
          f'{path.name} imports {name}'
        )


def test_only_jobs_see_the_config():
  for path in ROOT.rglob('*.py'):
    if FLOORS.get(room(path), 0) < FLOORS['recipe']:
      assert not any(n.startswith('ml_collections') for n in imports(path))
