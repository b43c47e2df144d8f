"""The paper's ablations at a size for two cores, beside its numbers.

    python benchmarks/ablations.py [--recipe=tiny] [--seeds=3] [--steps=1600]
    python benchmarks/ablations.py --recipe=cifar10 --path=data/cifar10

Trains every row of configs/ablations with seeds 0, 1, ... on the recipe's
images, with the paper's blocks as shares of the smaller grid, and prints each
table: the paper's 1% linear, the online probes here (linear and kNN on the
average pool, learned from 5000 images), and Spearman's rank correlation of the
first two.

A stopped command goes on where it was, and a finished run is not made again;
the tables are written after each seed, to <workdir>/<recipe>-<steps>/tables.md.
"""

import importlib
import json
import pathlib
import statistics
import sys

import jax
from absl import app, flags, logging
from scipy import stats

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # configs/

from benchmarks.seeds import finished, mean_and_spread
from ijepa_jax.runtime import cli, preemption
from ijepa_jax.train import loop, pretrain

TABLES = (
  *('masks', 'num_targets', 'target_scale', 'context_scale'),
  *('targets', 'target_masking', 'predictor_depth'),
)
LABELS = {'tiny': 'class', 'cifar10': 'label'}  # recipe -> what is probed
# The paper's blocks, on any grid: where the 10 patches that a context of 196
# must keep are too many, and the release's last offset too large a share.
SMALL = {
  'mask.sampler': 'uniform',
  'mask.num_targets': 4,
  'mask.target_scale': (0.15, 0.2),
  'mask.target_aspect': (0.75, 1.5),
  'mask.context_scale': (0.85, 1.0),
  'mask.min_keep': 2,
}
# Of the encoder's depth the paper's are a quarter and a half: as cifar10's, and
# a third and two thirds of tiny's.
SMALL_ROWS = {
  ('predictor_depth', '6'): {'model.predictor_depth': 1},
  ('predictor_depth', '12'): {'model.predictor_depth': 2},
  ('target_masking', 'output'): {},
  ('target_masking', 'input'): {'loss.mask_input': True},
}


def make_config(recipe: str, changes: dict, steps: int, path: str):
  """The recipe with the paper's blocks, and the changes of a row."""
  c = importlib.import_module(f'configs.{recipe}').get_config()
  if recipe == 'cifar10':
    c.data.path, c.health.split = path, ''
  c.update_from_flattened_dict(SMALL | changes)
  c.total_steps = steps
  c.optim.warmup_steps = steps // 20
  c.checkpoint.every_steps = max(1, steps // 4)
  c.checkpoint.keep_last = 1
  c.probe.every_steps, c.health.every_steps = steps, 0
  c.log.tensorboard = False
  return c


def plan(recipe: str, steps: int, path: str) -> dict[str, dict]:
  """Every table: {table: {row: (published, name of its run, config)}}.

  Rows of several tables that are the same training are one run, which has the
  name of the first of them.
  """
  tables, names = {}, {}
  for table in TABLES:
    rows = importlib.import_module(f'configs.ablations.{table}').ROWS
    tables[table] = {}
    for row, (published, changes) in rows.items():
      changes = SMALL_ROWS.get((table, row), changes)
      config = make_config(recipe, changes, steps, path)
      text = config.to_json_best_effort(sort_keys=True)
      name = names.setdefault(text, f'{table}-{row}')
      tables[table][row] = published, name, config
  return tables


def accuracies(workdir: pathlib.Path, label: str) -> tuple[float, float]:
  """Of a finished run, by a linear probe and by kNN, in %."""
  report = json.loads((workdir / 'report.json').read_text())
  (trained,) = (v for k, v in report.items() if k.endswith(', trained'))
  return 100 * trained[f'probe/{label}'], 100 * trained[f'knn/{label}']


def train(workdir: pathlib.Path, config) -> None:
  """Trains, going on from what is there; a run that breaks is told."""
  try:
    pretrain.run(config, workdir)
  except loop.NotFinite as error:
    logging.error('%s: %s', workdir, error)
  jax.clear_caches()  # of the steps of this run


def format_table(title: str, rows: dict) -> str:
  """A table in Markdown, and whether it has the paper's order.

  Args:
    rows: row -> (published, `accuracies` of the seeds so far); the order is
      that of the linear probe, as the paper's.
  """
  lines = [
    f'| {title} | paper, 1% linear | linear | kNN | seeds |',
    '|---|---|---|---|---|',
  ]
  for row, (published, scores) in rows.items():
    cells = [mean_and_spread([s[kind] for s in scores]) for kind in (0, 1)]
    lines.append(
      f'| {row} | {published} | {" | ".join(cells)} | {len(scores)} |'
    )
  finished = [(p, [s[0] for s in x]) for p, x in rows.values() if x]
  if len(finished) > 1:
    published, scores = zip(*finished, strict=True)
    words = f'{_rank(published, map(statistics.mean, scores)):.2f}'
    seeds = min(map(len, scores))
    if seeds > 1:
      each = [_rank(published, (s[k] for s in scores)) for k in range(seeds)]
      words += f'; of single seeds {min(each):.2f} to {max(each):.2f}'
    lines += ['', f'Rank correlation of the means with the paper: {words}.']
  return '\n'.join(lines)


def _rank(published, scores) -> float:
  return stats.spearmanr(list(published), list(scores)).statistic


def run(recipe, tables, steps: int, seeds: int, path: str, workdir) -> str:
  """Trains what is not trained yet, and returns all tables as text."""
  folder = pathlib.Path(workdir) / f'{recipe}-{steps}'
  chosen = plan(recipe, steps, path)
  chosen = {name: chosen[name] for name in tables or TABLES}
  rows = [x for rows in chosen.values() for x in rows.values()]
  runs = {name: config for _, name, config in rows}
  scores = {name: [] for name in runs}
  for seed in range(seeds):
    for name, config in runs.items():
      place = folder / name / str(seed)
      config = config.copy_and_resolve_references()
      config.seed = seed
      if not finished(config, place):
        train(place, config)
      if finished(config, place):
        scores[name].append(accuracies(place, LABELS[recipe]))
    text = '\n\n'.join(
      format_table(table, {k: (p, scores[n]) for k, (p, n, _) in rows.items()})
      for table, rows in chosen.items()
    )
    (folder / 'tables.md').write_text(text + '\n')
  return text


@cli.one_sentence()
def main(_):
  arguments = FLAGS.recipe, FLAGS.tables, FLAGS.steps, FLAGS.seeds, FLAGS.path
  print(f'\n{run(*arguments, FLAGS.workdir)}')


if __name__ == '__main__':
  FLAGS = flags.FLAGS
  flags.DEFINE_string('recipe', 'tiny', 'tiny (scenes) or cifar10.')
  flags.DEFINE_string('path', 'data/cifar10', 'Of the images of cifar10.')
  flags.DEFINE_integer('steps', 1600, 'Of each run.')
  flags.DEFINE_integer('seeds', 3, 'Of each row.')
  flags.DEFINE_list('tables', [], 'Of configs/ablations; empty: all.')
  flags.DEFINE_string('workdir', 'runs/ablations', 'Folder of the runs.')
  logging.set_verbosity(logging.INFO)
  with preemption.job():
    app.run(main)
