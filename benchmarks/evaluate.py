"""Runs judged in every cheap way, beside untrained encoders and raw pixels.

    python benchmarks/evaluate.py --init_from=runs/cifar10 --task=cifar10 \
        [--path=data/cifar10 [--test=val]]

Prints a Markdown table of accuracies in %: the linear sweep on cached features
(best head on the test images), kNN (best k on them), and logistic regression on
1% of the labels, for raw pixels, the untrained encoder and the trained target
encoder. Of several runs, --init_from=runs/0,runs/1, it has the mean and the
standard deviation.
"""

import importlib
import pathlib
import sys

from absl import app, flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # configs/

from benchmarks.seeds import mean_and_spread
from ijepa_jax.runtime import cli

FLAGS = flags.FLAGS
flags.DEFINE_list('init_from', None, 'Workdirs of the runs.', required=True)
flags.DEFINE_string('task', None, 'See evals/tasks.py.', required=True)
flags.DEFINE_string('path', '', 'Folder of images, if not TFDS.')
flags.DEFINE_string('test', '', 'Its test split, if not the usual one.')
flags.DEFINE_integer('workers', 2, 'Of the input pipeline.')

ROWS = {
  'raw pixels': 'pixels',
  'untrained': 'untrained',
  '**trained**': 'target',
}
# Column -> job and what is changed in its config.
COLUMNS = {
  'linear': (
    'linear',
    {'linear.augment': False, 'linear.lrs': (0.3, 0.1, 0.03, 0.01)},
  ),
  'kNN': ('knn', {}),
  '1% of the labels': (
    'logistic',
    {'logistic.share': 0.01, 'logistic.layers': 'last4'},
  ),
}


def accuracy(run: str, job: str, changes: dict, encoder: str) -> float:
  """In %, of an encoder of the run."""
  config = importlib.import_module(f'configs.evals.{job}').get_config()
  config.init_from, config.task, config.which = run, FLAGS.task, encoder
  config.data.path, config.data.workers = FLAGS.path, FLAGS.workers
  config.data.test = FLAGS.test
  config.update_from_flattened_dict(changes)
  result = importlib.import_module(f'ijepa_jax.evals.{job}').run(config, '')
  return 100 * result['accuracy'][job]


@cli.one_sentence()
def main(_):
  table = [['', *COLUMNS], ['---'] * (1 + len(COLUMNS))]
  for title, encoder in ROWS.items():
    # The pixels are the same in all runs.
    runs = FLAGS.init_from[:1] if encoder == 'pixels' else FLAGS.init_from
    cells = [
      mean_and_spread([accuracy(run, *column, encoder) for run in runs])
      for column in COLUMNS.values()
    ]
    table.append([title, *cells])
  print('\n'.join(f'| {" | ".join(row)} |' for row in table))


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  app.run(main)
