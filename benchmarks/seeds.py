"""What runs of several seeds share: whether one is finished, their spread."""

import json
import pathlib
import statistics

from ijepa_jax.errors import UserError


def finished(config, workdir: pathlib.Path) -> bool:
  """Whether a run has its report.

  Args:
    config: of the run.
    workdir: of it, which may not be there.

  Raises:
    UserError: the folder holds a run of another config, which is no result of
      this one, and which this one would go on with.
  """
  path = workdir / 'config.json'
  if not path.exists():
    return False
  before = json.loads(path.read_text())
  now = json.loads(config.to_json_best_effort())
  if before != now:
    other = [k for k in now | before if now.get(k) != before.get(k)]
    raise UserError(
      f'The run in {workdir} was of another {", ".join(other)}: take another '
      '--workdir.'
    )
  return (workdir / 'report.json').exists()


def mean_and_spread(percents) -> str:
  """The mean, and the standard deviation of two or more; '-' of none."""
  if not percents:
    return '-'
  mean = f'{statistics.mean(percents):.1f}'
  if len(percents) == 1:
    return mean
  return f'{mean} ± {statistics.stdev(percents):.1f}'
