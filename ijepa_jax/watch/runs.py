"""What a workdir says of its run: its metrics, how far it is, its health."""

import json
import math
import os
import time

from etils import epath
from ml_collections import ConfigDict

from ijepa_jax.errors import UserError
from ijepa_jax.methods import from_config
from ijepa_jax.runtime import files, metrics
from ijepa_jax.runtime.config import read_config
from ijepa_jax.runtime.progress import duration
from ijepa_jax.train import health, report

_SILENT_SECONDS = 120.0  # without a new line: it may have been stopped
_MOST_ROWS = 2000  # of those without a probe or health that are drawn
# Columns of the table, where some run has them.
COLUMNS = 'loss', 'probe/*', 'knn/*', 'rankme', 'health/*', 'images_per_second'


class Run:
  """A workdir, read again where its metrics have changed.

  Attributes:
    path: of the workdir.
    name: its last part.
    rows: of metrics.jsonl.
    config: of config.json; {} while there is none.
  """

  def __init__(self, workdir: str):
    self.path = files.resolve(workdir)
    self.name = self.path.name
    self.rows, self.config = [], {}
    self._stamp, self._curves = None, (None, b'')
    if not self.path.is_dir():
      raise UserError(f'There is no workdir {self.path}: check its path.')

  def refresh(self) -> None:
    """Reads what is new."""
    path = self.path / 'metrics.jsonl'
    stamp = path.stat() if path.exists() else None
    stamp = stamp and (stamp.length, stamp.mtime)
    if stamp != self._stamp:
      self.rows, self.config = metrics.read(self.path), read_config(self.path)
      self._stamp = stamp

  @property
  def step(self) -> int:
    return self.rows[-1]['step'] if self.rows else 0

  @property
  def total_steps(self) -> int:
    return self.config.get('total_steps', 0)

  def latest(self) -> dict[str, float]:
    """The newest number of each metric."""
    values = {}
    for row in self.rows:
      values |= {k: v for k, v in row.items() if v is not None}
    return values

  def status(self) -> str:
    """How far it is, in words."""
    if not self.rows:
      return 'no step yet: it compiles, or has not begun'
    words = f'step {self.step:,}'
    if not self.total_steps:
      return words
    words += f' of {self.total_steps:,}'
    if self.step >= self.total_steps:
      return f'{words}: complete'
    silent = time.time() - self._stamp[1]
    if silent > _SILENT_SECONDS:
      return f'{words}; no new step for {duration(silent)}'
    rate = self.latest().get('images_per_second')
    if rate:
      left = (self.total_steps - self.step) * self.config['batch_size'] / rate
      words += f', about {duration(left)} left'
    return words

  def health(self) -> tuple[str, list[str]]:
    """Its health: 'good', 'poor' (not known) or 'bad', and why, in words."""
    values = {
      k.removeprefix('health/'): math.nan if v is None else v
      for row in self.rows
      for k, v in row.items()
      if k.startswith('health/')
    }
    if not values or 'optim' not in self.config:
      return 'poor', ['No signals of health yet.']
    if self.step <= self.config['optim']['warmup_steps']:
      return 'poor', ['It still warms up: no alarm is raised yet.']
    method = from_config.make_method(ConfigDict(self.config))
    alarms = health.alarms(values, method)
    if alarms:
      return 'bad', list(alarms.values())
    return 'good', ['Healthy: no alarm.']

  def curves(self) -> bytes:
    """A PNG, drawn again where there are new steps or the last report."""
    drawn_of = self._stamp, self._levels()
    if self._curves[0] != drawn_of:
      rows = thin(self.rows, _MOST_ROWS)
      picture = report.draw_curves(rows, levels=drawn_of[1])
      self._curves = drawn_of, picture
    return self._curves[1]

  def picture(self) -> epath.Path:
    """Of its masks and tokens; may not exist."""
    return self.path / 'pictures' / 'tokens.png'

  def final(self) -> dict[str, dict[str, float]]:
    """The table of report.json; {} before the end."""
    return {k: v for k, v in self._report().items() if isinstance(v, dict)}

  def verdict(self) -> str:
    """What it all came to, in words; '' before the end."""
    return self._report().get('verdict_in_words', '')

  def _report(self) -> dict:
    try:
      return json.loads((self.path / 'report.json').read_text())
    except (OSError, ValueError):
      return {}

  def _levels(self) -> dict[str, dict[str, float]]:
    names = 'raw pixels', 'encoder, untrained'
    return {k: v for k, v in self.final().items() if k in names}


def thin(rows: list[dict], most: int) -> list[dict]:
  """All rows that a monitor wrote, and evenly chosen ones of the others."""
  every = -(-len(rows) // most)
  return [
    row
    for i, row in enumerate(rows)
    if i % every == 0 or any(k.startswith(('probe/', 'health/')) for k in row)
  ]


def open_runs(workdirs) -> list[Run]:
  """Opens each workdir; a name that comes twice gets its folder.

  Raises:
    UserError: one of them is not there.
  """
  runs = [Run(workdir) for workdir in workdirs]
  names = [run.name for run in runs]
  for run in runs:
    if names.count(run.name) > 1:
      run.name = os.path.join(run.path.parent.name, run.path.name)
  return runs
