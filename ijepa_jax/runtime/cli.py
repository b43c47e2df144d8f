"""What the commands share: their flags and their one-sentence errors.

For main.py and `python -m ijepa_jax...`.
"""

import ast
import contextlib
import re
import sys

from absl import flags

from ijepa_jax.errors import UserError

# Package that fsspec asks for -> the extra of setup.py that brings it.
_EXTRAS = {'gcsfs': 'gcs', 's3fs': 's3'}


@contextlib.contextmanager
def one_sentence():
  """Ends the process with the sentence of a user's mistake, and status 1.

  That is a UserError, an OSError that names a file, or the package that a
  bucket needs. Everything else is our own fault and keeps its traceback.

  Raises:
    SystemExit: with the sentence.
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
    rest = flags.FLAGS(argv)
    if getattr(flags.FLAGS, 'config', None) is not None:
      # A config is read on its first use: faults of its keys show here.
      flags.FLAGS.config.get('job')
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
