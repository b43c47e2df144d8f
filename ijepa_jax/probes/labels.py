"""Labels: their checks, few-shot subsets, and which answers are correct."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from ijepa_jax.errors import UserError

HELD_OUT_SHARE = 0.2  # of the training examples, to choose a penalty by


def check(y_N, split: str, classes: int | None = None) -> None:
  """Refuses labels of a data set from which no accuracy follows.

  Args:
    y_N: of all examples.
    split: 'training' or 'test', for the sentence.
    classes: of the task; None: as many as the labels have.

  Raises:
    UserError: there are no labels, they are no whole numbers, one is out of
      range or unknown, or all are the same.
  """
  check_batch(y_N, split, classes)
  if len(np.unique(y_N)) < 2:
    raise UserError(
      f'The {len(y_N)} {split} examples have fewer than two classes: an '
      'accuracy on them says nothing.'
    )


def check_batch(y_B, split: str, classes: int | None = None) -> None:
  """Refuses labels that are no classes; those of a batch may all be the same.

  Raises:
    UserError: see `check`.
  """
  y_B = np.asarray(y_B)
  if y_B.ndim != 1 or not np.issubdtype(y_B.dtype, np.integer):
    raise UserError(
      f'The {split} labels are {y_B.dtype}{list(y_B.shape)}: give one whole '
      'number an example.'
    )
  low, high = (y_B.min(), y_B.max()) if len(y_B) else (0, 0)
  if low < 0 or (classes is not None and high >= classes):
    need = 'classes are numbered from 0'
    if classes is not None:
      need = f'{classes} classes need 0 to {classes - 1}'
    unknown = '; -1 is a label that is not known' if low == -1 else ''
    raise UserError(
      f'The {split} labels run from {low} to {high}: {need}{unknown}.'
    )


def known(source, column: int) -> np.ndarray | None:
  """Returns the labels that a source knows without reading its images.

  Args:
    source: see data/sources.
    column: of its labels.

  Returns:
    int32 [N]; None if the images would have to be read.
  """
  labels_NL = getattr(source, 'every_label', lambda: None)()
  return None if labels_NL is None else labels_NL[:, column]


def read(source, column: int) -> np.ndarray:
  """Returns the labels of all images of a source: int32 [N].

  If the source does not know them, the images are read, but not decoded.

  Raises:
    OSError: an image can't be read.
    ValueError: an image has no such label.
  """
  labels_N = known(source, column)
  if labels_N is not None:
    return labels_N
  indices = tqdm.trange(len(source), desc='labels', unit='img', disable=None)
  return np.array([source[i]['label'][column] for i in indices], np.int32)


@dataclasses.dataclass(frozen=True)
class CheckBatch:
  """Checks the labels of a batch on the host and returns the batch.

  For sources whose labels are unknown until the images are read: on a device
  a label out of range would be taken for another class.
  """

  column: int
  split: str
  classes: int

  def __call__(self, batch: dict) -> dict:
    check_batch(batch['label'][:, self.column], self.split, self.classes)
    return batch


def soft_labels(y_B: jax.Array, classes: int, smoothing: float) -> jax.Array:
  """Returns float32 [B, classes]: smoothed one-hot labels.

  1 - smoothing goes to the label and smoothing to all classes alike; a label
  that is no class gives NaN.
  """
  one_hot_BC = jax.nn.one_hot(y_B, classes, dtype=jnp.float32)
  is_class_B1 = ((y_B >= 0) & (y_B < classes))[:, None]
  one_hot_BC = jnp.where(is_class_B1, one_hot_BC, jnp.nan)
  return one_hot_BC * (1 - smoothing) + smoothing / classes


def cross_entropy(logits_BC, y_B) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the mean cross-entropy, and it with the accuracy by name.

  Args:
    logits_BC: float [B, classes].
    y_B: int32 [B] in [0, classes); any other makes the loss NaN.
  """
  # An index out of range gives NaN; one below 0 would count from the end.
  index_B = jnp.where(y_B < 0, logits_BC.shape[-1], y_B)
  error = optax.losses.softmax_cross_entropy_with_integer_labels(
    logits_BC, index_B
  ).mean()
  accuracy = is_correct(logits_BC, y_B).mean(dtype=jnp.float32)
  return error, {'loss': error, 'accuracy': accuracy}


