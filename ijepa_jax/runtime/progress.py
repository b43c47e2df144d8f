"""What a terminal shows of a job: throughput, progress and result tables."""

import collections
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


def duration(seconds: float) -> str:
  """A length of time in words: '45 seconds', '7.5 minutes', '3 days'."""
  size, unit = 1, 'seconds'
  for larger in (60, 'minutes'), (3600, 'hours'), (86400, 'days'):
    if seconds >= 2 * larger[0]:
      size, unit = larger
  number = seconds / size
  digits = 1 if unit != 'seconds' and number < 10 else 0
  return f'{number:.{digits}f} {unit}'.replace('.0 ', ' ')


class Throughput:
  """Images a second, and the share of time in which the devices lack data.

  A step counts when its results are on the host: it is computed while the loop
  goes on, so that its start says nothing. Of the clock's parts only 'steps' and
  'data' count.
  """

  def __init__(self, batch_size: int, clock, window: int = 50):
    """Begins now.

    Args:
      batch_size: images a step.
      clock: timing.clock.Clock of the loop.
      window: latest steps over which rates are measured.
    """
    self._batch_size, self._clock = batch_size, clock
    self._marks = collections.deque(maxlen=window + 1)
    self.step()

  def step(self) -> None:
    """Counts a step. Call it when its results are on the host."""
    seconds = self._clock.seconds()
    waited = seconds['data']
    self._marks.append((seconds['steps'] + waited, waited))

  def rates(self) -> dict[str, float]:
    """Returns images_per_second and data_wait_share; {} before a step."""
    if len(self._marks) < 2:
      return {}
    (began, first_waited), (now, last_waited) = self._marks[0], self._marks[-1]
    seconds = max(now - began, 1e-9)
    return {
      'images_per_second': self._batch_size * (len(self._marks) - 1) / seconds,
      'data_wait_share': (last_waited - first_waited) / seconds,
    }


# Without tqdm's own rate, which counts the time of monitors and saves.
_BAR = (
  '{l_bar}{bar}| step {n_fmt} of {total_fmt} [{elapsed}<{remaining}{postfix}]'
)


_LOG_SECONDS = 10.0  # between two log lines
# Before the time that is left is said in words.
_ESTIMATE_STEPS, _ESTIMATE_SECONDS = 2, 3.0


class Progress:
  """A bar if stderr is a terminal, else a log line every ten seconds.

  After the first steps one sentence says how long the rest takes.
  """

  def __init__(
    self,
    total_steps: int,
    start: int = 0,
    batch_size: int = 0,
    *,
    enabled: bool = True,
  ):
    """Begins at finished step `start` of `total_steps`.

    Args:
      batch_size: images a step; 0: not known.
    """
    self._total, self._start, self._batch_size = total_steps, start, batch_size
    self._enabled = enabled
    self._began = self._last = None
    self._estimated = False
    self._bar = None
    if enabled and sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        total=total_steps,
        initial=start,
        dynamic_ncols=True,
        bar_format=_BAR,
      )

  def update(self, step: int, values: dict[str, float]) -> None:
    """Shows a finished step.

    Args:
      values: metrics; 'loss' and the rates of Throughput are shown.
    """
    if not self._enabled:
      return
    words = f'loss {values.get("loss", math.nan):.4f}'
    if 'images_per_second' in values:
      words += (
        f', {values["images_per_second"]:.0f} img/s, '
        f'{values["data_wait_share"]:.0%} waiting for data'
      )
    now = time.monotonic()
    first = self._began is None
    if first:
      # The time before the first step does not predict the next.
      self._began = self._last = now
      self._start = step
    finished = step - self._start
    left = (now - self._began) * (self._total - step) / max(finished, 1)
    rate = values.get('images_per_second')
    by_rate = rate and self._batch_size * (self._total - step) / rate
    self._estimate(finished, now - self._began, by_rate or left)
    if self._bar is not None:
      self._bar.set_postfix_str(words, refresh=False)
      self._bar.update(step - self._bar.n)
      return
    if not first and now - self._last < _LOG_SECONDS and step < self._total:
      return
    self._last = now
    if finished:
      words += f', {datetime.timedelta(seconds=round(left))} left'
    # Rounded down: 100% is the end.
    percent = 100 * step // self._total
    logging.info('Step %d of %d (%d%%): %s', step, self._total, percent, words)

  def _estimate(self, steps: int, seconds: float, left: float) -> None:
    """Says once how long the rest takes, by so many steps and seconds.

    `left` is best without the first probes and saves, which compile.
    """
    enough = steps >= _ESTIMATE_STEPS and seconds >= _ESTIMATE_SECONDS
    if self._estimated or not enough:
      return
    self._estimated = True
    if left >= _LOG_SECONDS:
      logging.info(
        'By the first %d steps about %s are left, until %s here.',
        steps,
        duration(left),
        time.strftime('%a %H:%M', time.localtime(time.time() + left)),
      )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._bar is not None:
      self._bar.close()
