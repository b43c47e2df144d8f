"""What a run writes down: metrics.jsonl, TensorBoard, the console.

workdir/config.json     the config that the run was started with
workdir/metrics.jsonl   one strict JSON object a line: {"step": 12, ...};
                        what is no finite number is null
workdir/tensorboard/    the same numbers as scalars

A bucket can't be appended to: with a workdir on one (gs://...), the last two
lie in a temporary folder of this machine, and `Metrics.sync` copies them.
"""

import collections
import contextlib
import datetime
import json
import math
import os
import pathlib
import shutil
import sys
import tempfile
import time
import uuid

import tqdm
from absl import logging
from etils import epath


def write_config(workdir, config_json: str) -> list[str]:
  """Writes config.json, whole or not at all.

  Returns:
    What differs from the one that was there: ['total_steps: 20, was 10'].
  """
  path = epath.Path(workdir) / 'config.json'
  new, old = json.loads(config_json), read_config(workdir)
  replace(path, json.dumps(new, indent=2))
  new, old = dict(_flat(new)), dict(_flat(old))
  return [
    f'{key}: {value}, was {old[key]}'
    for key, value in new.items()
    if key in old and old[key] != value
  ]


def read_config(workdir) -> dict:
  """What config.json holds; {} where there is none, or a damaged one."""
  path = epath.Path(workdir) / 'config.json'
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def read(workdir) -> list[dict]:
  """The lines of metrics.jsonl, oldest first; [] where there is none.

  A last line that a kill cut short is left out; null comes as None.
  """
  path = epath.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return []
  with path.open() as lines:
    return [row for line in lines if (row := _parse(line))]


class Metrics:
  """The writer of metrics.jsonl and TensorBoard; a context manager."""

  def __init__(
    self,
    workdir,
    *,
    start_step: int = 0,
    tensorboard: bool = True,
    enabled: bool = True,
  ):
    """Opens for the steps after `start_step`.

    A killed run may have written lines beyond its last checkpoint: those of
    steps after `start_step`, and one cut short, are dropped.

    Args:
      workdir: is made if need be.
      start_step: of the checkpoint that the run goes on from, or 0.
      tensorboard: write TensorBoard scalars too.
      enabled: False on processes other than 0: then nothing is written.
    """
    self._file = self._board = self._remote = None
    if not enabled:
      return
    local = pathlib.Path(workdir)
    if '://' in str(workdir):
      self._remote = epath.Path(workdir)
      local = pathlib.Path(tempfile.mkdtemp(prefix='ijepa-metrics-'))
      there = self._remote / 'metrics.jsonl'
      if there.exists():
        (local / 'metrics.jsonl').write_bytes(there.read_bytes())
    local.mkdir(parents=True, exist_ok=True)
    self._local = local
    path = local / 'metrics.jsonl'
    if path.exists():
      with path.open(encoding='utf-8') as lines:
        kept = [
          line.rstrip('\n') + '\n'
          for line in lines
          if (row := _parse(line)) and row['step'] <= start_step
        ]
      replace(epath.Path(path), ''.join(kept))
    # One write a line: a kill loses none that was finished.
    self._file = path.open('a', buffering=1, encoding='utf-8')
    if tensorboard:
      import tensorboardX  # A fifth of a second that tests need not wait.

      self._board = tensorboardX.SummaryWriter(
        str(local / 'tensorboard'), purge_step=start_step + 1, flush_secs=30
      )

  def write(self, step: int, values: dict[str, float]) -> None:
    """One line; `step` is the number of finished steps."""
    if self._file is None:
      return
    numbers = {name: float(value) for name, value in values.items()}
    row = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
    line = json.dumps({'step': int(step), **row}, allow_nan=False)
    self._file.write(line + '\n')
    for name, value in row.items() if self._board else ():
      if value is not None:
        self._board.add_scalar(name, value, step)

  def sync(self) -> None:
    """Copies to a workdir on a bucket; with each checkpoint, none is lost."""
    if self._remote is None:
      return
    if self._board is not None:
      self._board.flush()
    for path in self._local.rglob('*'):
      if path.is_file():
        there = self._remote / path.relative_to(self._local)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(path.read_bytes())

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
    if self._board is not None:
      self._board.close()
      self._board = None
    self.sync()
    if self._remote is not None:
      shutil.rmtree(self._local)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