def is_correct(logits, y_B) -> jax.Array:
  """Returns which answers are correct: bool [..., B].

  Logits that are not finite are never correct: argmax takes NaN for the
  greatest, so that NaN alone would answer class 0.

  Args:
    logits: [..., B, classes].
    y_B: int32 [B].
  """
  finite = jnp.isfinite(logits).all(-1)
  return finite & (logits.argmax(-1) == y_B)


def check_probe(train_y, test_y, classes: int) -> None:
  """Refuses labels with which `logistic.quick_probe` can't be made.

  Raises:
    UserError: see `check`; or there are too few examples.
  """
  check(train_y, 'training', classes)
  check(test_y, 'test', classes)
  if len(train_y) * HELD_OUT_SHARE < 1:
    raise UserError(
      f'{len(train_y)} training examples are too few for a probe: take at '
      'least 5.'
    )


def check_features(x_ND, y_N, split: str, classes: int) -> None:
  """Refuses labelled features from which no accuracy follows.

  Raises:
    UserError: the labels are wrong (see `check`), features and labels don't
      match, or the features aren't finite.
  """
  if np.ndim(x_ND) != 2 or np.shape(y_N) != np.shape(x_ND)[:1]:
    raise UserError(
      f'The {split} features are {np.shape(x_ND)} and their labels '
      f'{np.shape(y_N)}: give [N, D] and [N].'
    )
  check(y_N, split, classes)
  # Of the sum, so that features mapped from the disk are not copied.
  if not np.isfinite(np.sum(x_ND, dtype=np.float64)):
    raise UserError(
      f'The {split} features are not finite: take another checkpoint.'
    )


def majority_baseline(train_y, test_y) -> float:
  """Returns the test accuracy of the most frequent training label, in [0, 1].

  Raises:
    UserError: a label is no class.
  """
  check_batch(train_y, 'training')
  check_batch(test_y, 'test')
  return float((test_y == np.bincount(train_y).argmax()).mean())


def few_shot_subset(
  y_N,
  *,
  per_class: int = 0,
  share: float = 0.0,
  seed: int = 0,
  classes: int | None = None,
) -> np.ndarray:
  """Draws a balanced subset of labelled examples.

  Args:
    y_N: int [N].
    per_class: examples of each class; or
    share: share of each class, rounded, at least one example.
    seed: of the draw; with the same one a smaller subset lies within a larger.
    classes: of the task; None: as many as the labels have.

  Returns:
    int64 indices, ascending.

  Raises:
    UserError: neither or both are given, a class has too few examples, or the
      labels are wrong, see `check`.
  """
  if (per_class > 0) == (share > 0) or per_class < 0 or not 0 <= share <= 1:
    raise UserError(
      f'per_class is {per_class} and share is {share}: take 1 or more for the '
      'one, or above 0 and up to 1 for the other.'
    )
  check(y_N, 'training', classes)
  groups = shuffled_by_class(y_N, seed)
  rarest = min(groups, key=lambda label: len(groups[label]))
  if len(groups[rarest]) < per_class:
    raise UserError(
      f'per_class is {per_class} and class {rarest} has {len(groups[rarest])} '
      f'examples: take up to {len(groups[rarest])}.'
    )
  subset = [
    rows[: per_class or max(1, round(share * len(rows)))]
    for rows in groups.values()
  ]
  return np.sort(np.concatenate(subset))


def shuffled_by_class(y_N, seed: int) -> dict[int, np.ndarray]:
  """Returns label -> indices of its examples in random order."""
  y_N = np.asarray(y_N)
  return {
    int(label): np.random.default_rng([seed, int(label)]).permutation(
      np.flatnonzero(y_N == label)
    )
    for label in np.unique(y_N)
  }
