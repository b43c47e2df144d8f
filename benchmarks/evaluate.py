"""One run judged in every cheap way, beside untrained and raw pixels.

    python benchmarks/evaluate.py --init_from=runs/cifar10 --task=cifar10 \
        [--path=data/cifar10 [--test=val]]

Prints a Markdown table of accuracies in %: the linear sweep on cached features
(best head on the test images), kNN (best k on them), and logistic regression on
1% of the labels, for raw pixels, the untrained encoder and the trained target
encoder.
"""

import importlib
import pathlib
import sys

from absl import app, flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # configs/

from ijepa_jax.runtime import cli

FLAGS = flags.FLAGS
flags.DEFINE_string('init_from', None, 'Workdir of the run.', required=True)
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


@cli.one_sentence()
def main(_):
  table = [['', *COLUMNS], ['---'] * (1 + len(COLUMNS))]
  for title, encoder in ROWS.items():
    cells = []
    for job, changes in COLUMNS.values():
      config = importlib.import_module(f'configs.evals.{job}').get_config()
      config.init_from, config.task = FLAGS.init_from, FLAGS.task
      config.data.path, config.data.workers = FLAGS.path, FLAGS.workers
      config.data.test, config.which = FLAGS.test, encoder
      config.update_from_flattened_dict(changes)
      module = importlib.import_module(f'ijepa_jax.evals.{job}')
      result = module.run(config, '')
      cells.append(f'{100 * result["accuracy"][job]:.1f}')
    table.append([title, *cells])
  print('\n'.join(f'| {" | ".join(row)} |' for row in table))


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  app.run(main)
