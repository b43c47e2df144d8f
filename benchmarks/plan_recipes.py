"""All recipes planned for many chips: the table of docs/plan.md.

    python benchmarks/plan_recipes.py [--recipes=vit_l16,vit_h14] [--chips=v5e]

Each row is a process of `python -m ijepa_jax.plan --json`, which takes minutes;
what has been planned is kept in --cache, and the same command goes on from
there. Rows of another checkout or another JAX stay, are named at the end, and
are planned again with --again; so are those of changes that are not committed.
Rows for TPUs need the extra [plan-tpu], those for GPUs [plan-gpu]; a row that
could not be planned says why, and is tried again.
"""

import importlib
import importlib.metadata
import json
import pathlib
import subprocess
import sys

from absl import app, flags

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # configs/

from ijepa_jax.plan import chips

FLAGS = flags.FLAGS
# Recipe -> the number of chips that it is planned for.
RECIPES = {
  'vit_s16': 8,
  'vit_b16': 16,
  'mae_b16': 16,
  'vicreg_b16': 16,
  'vit_l16': 32,
  'vit_h14': 64,
  'vit_h16_448': 64,
  'vit_h14_in22k': 64,
  'vit_g16_in22k': 128,
}
SLICES = {
  2: {4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16'},
  3: {4: '2x2x1', 8: '2x2x2', 16: '2x2x4', 32: '2x4x4', 64: '4x4x4'}
  | {128: '4x4x8'},
}
COLUMNS = (
  *('recipe', 'chips', 'mesh, images a chip', 'state, GiB'),
  *('peak of memory, GiB', 'fits', 'sent, GiB', 'est. ms a step'),
  *('est. images/s', 'est. MFU', 'est. hours'),
)
HEADER = f'| {" | ".join(COLUMNS)} |\n{"|---" * len(COLUMNS)}|'


def topology_of(name: str, count: int) -> str:
  """A shape of `count` chips: of GPUs eight are on a host."""
  chip = chips.CHIPS[name]
  if chip.platform == 'gpu':
    return f'{name}:{max(count // 8, 1)}x{min(count, 8)}'
  return f'{name}:{SLICES[chip.axes][count]}'


def checkout() -> str:
  """The commit, `-dirty` with what is not committed or without Git; and JAX."""
  done = subprocess.run(
    ['git', 'describe', '--always', '--dirty', '--exclude=*'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  version = importlib.metadata.version('jax')
  return f'{done.stdout.strip() or "-dirty"}, jax {version}'


def planned(recipe: str, topology: str) -> dict:
  """What the planner prints; {'error': its last line} where it fails."""
  command = [sys.executable, '-m', 'ijepa_jax.plan', '--json']
  command += [f'--config=configs/{recipe}.py', f'--topology={topology}']
  done = subprocess.run(
    [*command, *FLAGS.arguments], cwd=ROOT, capture_output=True, text=True
  )
  if done.returncode:
    return {'error': (done.stderr.strip().splitlines() or ['no word'])[-1]}
  return json.loads(done.stdout.splitlines()[-1])


def total_steps(recipe: str) -> int:
  return importlib.import_module(f'configs.{recipe}').get_config().total_steps


def row(recipe: str, topology: str, plan: dict) -> str:
  """A line of the table."""
  start = f'| `{recipe}` | `{topology}` |'
  if 'error' in plan:
    return f'{start} {plan["error"].replace("|", " ")} |' + ' |' * 8

  def gib(count):
    return '?' if count is None else f'{count / 2**30:.2f}'

  seconds = plan['estimated_step_seconds']
  estimate = ['', '', '', '']
  if seconds:
    estimate = [
      f'{1e3 * seconds:.0f}',
      f'{plan["images_per_second"]:.0f}',
      f'{100 * plan["mfu"]:.0f}%',
      f'{seconds * total_steps(recipe) / 3600:.0f}',
    ]
  mesh = ' x '.join(map(str, plan['mesh'].values()))
  cells = [
    f'{mesh}, {plan["images_per_chip"]}',
    gib(plan['state_bytes_per_chip']),
    f'{gib(plan["peak_bytes_per_chip"])} of {gib(plan["memory_per_chip"])}',
    'yes' if plan['fits'] else '**no**',
    gib(sum(plan['collectives'].values())),
    *estimate,
  ]
  return f'{start} {" | ".join(cells)} |'


def main(_):
  cache = pathlib.Path(FLAGS.cache)
  cache.parent.mkdir(parents=True, exist_ok=True)
  plans = json.loads(cache.read_text()) if cache.exists() else {}
  current, lines, others = checkout(), [], []
  for recipe in FLAGS.recipes:
    for name in FLAGS.chips:
      topology = topology_of(name, FLAGS.count or RECIPES[recipe])
      key = ' '.join([recipe, topology, *FLAGS.arguments])
      kept = plans.get(key, {'error': ''})
      other = 'dirty' in current or kept.get('checkout') != current
      if 'error' in kept or (other and FLAGS.again):
        plans[key] = planned(recipe, topology) | {'checkout': current}
        temporary = cache.with_name(f'{cache.name}.tmp')
        temporary.write_text(json.dumps(plans, indent=1))
        temporary.rename(cache)
      elif other:
        others.append(f'{recipe} {topology}: {kept.get("checkout", "unknown")}')
      lines.append(row(recipe, topology, plans[key]))
      print(lines[-1], file=sys.stderr, flush=True)
  print('\n'.join([HEADER, *lines]))
  if others:
    print(
      f'Of another checkout than {current} (--again plans them again):',
      *others,
      sep='\n',
      file=sys.stderr,
    )


if __name__ == '__main__':
  flags.DEFINE_list('recipes', list(RECIPES), 'Of configs/.')
  flags.DEFINE_list(
    'chips',
    ['v4', 'v5e', 'v5p', 'v6e', 'a100', 'h100', 'h200'],
    'Of --topology.',
  )
  flags.DEFINE_integer('count', 0, "Chips; 0: the recipe's, see RECIPES.")
  flags.DEFINE_list('arguments', [], 'More flags of the planner.')
  flags.DEFINE_bool('again', False, 'Plan rows of another checkout again.')
  flags.DEFINE_string('cache', 'runs/plan_recipes.json', 'What is done.')
  app.run(main)
