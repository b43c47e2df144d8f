"""What the commands share: flags, JAX's own flags, and one-sentence errors.

For `python -m ijepa_jax...`. Whoever imports the package keeps
their flags of JAX.
"""

import ast
import contextlib
import sys

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


def reset_jax_flags() -> None:
  """Sets JAX's flags that change numbers to their defaults, and logs which.

  So that the numbers of a job depend on its config alone.
  """
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
