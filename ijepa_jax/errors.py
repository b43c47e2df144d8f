"""UserError, and the refusal of a value that is not among the known ones.

Imports the standard library alone: the workers of the input pipeline raise it.
"""

import difflib


class UserError(ValueError):
  """A mistake of the user, or a fault of the disk, in one sentence.

  The sentence has the value, the limit and what to do. It is raised where the
  mistake is; main.py prints it without a traceback. Any other exception is a
  fault of this package and keeps its traceback.
  """


def one_of(name: str, value, known):
  """Returns `value`, after checking that it is one of `known`.

  Args:
    name: of the setting, as the user writes it, such as 'mask.sampler'.
    known: all values that are allowed, in the order in which to name them.

  Raises:
    UserError: it is not; the sentence names all of them, and the nearest.
  """
  if value in known:
    return value
  words = [str(k) for k in known]
  near = difflib.get_close_matches(str(value), words, 1)
  hint = f' Did you mean {near[0]!r}?' if near else ''
  raise UserError(f'{name} is {value!r}: take one of {", ".join(words)}.{hint}')
