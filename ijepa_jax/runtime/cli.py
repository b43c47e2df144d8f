"""What the commands share: flags, JAX's own flags, and one-sentence errors.

For `python -m ijepa_jax...`. Whoever imports the package keeps
their flags of JAX.
"""

import ast
import contextlib
import logging as stdlib_logging
import sys
from collections.abc import Iterable

from absl import flags, logging

from ijepa_jax.errors import UserError

# Package that fsspec asks for -> the extra of setup.py that brings it.
_EXTRAS = {'gcsfs': 'gcs', 's3fs': 's3'}
# JAX's flags that change numbers silently, or break what optax, Flax or this
# package compile; with JAX's defaults.
_JAX_DEFAULTS = {
  'jax_enable_x64': False,
  'jax_default_matmul_precision': None,
  'jax_numpy_dtype_promotion': 'standard',
  'jax_numpy_rank_promotion': 'allow',
  'jax_default_prng_impl': 'threefry2x32',
  'jax_threefry_partitionable': True,
  'jax_disable_jit': False,
  'jax_transfer_guard': None,
}

# Of those that recipes set for other methods, only what a command line sets is
# told: method -> knobs and sections that have no effect.
_PREDICTOR = 'predictor_width', 'predictor_depth', 'predictor_heads'
_PREDICTOR = tuple(f'model.{knob}' for knob in _PREDICTOR)
UNUSED_BY = {
  'ijepa': ('mae', 'vicreg'),
  'pixels': ('mae', 'vicreg', 'ema'),
  'mae': ('vicreg', 'ema', 'mask', *_PREDICTOR),
  'vicreg': (
    *('mae', 'ema', 'mask', 'loss.normalize_targets', *_PREDICTOR),
    *('data.crop_scale', 'data.crop_ratio', 'data.flip'),
  ),
}


@contextlib.contextmanager
def one_sentence():
  """A context that ends the process with the sentence of a user's mistake.

  A mistake is a UserError, an OSError that names a file, or the lack of the
  package that a bucket needs. Any other exception is a bug of this package and
  keeps its traceback.

  Raises:
    SystemExit: with the sentence; the status is 1.
  """
  try:
    yield
  except UserError as error:
    sys.exit(str(error))
  except OSError as error:
    if error.filename is None or error.strerror is None:
      raise
    sys.exit(
      f'{error.filename}: {error.strerror}. Check --workdir and the other '
      'paths.'
    )
  except ImportError as error:
    extras = [extra for name, extra in _EXTRAS.items() if name in str(error)]
    if not extras:
      raise
    sys.exit(f"{error}: pip install 'ijepa_jax[{extras[0]}]'.")


def parse(argv):
  """Parses absl's flags: `flags_parser` of absl.app.run.

  Returns:
    The arguments that are no flags, argv[0] first.

  Raises:
    SystemExit: with one sentence on what is wrong with a flag or the config.
  """
  try:
    positional = flags.FLAGS(argv)
    if getattr(flags.FLAGS, 'config', None) is not None:
      # A config is read on its first use, which shows mistakes in its keys.
      flags.FLAGS.config.get('job')
      _complete_sizes(flags.FLAGS.config)
      overridden = flags.FLAGS['config'].override_values
      warn_of_unused(flags.FLAGS.config, overridden)
    return positional
  except (AttributeError, KeyError) as error:
    # ConfigDict names the key and one that is spelled alike; quoted twice.
    words = str(error.args[0])
    with contextlib.suppress(ValueError, SyntaxError):
      words = str(ast.literal_eval(words))
    sys.exit(f'The config has no such key: {" ".join(words.split())}')
  except flags.Error as error:
    # A config's own mistake comes as the text of its traceback.
    _, _, words = str(error).rpartition('ijepa_jax.errors.UserError: ')
    sys.exit(words.strip())


def _complete_sizes(config) -> None:
  """Makes a height and a width of an image_size that is one number."""
  for section in config, config.get('data') or {}:
    size = section.get('image_size')
    if isinstance(size, tuple) and len(size) == 1:
      section.image_size = size * 2


def warn_of_unused(config, overridden: Iterable[str]) -> None:
  """Warns of knobs of a command line that the method does not have.

  Args:
    config: of any job.
    overridden: full names of the knobs.
  """
  method = config.get('method')
  unused = UNUSED_BY.get(method, ())
  names = [
    name
    for name in overridden
    if name in unused or name.split('.')[0] in unused
  ]
  if names:
    logging.warning(
      'Without effect with method = %r: %s.', method, ', '.join(names)
    )


def reset_jax_flags() -> None:
  """Sets JAX's flags that change numbers to their defaults, and logs which.

  So that the numbers of a job depend on its config alone.
  """
  # Not that there is no TPU, of a machine that has none.
  stdlib_logging.getLogger('jax._src.xla_bridge').setLevel('WARNING')
  import jax  # late: wrong flags are refused before it is imported

  for name, default in _JAX_DEFAULTS.items():
    # Some versions of JAX lack some of the flags.
    if (value := getattr(jax.config, name, default)) != default:
      jax.config.update(name, default)
      logging.warning(
        '%s=%s in the environment is set aside: the config alone says what a '
        'job computes.',
        name.upper(),
        value,
      )
