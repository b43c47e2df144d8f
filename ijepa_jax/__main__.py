"""Runs the job that a config names: pre-training, an evaluation, a picture.

    python -m ijepa_jax --config=vit_l16 --workdir=runs/l16

The same line on a laptop, a GPU machine, SLURM and a TPU pod. Without arguments
it says what there is.
"""

import importlib
import sys

from absl import app, flags, logging

from ijepa_jax import recipes
from ijepa_jax.errors import UserError, one_of
from ijepa_jax.runtime import cli, preemption

FLAGS = flags.FLAGS
JOBS = {
  'pretrain': 'train.pretrain',
  'linear': 'evals.linear',
  'attentive': 'evals.attentive',
  'knn': 'evals.knn',
  'finetune': 'evals.finetune',
  'logistic': 'evals.logistic',
  'visualize': 'visualize.report',
}
recipes.define_flag('config', 'Name of a recipe, or a file that ends in .py.')
flags.DEFINE_string('workdir', '', 'Folder of checkpoints and metrics.')
flags.DEFINE_string('coordinator', '', 'host:port of process 0, by hand.')
flags.DEFINE_integer('num_processes', 0, 'Of the whole job, by hand.')
flags.DEFINE_integer('process_id', -1, 'Of this process, by hand.')
flags.DEFINE_float(
  'lost_after',
  100.0,
  'Seconds without a sign of life after which one of several processes is '
  'lost, and the others end.',
  lower_bound=2.0,
)


@cli.one_sentence()
def main(argv):
  if len(argv) > 1:
    sys.exit(f'{argv[1]!r} is not a flag: see --helpshort.')
  name = one_of('job', FLAGS.config.job, JOBS)
  if name != 'pretrain' and name not in FLAGS.config:
    raise UserError(
      f'job is {name!r} and the config has no settings of it: take one of '
      'configs/evals, or configs/visualize.py.'
    )
  # Here, so that wrong flags are refused before JAX is imported.
  from ijepa_jax.runtime.compilation import cache
  from ijepa_jax.runtime.distributed import start
  from ijepa_jax.runtime.timing import starts

  starts.begin_process()
  cli.reset_jax_flags()
  with preemption.watch() as watched:
    start.initialize(
      *(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id),
      FLAGS.lost_after,
    )
    watched.take_signals()  # JAX has taken SIGTERM
  start.log_devices()
  cache.use(FLAGS.config.get('compilation_cache') or '')
  job = importlib.import_module(f'ijepa_jax.{JOBS[name]}')
  job.run(FLAGS.config, FLAGS.workdir)


if __name__ == '__main__':
  if len(sys.argv) == 1:
    sys.exit(recipes.overview())
  flags.mark_flag_as_required('config')
  logging.set_verbosity(logging.INFO)
  with preemption.job():
    app.run(main, flags_parser=cli.parse)
