"""Labels: their checks, few-shot subsets, and counting right answers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from ijepa_jax.errors import UserError

HELD_OUT = 0.2  # of the training rows, to choose a penalty by


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


def soft_labels(labels_B, classes: int, smoothing: float) -> jax.Array:
  """float32 [B, classes]: 1 - smoothing on the label, the rest on all alike;
  NaN of a label that is no class.
  """
  hot_BC = hot(labels_B, classes)
  return hot_BC * (1 - smoothing) + smoothing / classes


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


def check_probe(train_y, test_y, classes: int) -> None:
  """Refuses labels by which `quick_probe` can't be made.

  Raises:
    UserError: see `labels.check`; or the examples are too few.
  """
  check(train_y, 'training', classes)
  check(test_y, 'test', classes)
  if len(train_y) * HELD_OUT < 1:
    raise UserError(
      f'{len(train_y)} training examples are too few for a probe: take at '
      'least 5.'
    )


def check_features(x_ND, y_N, which: str, classes: int) -> None:
  """Refuses labelled features from which no accuracy follows.

  Raises:
    UserError: labels that can't be (see `labels.check`), or features and
      labels that don't match, or features that aren't finite.
  """
  if np.ndim(x_ND) != 2 or np.shape(y_N) != np.shape(x_ND)[:1]:
    raise UserError(
      f'The {which} features are {np.shape(x_ND)} and their labels '
      f'{np.shape(y_N)}: give [N, D] and [N].'
    )
  check(y_N, which, classes)
  # Of the sum: whatever is mapped from the disk is not copied.
  if not np.isfinite(np.sum(x_ND, dtype=np.float64)):
    raise UserError(
      f'The {which} features are not finite: take another checkpoint.'
    )


def majority_baseline(train_y, test_y) -> float:
  """Test accuracy of always answering the commonest training label.

  Raises:
    UserError: a label is no class.
  """
  check_some(train_y, 'training')
  check_some(test_y, 'test')
  return float((test_y == np.bincount(train_y).argmax()).mean())


def few_shot_subset(
  y_N,
  *,
  per_class: int = 0,
  share: float = 0.0,
  seed: int = 0,
  classes: int | None = None,
) -> np.ndarray:
  """A balanced part of labelled examples, by chance.

  Args:
    y_N: int [N].
    per_class: as many of each class; or
    share: this share of each class, rounded, one at least.
    seed: with the same one a smaller part lies within a larger one.
    classes: of the task; None: as many as there are.

  Returns:
    int64 indices, rising.

  Raises:
    UserError: neither or both are given, a class has too few examples, or
      labels that can't be, see `labels.check`.
  """
  if (per_class > 0) == (share > 0) or per_class < 0 or not 0 <= share <= 1:
    raise UserError(
      f'per_class is {per_class} and share is {share}: take 1 or more for the '
      'one, or above 0 and up to 1 for the other.'
    )
  check(y_N, 'training', classes)
  groups = shuffled_by_class(y_N, seed)
  least = min(groups, key=lambda label: len(groups[label]))
  if len(groups[least]) < per_class:
    raise UserError(
      f'per_class is {per_class} and class {least} has {len(groups[least])} '
      f'examples: take up to {len(groups[least])}.'
    )
  chosen = [
    rows[: per_class or max(1, round(share * len(rows)))]
    for rows in groups.values()
  ]
  return np.sort(np.concatenate(chosen))


def shuffled_by_class(y_N, seed: int) -> dict[int, np.ndarray]:
  """label -> indices of its examples in an order by chance."""
  y_N = np.asarray(y_N)
  return {
    int(label): np.random.default_rng([seed, int(label)]).permutation(
      np.flatnonzero(y_N == label)
    )
    for label in np.unique(y_N)
  }
