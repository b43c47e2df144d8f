"""UserError: one sentence for the person at the keyboard.

Imports nothing, since the workers of the input pipeline raise it.
"""


class UserError(ValueError):
  """A mistake of the user, or a fault of the disk, in one sentence.

  The sentence has the value, the limit and what to do. It is raised where the
  mistake is; main.py prints it without a traceback. Any other exception is a
  fault of this package and keeps its traceback.
  """
