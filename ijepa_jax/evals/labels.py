"""The labels of examples: one check for all that learn from or judge by them.

A label is a whole number in [0, classes). Sources give -1 where it is not
known, and evaluations fill up batches with rows of -1: the first is refused
here before anything is computed, the second is added behind the check.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from ijepa_jax.errors import UserError


def check(y_N, which: str, classes: int | None = None) -> None:
  """Refuses labels from which nothing can be learned or judged.

  Args:
    y_N: of all examples.
    which: 'training' or 'test', for the sentence.
    classes: of the task; None: as many as there are.

  Raises:
    UserError: there are none, they are no whole numbers, one is out of range
      or not known, or all are the same.
  """
  check_some(y_N, which, classes)
  if len(np.unique(y_N)) < 2:
    raise UserError(
      f'The {len(y_N)} {which} examples have fewer than two classes: an '
      'accuracy on them says nothing.'
    )


def check_some(y_B, which: str, classes: int | None = None) -> None:
  """Refuses labels that are no classes; a few may all be the same.

  Raises:
    UserError: see `check`.
  """
  y_B = np.asarray(y_B)
  if y_B.ndim != 1 or not np.issubdtype(y_B.dtype, np.integer):
    raise UserError(
      f'The {which} labels are {y_B.dtype}{list(y_B.shape)}: give one whole '
      'number an example.'
    )
  low, high = (y_B.min(), y_B.max()) if len(y_B) else (0, 0)
  if low < 0 or (classes is not None and high >= classes):
    need = 'classes are numbered from 0'
    if classes is not None:
      need = f'{classes} classes need 0 to {classes - 1}'
    unknown = '; -1 is a label that is not known' if low == -1 else ''
    raise UserError(
      f'The {which} labels run from {low} to {high}: {need}{unknown}.'
    )


def known(source, column: int) -> np.ndarray | None:
  """The labels of all images of a source, where that costs next to nothing.

  Args:
    source: see sources/.
    column: which of its labels.

  Returns:
    int32 [N]; None where the images themselves would have to be read.
  """
  every = getattr(source, 'every_label', lambda: None)()
  return None if every is None else every[:, column]


def read(source, column: int) -> np.ndarray:
  """The labels of all images of a source: int32 [N].

  Where they are not known without, the images are read, but not decoded.

  Raises:
    OSError: one can't be read. ValueError: one has no such label.
  """
  every = known(source, column)
  if every is not None:
    return every
  images = tqdm.trange(len(source), desc='labels', unit='img', disable=None)
  return np.array([source[i]['label'][column] for i in images], np.int32)


@dataclasses.dataclass(frozen=True)
class Checked:
  """Passes batches on once their labels are looked at, on the host.

  For labels that nobody knows before the images are read: on a device one out
  of range would be taken for another class.
  """

  column: int
  which: str
  classes: int

  def __call__(self, batch: dict) -> dict:
    check_some(batch['label'][:, self.column], self.which, self.classes)
    return batch


def hot(y_B: jax.Array, classes: int) -> jax.Array:
  """float32 [B, classes]: 1 on the label; NaN where it is no class."""
  is_class = (y_B >= 0) & (y_B < classes)
  hot_BC = jax.nn.one_hot(y_B, classes, dtype=jnp.float32)
  return jnp.where(is_class[:, None], hot_BC, jnp.nan)


def never_wrapped(y_B: jax.Array, classes: int) -> jax.Array:
  """int32 [B]: labels below 0 as `classes`, of which a gather gives NaN.

  As indices they would count from the end.
  """
  return jnp.where(y_B < 0, classes, y_B)


def right(logits, y_B) -> jax.Array:
  """bool: which answers are right; one that is no number never is.

  argmax takes NaN for the greatest: of NaN alone it would answer class 0.

  Args:
    logits: [..., B, classes].
    y_B: int32 [B].
  """
  numbers = jnp.isfinite(logits).all(-1)
  return numbers & (logits.argmax(-1) == y_B)
