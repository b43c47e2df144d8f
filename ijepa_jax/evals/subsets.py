"""Which examples of a few-shot task are labelled."""

import os

import numpy as np


def balanced(
  y_N, *, per_class: int = 0, share: float = 0.0, seed: int = 0
) -> np.ndarray:
  """A balanced part of labelled examples, by chance.

  Args:
    y_N: int [N].
    per_class: as many of each class; or
    share: this share of each class, rounded, one at least.
    seed: with the same one a smaller part lies within a larger one.

  Returns:
    int64 indices, rising.

  Raises:
    ValueError: neither or both are given, a class has too few examples, or
      labels are missing or below 0.
  """
  if (per_class > 0) == (share > 0) or per_class < 0 or not 0 <= share <= 1:
    raise ValueError(
      f'per_class is {per_class} and share is {share}: take 1 or more for the '
      'one, or above 0 and up to 1 for the other.'
    )
  if not len(y_N) or np.min(y_N) < 0:
    raise ValueError(
      'Some or all examples have no label (-1): there is no balanced subset.'
    )
  groups = by_class(y_N, seed)
  least = min(groups, key=lambda label: len(groups[label]))
  if len(groups[least]) < per_class:
    raise ValueError(
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


def from_list(keys, path: str) -> np.ndarray:
  """The examples that a text file names, one a line, such as ImageNet's 1%.

  Args:
    keys: names of all examples in their order, such as
      'train/n01440764/n01440764_10026.JPEG'.
    path: of the file; a line is the end of a key: 'n01440764_10026.JPEG' or
      'n01440764/n01440764_10026.JPEG'.

  Returns:
    int64 indices, rising.

  Raises:
    ValueError: there is no such list or it is empty, or a line names no example
      or several.
  """
  try:
    with open(path, encoding='utf-8') as file:
      lines = [line.strip().strip('/') for line in file]
  except OSError as error:
    raise ValueError(
      f'The list {path} can not be read ({error.strerror}): check its path.'
    ) from error
  lines = list(dict.fromkeys(line for line in lines if line))
  if not lines:
    raise ValueError(f'The list {path} is empty: it needs one name a line.')
  found = {}  # the ends of keys, of as many parts as some line has -> indices
  depths = {line.count('/') for line in lines}
  for i, key in enumerate(keys):
    parts = key.replace(os.sep, '/').split('/')
    for depth in depths:
      found.setdefault('/'.join(parts[-depth - 1 :]), []).append(i)
  for wrong, words in (
    ([n for n in lines if n not in found], 'are not there'),
    ([n for n in lines if len(found.get(n, ())) > 1], 'stand for several'),
  ):
    if wrong:
      raise ValueError(
        f'{len(wrong)} of the {len(lines)} names in {path} {words}, the first '
        f'of them {wrong[0]}: names look like {keys[0]} here.'
      )
  return np.sort(np.array([found[line][0] for line in lines]))
