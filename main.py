"""The one entry point.

    python main.py --config=configs/vit_l16.py --workdir=runs/l16

The same line on a laptop, a GPU machine, SLURM and a TPU pod; see launch/.
"""

import ast
import contextlib
import importlib
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from ijepa_jax import interruption

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


def main(argv):
  # Here, since the workers of the input pipeline import this file again.
  import jax

  from ijepa_jax import distributed, jax_flags, recipe

  jax_flags.settle()
  if len(argv) > 1:
    sys.exit(f'{argv[1]!r} is not a flag: see main.py --helpshort.')
  try:
    name = FLAGS.config.job
    if name not in JOBS:
      raise recipe.UserError(f'job is {name!r}: take one of {", ".join(JOBS)}.')
    if name != 'pretrain' and name not in FLAGS.config:
      raise recipe.UserError(
        f'job is {name!r} and the config has no settings of it: take one of '
        'configs/evals.'
      )
    with recipe.told(), interruption.watch() as watched:
      distributed.initialise(
        FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
      )
      watched.take_signals()  # JAX has taken SIGTERM
    logging.info(
      'Process %d of %d, devices: %s',
      jax.process_index(),
      jax.process_count(),
      ', '.join(f'{d} ({d.device_kind})' for d in jax.local_devices()),
    )
    module, function = JOBS[name].split(':')
    getattr(importlib.import_module(module), function)(
      FLAGS.config, FLAGS.workdir
    )
  except recipe.UserError as error:
    # One sentence is the message; a traceback would bury it.
    sys.exit(str(error))
  except OSError as error:
    if error.filename is None:
      raise
    sys.exit(
      f'{error.filename}: {error.strerror}. Check --workdir and the other '
      'paths.'
    )


def parse(argv):
  """absl's own, with what is wrong told in one sentence."""
  try:
    rest = FLAGS(argv)
    if FLAGS.config is not None:
      FLAGS.config.get('job')  # or what is wrong with it would be told later
    return rest
  except (AttributeError, KeyError) as error:
    # ConfigDict's words: the key, and which one it is near; quoted twice.
    words = str(error.args[0])
    with contextlib.suppress(ValueError, SyntaxError):
      words = str(ast.literal_eval(words))
    sys.exit(f'The config has no such key: {" ".join(words.split())}')
  except OSError as error:  # ml_collections', of several lines
    missing = re.findall("directory: '(.*)'", str(error))
    if not missing:
      raise
    sys.exit(
      f'There is no config {missing[-1]} here: take one of configs/*.py and '
      'configs/evals/*.py.'
    )
  except flags.Error as error:
    sys.exit(str(error))


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  logging.set_verbosity(logging.INFO)
  with interruption.job():
    app.run(main, flags_parser=parse)
