"""What `make train` learns, over several seeds.

    python benchmarks/tiny_seeds.py [--seeds=3] [--workdir=runs/seeds]
    python benchmarks/tiny_seeds.py --method=vicreg --steps=4000 \
        --workdir=runs/vicreg_seeds

Runs configs/tiny.py with seeds 0, 1, ..., and prints each run's table and their
mean: probes of held-out pictures, RankMe and seconds. A stopped command goes on
where it was.
"""

import json
import pathlib
import statistics
import sys

from absl import app, flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # configs/

from benchmarks.seeds import finished
from configs import tiny
from ijepa_jax.runtime import cli, preemption
from ijepa_jax.train import pretrain
from ijepa_jax.train.report import format_table


def make_config(method: str, seed: int, steps: int):
  """The recipe by a method; `steps` 0: as many as it has."""
  config = tiny.get_config()
  config.method, config.seed = method, seed
  if steps:
    config.total_steps = steps
    config.optim.warmup_steps = steps // 20
    config.probe.every_steps = config.checkpoint.every_steps = steps
  return config


def run(method: str, seeds: int, steps: int, workdir) -> str:
  """Trains what is not trained yet; returns the table of means, as text."""
  reports = []
  for seed in range(seeds):
    config, place = make_config(method, seed, steps), workdir / str(seed)
    if not finished(config, place):
      pretrain.run(config, place)
    reports.append(json.loads((place / 'report.json').read_text()))
  # Of the last start: a run that was stopped took longer.
  seconds = [report['seconds_since_last_start'] for report in reports]
  mean = {
    name: {
      k: statistics.mean(report[name][k] for report in reports) for k in row
    }
    for name, row in reports[0].items()
    if isinstance(row, dict)
  }
  for seed, report in enumerate(reports):
    (trained,) = (row for k, row in report.items() if k.endswith(', trained'))
    mean[f'trained, seed {seed}'] = trained
  return (
    f'Mean of {seeds} seeds, {statistics.mean(seconds):.0f} s each:\n\n'
    f'{format_table(mean)}'
  )


@cli.one_sentence()
def main(_):
  workdir = pathlib.Path(FLAGS.workdir)
  print(f'\n{run(FLAGS.method, FLAGS.seeds, FLAGS.steps, workdir)}')


if __name__ == '__main__':
  FLAGS = flags.FLAGS
  flags.DEFINE_integer('seeds', 3, 'Runs.')
  flags.DEFINE_integer('steps', 0, "Of each run; 0: the recipe's.")
  flags.DEFINE_string('method', 'ijepa', 'ijepa, pixels, mae or vicreg.')
  flags.DEFINE_string('workdir', 'runs/seeds', 'Folder of the runs.')
  logging.set_verbosity(logging.INFO)
  with preemption.job():
    app.run(main)
