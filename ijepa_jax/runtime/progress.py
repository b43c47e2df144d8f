"""What a terminal shows of a job: throughput, progress and result tables."""

import collections
import contextlib
import datetime
import math
import sys
import time
from collections.abc import Sequence

import tqdm
from absl import logging


def text_table(rows: Sequence[Sequence[str]]) -> str:
  """Formats rows of cells: the first column to the left, others to the right.

  Args:
    rows: of as many cells each.
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


class Throughput:
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
