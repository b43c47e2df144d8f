"""The one entry point.

    python main.py --config=configs/vit_l16.py --workdir=runs/l16

The same line on a laptop, a GPU machine, SLURM and a TPU pod; see launch/.
"""

import importlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from ijepa_jax import cli, interruption
from ijepa_jax.errors import UserError

FLAGS = flags.FLAGS
JOBS = {
  'pretrain': 'ijepa_jax.train:pretrain',
  'linear': 'ijepa_jax.evals.sweep:run',
  'knn': 'ijepa_jax.evals.jobs:run_knn',
  'finetune': 'ijepa_jax.evals.finetune:run',
  'logistic': 'ijepa_jax.evals.jobs:run_logistic',
}
config_flags.DEFINE_config_file('config', None, 'Recipe.', lock_config=True)
flags.DEFINE_string('workdir', '', 'Folder of checkpoints and metrics.')
flags.DEFINE_string('coordinator', '', 'host:port of process 0, by hand.')
flags.DEFINE_integer('num_processes', 0, 'Of the whole job, by hand.')
flags.DEFINE_integer('process_id', -1, 'Of this process, by hand.')


@cli.one_sentence()
def main(argv):
  # Here, since the workers of the input pipeline import this file again.
  from ijepa_jax import distributed, jax_flags

  jax_flags.settle()
  if len(argv) > 1:
    sys.exit(f'{argv[1]!r} is not a flag: see main.py --helpshort.')
  name = FLAGS.config.job
  if name not in JOBS:
    raise UserError(f'job is {name!r}: take one of {", ".join(JOBS)}.')
  if name != 'pretrain' and name not in FLAGS.config:
    raise UserError(
      f'job is {name!r} and the config has no settings of it: take one of '
      'configs/evals.'
    )
  with interruption.watch() as watched:
    distributed.initialise(
      FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
    )
    watched.take_signals()  # JAX has taken SIGTERM
  distributed.log_devices()
  module, function = JOBS[name].split(':')
  getattr(importlib.import_module(module), function)(
    FLAGS.config, FLAGS.workdir
  )


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  logging.set_verbosity(logging.INFO)
  with interruption.job():
    app.run(main, flags_parser=cli.parse)
