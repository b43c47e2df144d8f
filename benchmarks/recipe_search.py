"""What makes I-JEPA better at the size of a small recipe: trials at equal cost.

    python benchmarks/recipe_search.py --recipe=cifar10 --path=data/cifar10
    python benchmarks/recipe_search.py --recipe=tiny --budget=120

Each of TRIALS changes START, the recipe before there was a search, and trains
for --budget seconds by the cost of its step, which is measured beside that of
START (method_costs.py). It is judged by the online probe: linear and kNN on the
average pool of the last layer, of training images held out of the training of
the probe, so that no test image chooses a recipe.

Writes <workdir>/<recipe>-<budget>/trials.md after each trial. A stopped command
goes on where it was; --only=a,b makes these trials alone.
"""

import importlib
import json
import pathlib
import sys

import jax
from absl import app, flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # configs/

from benchmarks import judges, method_costs
from ijepa_jax.errors import one_of
from ijepa_jax.runtime import cli, files, preemption
from ijepa_jax.train import loop, pretrain

LABELS = {'tiny': 'class', 'cifar10': 'label'}  # recipe -> what is probed
SHARED = {
  'batch_size': 128,
  'model.width': 64,
  'model.mlp_dim': 256,
  'model.predictor_width': 32,
  'model.predictor_depth': 1,
  'ema.first': 0.97,
  'loss.variance': 0.0,
  'loss.covariance': 0.0,
}
START = {
  'tiny': SHARED | {'mask.target_scale': (0.45, 0.45), 'optim.peak_lr': 6e-3},
  'cifar10': SHARED
  | {'mask.target_scale': (0.25, 0.25), 'optim.peak_lr': 4e-3},
}
MLP = {'model.mlp_dim': 64}
BATCH_64, BATCH_32 = ({**MLP, 'batch_size': n} for n in (64, 32))
SLOW_32 = BATCH_32 | {'optim.peak_lr': 0.4}
MOMENTUM = SLOW_32 | {'ema.first': 0.99}
# Of the encoder's output, pooled: kNN is by the angle between such features.
TERMS = {'loss.variance': 0.1, 'loss.covariance': 0.01}
LARGE = {'mask.target_scale': (0.6, 0.6)}
WIDE = {'model.width': 128, 'model.mlp_dim': 128, 'optim.peak_lr': 0.3}
PREDICTOR = {'model.predictor_width': 64, 'model.predictor_depth': 2}
CROPS = {'data.crop_scale': (0.35, 1.0)}
# One thing at a time, then on from what helped; of `optim.peak_lr` a factor.
TRIALS = {
  'start': {},
  'target_layers 3': {'loss.target_layers': 3},
  'momentum .99': {'ema.first': 0.99},
  'position noise .25': {'loss.position_noise': 0.25},
  'variance and covariance': TERMS,
  'final weight decay .04': {'optim.final_weight_decay': 0.04},
  'twice the learning rate': {'optim.peak_lr': 2.0},
  'two targets': {'mask.num_targets': 2},
  'large targets': LARGE,
  'predictor 64 wide': {'model.predictor_width': 64},
  'predictor 2 deep': {'model.predictor_depth': 2},
  'small MLP': MLP,
  'small MLP, batch 64': BATCH_64,
  'small MLP, batch 32': BATCH_32,
  'and .4 of the learning rate': SLOW_32,
  'and momentum .99': MOMENTUM,
  'and large targets': MOMENTUM | LARGE,
  'and variance and covariance': MOMENTUM | LARGE | TERMS,
  'and 128 wide': MOMENTUM | LARGE | TERMS | WIDE,
  'and a larger predictor': MOMENTUM | LARGE | TERMS | WIDE | PREDICTOR,
  'and crops of .35 to 1': MOMENTUM | LARGE | TERMS | WIDE | CROPS,
}