class Meter:
  """Images a second, and the share of time in which the loop waits for data.

  A step counts when its results are on the host: it is computed while the loop
  goes on, so the time at which it was started tells nothing. What is no
  training is left out by `pausing`.
  """

  def __init__(self, batch_size: int, window: int = 50):
    """Over the last `window` steps of `batch_size` images each, from now on."""
    self._batch_size = batch_size
    self._waited = self._paused = 0.0  # seconds, since ever
    self._marks = collections.deque(maxlen=window + 1)
    self.step()

  @contextlib.contextmanager
  def waiting(self):
    """Around what takes the next batch."""
    began = time.perf_counter()
    yield
    self._waited += time.perf_counter() - began

  @contextlib.contextmanager
  def pausing(self):
    """Around what is no training, with no step under way: looks and saves."""
    began = time.perf_counter()
    try:
      yield
    finally:
      self._paused += time.perf_counter() - began

  def step(self) -> None:
    """When the results of a step are on the host."""
    self._marks.append((time.perf_counter() - self._paused, self._waited))

  def rates(self) -> dict[str, float]:
    """{'images_per_second', 'data_wait_share'}; {} before the first step."""
    if len(self._marks) < 2:
      return {}
    (began, waited_before), (now, waited) = self._marks[0], self._marks[-1]
    seconds = max(now - began, 1e-9)
    return {
      'images_per_second': self._batch_size * (len(self._marks) - 1) / seconds,
      'data_wait_share': (waited - waited_before) / seconds,
    }


# Without tqdm's own rate, in which looks and saves are counted.
_BAR = (
  '{l_bar}{bar}| step {n_fmt} of {total_fmt} [{elapsed}<{remaining}{postfix}]'
)


class Progress:
  """A bar where stderr is a terminal, else a line of log now and then."""

  def __init__(
    self,
    total_steps: int,
    start: int = 0,
    *,
    enabled: bool = True,
    every_seconds: float = 10.0,
  ):
    """From `start` of `total_steps`; `every_seconds` between lines."""
    self._total, self._start = total_steps, start
    self._enabled, self._every = enabled, every_seconds
    self._began = self._last = None
    self._bar = None
    if enabled and sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        total=total_steps,
        initial=start,
        dynamic_ncols=True,
        bar_format=_BAR,
      )

  def update(self, step: int, values: dict[str, float]) -> None:
    """Shows `step`, finished; of `values` the loss and the Meter's rates."""
    if not self._enabled:
      return
    words = f'loss {values.get("loss", math.nan):.4f}'
    if 'images_per_second' in values:
      words += (
        f', {values["images_per_second"]:.0f} img/s, '
        f'{values["data_wait_share"]:.0%} waiting for data'
      )
    if self._bar is not None:
      self._bar.set_postfix_str(words, refresh=False)
      self._bar.update(step - self._bar.n)
      return
    now = time.monotonic()
    if self._began is None:
      # What comes before the first step is no measure of the next.
      self._began, self._start = now, step
    elif now - self._last < self._every and step < self._total:
      return
    self._last = now
    if done := step - self._start:
      left = (now - self._began) * (self._total - step) / done
      words += f', {datetime.timedelta(seconds=round(left))} left'
    # Rounded down: 100% is the end.
    percent = 100 * step // self._total
    logging.info('Step %d of %d (%d%%): %s', step, self._total, percent, words)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._bar is not None:
      self._bar.close()


def replace(path: epath.Path, text: str) -> None:
  """Writes a file whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if '://' in str(path):
    path.write_text(text)  # A bucket shows the whole object or the old one.
    return
  # Of no number of a process: another machine may have the same.
  temporary = path.parent / f'.{path.name}.{uuid.uuid4().hex}'
  with open(temporary, 'w', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


def _flat(tree: dict, prefix: str = ''):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def _parse(line: str) -> dict | None:
  try:
    row = json.loads(line)
  except json.JSONDecodeError:
    return None
  return row if isinstance(row, dict) and 'step' in row else None
