"""What every start of a run did, in <folder>/goodput/<its beginning>.json.

A thread writes the file again and again, so that a start that is killed has
told all but its last seconds; summary.py reads.
"""

import contextlib
import json
import threading
import time

from absl import logging

from ijepa_jax.runtime import files
from ijepa_jax.runtime.timing import summary
from ijepa_jax.runtime.timing.clock import Clock, process_age

# Seconds between two writes of the file, on a disk and on a bucket.
_EVERY = {False: 10.0, True: 60.0}


class Start:
  """One start of one run, as the process sees it that writes the metrics.

  Attributes:
    clock: of this start.
    from_step, step: finished steps at the beginning of the loop and now; None
      before it.
  """

  def __init__(self, clock: Clock):
    self.clock = clock
    self.from_step = self.step = None
    self._saved, self._next_row = [], 0.0
    self._folder, self._stop = None, threading.Event()
    self._thread = None

  def begin(self, step: int) -> None:
    """The loop begins after `step` finished steps."""
    self.from_step = self.step = step

  def saved(self, step: int) -> None:
    """A later start may go on from `step`: what was spent on it counts."""
    self._saved.append([step, self.clock.seconds()['steps']])

  def row(self, always: bool) -> dict[str, float]:
    """{'seconds/<part>': of this start until now}, for metrics.jsonl.

    Args:
      always: False: {} where the last such row is not ten seconds old.
    """
    now = time.monotonic()
    if not always and now < self._next_row:
      return {}
    self._next_row = now + _EVERY[False]
    return {f'seconds/{k}': v for k, v in self.clock.seconds().items()}

  def keep_in(self, folder) -> None:
    """Writes down what this start does, from now to its end.

    Args:
      folder: of the run, which this process alone writes to. A first start
        that is refused before its first step leaves nothing in it.
    """
    self._folder = files.resolve(folder) / summary.FOLDER
    self._again = self._folder.exists()
    self._thread = threading.Thread(target=self._write_again, daemon=True)
    self._thread.start()

  def end(self, how: str) -> None:
    """Writes for the last time and logs where the time went."""
    if not self._thread:
      return
    self._stop.set()
    self._thread.join(60)
    if self.step is None and not self._again:
      return
    self._write(how)
    with contextlib.suppress(Exception):
      starts = summary.read(self._folder.parent)
      logging.info('%s', summary.sentence(starts))

  def _write_again(self):
    while not self._stop.wait(_EVERY[files.is_url(self._folder)]):
      if self.step is not None or self._again:
        self._write(None)

  def _write(self, end):
    seconds = self.clock.seconds()
    row = {
      'began': self.clock.began,
      'wall_seconds': sum(seconds.values()),
      'seconds': seconds,
      'from_step': self.from_step,
      'step': self.step,
      'saved': list(self._saved),
      'end': end,
    }
    path = self._folder / f'{self.clock.began:.3f}.json'
    try:
      files.atomic_write_text(path, json.dumps(row))
    # A full disk, or whatever a bucket raises: no reason to stop a run.
    except Exception as error:
      logging.log_every_n_seconds(
        logging.WARNING, 'goodput: %s: %s', 600, path, error
      )


_of_process: Clock | None = None
_active: Start | None = None


def begin_process() -> None:
  """The next start in this process began when the process did."""
  global _of_process
  _of_process = Clock(process_age())


@contextlib.contextmanager
def this_start():
  """A context around a training that gives its Start."""
  global _active, _of_process
  outer, _active = _active, Start(_of_process or Clock())
  _of_process = None
  how = 'complete'
  try:
    yield _active
  except SystemExit:
    how = 'stopped'
    raise
  except BaseException as error:
    how = type(error).__name__
    raise
  finally:
    start, _active = _active, outer
    start.end(how)


def current() -> Start:
  """The Start of the innermost `this_start`, or one that is kept nowhere."""
  return _active or Start(Clock())
