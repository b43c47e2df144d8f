"""Which examples of a few-shot task are labelled."""

import numpy as np

from ijepa_jax.errors import UserError
from ijepa_jax.evals import labels


def balanced(
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
  labels.check(y_N, 'training', classes)
  groups = by_class(y_N, seed)
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


def by_class(y_N, seed: int) -> dict[int, np.ndarray]:
  """label -> indices of its examples in an order by chance."""
  y_N = np.asarray(y_N)
  return {
    int(label): np.random.default_rng([seed, int(label)]).permutation(
      np.flatnonzero(y_N == label)
    )
    for label in np.unique(y_N)
  }