def make_config(recipe: str, changes: dict, steps: int, path: str):
  """START of the recipe with these changes, of so many steps."""
  c = importlib.import_module(f'configs.{recipe}').get_config()
  if recipe == 'cifar10':
    c.data.path, c.probe.split, c.health.split = path, '', ''
  c.update_from_flattened_dict(START[recipe] | changes)
  c.optim.peak_lr = START[recipe]['optim.peak_lr'] * changes.get(
    'optim.peak_lr', 1.0
  )
  c.total_steps = steps
  c.optim.start_lr = c.optim.peak_lr / 10
  c.optim.warmup_steps = max(1, steps // 20)
  c.checkpoint.every_steps = max(1, steps // 4)
  c.checkpoint.keep_last = 1
  c.probe.every_steps, c.health.every_steps = steps, 0
  c.log.tensorboard = False
  return c


def costs(recipe: str, changes: dict, path: str) -> dict[str, float]:
  """Seconds of a step of START and of the trial, side by side."""
  configs = {'start': {}, 'trial': changes}
  configs = {k: make_config(recipe, v, 1000, path) for k, v in configs.items()}
  seconds = method_costs.seconds(configs, turns=5)
  jax.clear_caches()
  return seconds


def train_and_probe(config, workdir, label: str) -> dict[str, float]:
  """What the probe measured, in %; nothing of a run that broke."""
  try:
    pretrain.run(config, workdir)
  except loop.NotFinite as error:
    logging.error('%s: %s', workdir, error)
    return {}
  finally:
    jax.clear_caches()
  report = json.loads((workdir / 'report.json').read_text())
  trained = report['target encoder, trained']
  result = {k: 100 * trained[f'{k}/{label}'] for k in ('probe', 'knn')}
  return result | {'rankme': trained['rankme']}


def format_row(name: str, cost: float, steps: int, result: dict) -> str:
  cells = [name, f'{cost:.2f}', str(steps)]
  cells += (
    f'{result[k]:.1f}' if result else '-' for k in ('probe', 'knn', 'rankme')
  )
  return f'| {" | ".join(cells)} |'


def run(recipe: str, names, budget: float, path: str, workdir) -> str:
  """Makes the trials that are not made yet; returns their table as text."""
  folder = pathlib.Path(workdir) / f'{recipe}-{budget:g}'
  label = LABELS[recipe]
  lines = [f'| trial | cost of a step | steps | {label} | kNN | RankMe |']
  lines.append('|---' * 6 + '|')
  for name in names or TRIALS:
    changes = TRIALS[one_of('The trial', name, TRIALS)]
    # Of another config, or of other images, it is another trial.
    config = make_config(recipe, changes, 1000, path)
    digest = files.name_of(config=config.to_json_best_effort())
    place = folder / f'{name.replace(" ", "-")}-{digest[:8]}'
    # Kept, so that a trial that was stopped goes on with as many steps.
    seconds = judges.remember(
      *(place / 'result.json', 'seconds', costs, recipe, changes, path)
    )
    steps = round(budget / seconds['trial'])
    config = make_config(recipe, changes, steps, path)
    result = judges.remember(
      *(place / 'result.json', 'result', train_and_probe, config, place, label)
    )
    cost = seconds['trial'] / seconds['start']
    lines.append(format_row(name, cost, steps, result))
    table = '\n'.join(lines)
    files.atomic_write_text(files.resolve(folder / 'trials.md'), table + '\n')
  return table


@cli.one_sentence()
def main(_):
  recipe = one_of('recipe', FLAGS.recipe, LABELS)
  arguments = FLAGS.only, FLAGS.budget, FLAGS.path, FLAGS.workdir
  print(f'\n{run(recipe, *arguments)}')


if __name__ == '__main__':
  FLAGS = flags.FLAGS
  flags.DEFINE_string('recipe', 'cifar10', 'tiny (scenes) or cifar10.')
  flags.DEFINE_string('path', 'data/cifar10', 'Of the images of cifar10.')
  flags.DEFINE_float('budget', 120, 'Seconds of each trial.')
  flags.DEFINE_list('only', [], 'Of TRIALS; empty: all.')
  flags.DEFINE_string('workdir', 'runs/recipe_search', 'Folder of the runs.')
  logging.set_verbosity(logging.INFO)
  with preemption.job():
    app.run(main)
