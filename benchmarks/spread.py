"""Several seeds in one cell of a table."""

import statistics


def mean_and_spread(percents) -> str:
  """The mean, and the standard deviation of two or more; '-' of none."""
  if not percents:
    return '-'
  mean = f'{statistics.mean(percents):.1f}'
  if len(percents) == 1:
    return mean
  return f'{mean} ± {statistics.stdev(percents):.1f}'
