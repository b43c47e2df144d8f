"""How health looks in runs that learn and in runs that collapse.

    python benchmarks/health_runs.py [--steps=300] [--workdir=runs/health]

Trains a network on the pictures of configs/tiny.py, and twice with changes that
make it collapse, prints the last signals of each and its alarms, and draws them
all in one picture, docs/health.png.
"""

import pathlib
import sys

import matplotlib
from absl import app, flags, logging

matplotlib.use('Agg')
from matplotlib import pyplot as plt

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # configs/

from configs import tiny
from ijepa_jax.methods import ijepa
from ijepa_jax.runtime import metrics
from ijepa_jax.train import health, pretrain

FLAGS = flags.FLAGS
flags.DEFINE_integer('steps', 300, 'Of each run.')
flags.DEFINE_string('workdir', 'runs/health', 'Folder of the runs.')
flags.DEFINE_string('picture', 'docs/health.png', 'To draw.')

# With tiny's own batch and MLP the third run falls and climbs out again.
HEALTHY = {
  'batch_size': 128,
  'model.mlp_dim': 256,
  'optim.start_lr': 6e-4,
  'optim.peak_lr': 6e-3,
  'optim.warmup_steps': 150,
  'ema.first': 0.97,
}
RUNS = {
  'healthy': {},
  # Patches vanish beside the position table: targets tell where, not what; at
  # the healthy run's learning rate it gets out of that in a hundred steps.
  'positional collapse': {
    'model.init': 'release',
    'optim.peak_lr': 3e-4,
    'optim.start_lr': 3e-5,
    'ema.first': 0.996,
  },
  # The target is the encoder itself and may follow it to a constant.
  'collapse': {
    'ema.first': 0.0,
    'ema.last': 0.0,
    'loss.normalize_targets': False,
    'optim.peak_lr': 1e-2,
  },
}
PANELS = (
  *('loss', 'health/rankme', 'health/feature_std'),
  *('health/token_cosine', 'health/image_cosine', 'health/gap_share'),
)


def main(_):
  found = {}
  for name, changes in RUNS.items():
    config = tiny.get_config()
    config.total_steps = FLAGS.steps
    config.health.every_steps = 20
    config.probe.every_steps = FLAGS.steps
    config.update_from_flattened_dict(HEALTHY | changes)
    workdir = pathlib.Path(FLAGS.workdir) / name.replace(' ', '_')
    pretrain.run(config, workdir)
    found[name] = metrics.read(workdir)
  figure, axes = plt.subplots(2, 3, figsize=(12, 5.6))
  for axis, panel in zip(axes.flat, PANELS, strict=True):
    for name, rows in found.items():
      points = [(r['step'], r[panel]) for r in rows if r.get(panel) is not None]
      axis.plot(*zip(*points, strict=True), label=name, linewidth=1)
    axis.set_title(panel.removeprefix('health/'), fontsize=10)
    axis.set_xlabel('step', fontsize=8)
    axis.grid(alpha=0.3)
  axes.flat[0].set_yscale('log')
  axes.flat[0].legend(fontsize=8)
  figure.tight_layout()
  figure.savefig(FLAGS.picture, dpi=100)
  columns = [p.removeprefix('health/') for p in PANELS]
  columns += ['probe/class', 'probe/hue']
  print(f'| after {FLAGS.steps} steps | {" | ".join(columns)} | alarms |')
  print('|---' * (len(columns) + 2) + '|')
  for name, rows in found.items():
    last = rows[-1]
    values = {k.removeprefix('health/'): v for k, v in last.items()}
    numbers = [f'{values[c]:.3g}' for c in columns]
    rung = ', '.join(health.alarms(values, ijepa.IJEPA)) or 'none'
    print(f'| {name} | {" | ".join(numbers)} | {rung} |')


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  app.run(main)
