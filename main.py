"""The one entry point.

    python main.py --config=configs/vit_l16.py --workdir=runs/l16

The same line on a laptop, a GPU machine, SLURM and a TPU pod; see launch/.
"""

import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from ijepa_jax import sharding, train

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file('config', None, 'Recipe.', lock_config=True)
flags.DEFINE_string('workdir', None, 'Folder of checkpoints and metrics.')
flags.DEFINE_string('coordinator', '', 'host:port of process 0, by hand.')
flags.DEFINE_integer('num_processes', 0, 'Of the whole job, by hand.')
flags.DEFINE_integer('process_id', -1, 'Of this process, by hand.')

JOBS = {'pretrain': train.pretrain}


def main(argv):
  if len(argv) > 1:
    sys.exit(f'{argv[1]!r} is not a flag: see main.py --helpshort.')
  try:
    sharding.initialise_distributed(
      FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
    )
    logging.info(
      'Process %d of %d, devices: %s',
      jax.process_index(),
      jax.process_count(),
      ', '.join(str(d) for d in jax.local_devices()),
    )
    job = FLAGS.config.job
    if job not in JOBS:
      raise train.UserError(
        f'config.job is {job!r}: take one of {", ".join(JOBS)}.'
      )
    JOBS[job](FLAGS.config, FLAGS.workdir)
  except train.UserError as error:
    # One sentence is the message; a traceback would bury it.
    sys.exit(f'{type(error).__name__}: {error}')


def parse(argv):
  """absl's own, with a wrong key in one sentence."""
  try:
    return FLAGS(argv)
  except (AttributeError, KeyError) as error:
    # ConfigDict's: the key, and which one it is near.
    words = ' '.join(str(error.args[0]).split())
    sys.exit(f'The config has no such key: {words}')
  except flags.Error as error:
    sys.exit(str(error))


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir'])
  logging.set_verbosity(logging.INFO)
  app.run(main, flags_parser=parse)
