"""Converts a model to one of three forms.

    python -m ijepa_jax.convert runs/vit_l16 vit_l16_hf --to=huggingface

See convert/export.py.
"""

import sys

from absl import app, flags, logging

from ijepa_jax.runtime import cli, preemption

FLAGS = flags.FLAGS
_USAGE = (
  'python -m ijepa_jax.convert <in> <out> --to=orbax|release|huggingface: <in> '
  'is a workdir, an export, a .pth.tar file or a Hugging Face folder.'
)
flags.DEFINE_enum(
  'to', None, ['orbax', 'release', 'huggingface'], 'Format to write.'
)
flags.DEFINE_integer(
  'step', None, 'Which checkpoint of a workdir; by default the newest.'
)
flags.DEFINE_enum(
  'which',
  None,
  ['target', 'context'],
  'Which encoder a Hugging Face folder gets; by default the target.',
)
flags.DEFINE_bool('optimizer', False, "Also write AdamW's state.")
flags.DEFINE_integer(
  'heads',
  None,
  "Attention heads of a .pth.tar file's encoder, if its width is none of the "
  "paper's.",
)
flags.DEFINE_string(
  'license',
  None,
  'For the card of a model of your own, such as apache-2.0; by default it says '
  'that none is chosen yet.',
)


@cli.one_sentence()
def main(argv):
  if len(argv) != 3 or FLAGS.to is None:
    sys.exit(f'Say what, where and how: {_USAGE}')
  import jax

  # Nothing is computed: the devices are left to whoever trains beside this.
  jax.config.update('jax_platforms', 'cpu')

  from ijepa_jax.convert import export

  cli.reset_jax_flags()
  summary = export.export(
    *argv[1:],
    FLAGS.to,
    which=FLAGS.which,
    step=FLAGS.step,
    optimizer=FLAGS.optimizer,
    heads=FLAGS.heads,
    license=FLAGS.license,
  )
  print(summary)


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  with preemption.job():
    app.run(main, flags_parser=cli.parse)
