"""The one clock of a start: parts of its wall time that sum to it."""

import contextlib
import os
import queue
import threading
import time

import jax

PARTS = ('steps', 'compile', 'data', 'save', 'evaluate', 'restart', 'other')
_COMPILED = '/jax/core/compile/backend_compile_duration'
_MAX_AGE = 600.0  # seconds; above, the kernel counts from something else


class Clock:
  """Adds each moment to one part: the innermost that the main thread is in.

  Begins in 'restart'. What JAX compiles on the main thread goes from the part
  that it happens in to 'compile'. Other threads may read.

  Attributes:
    began: seconds since 1970.
    compilations: programs that JAX compiled or loaded, on any thread.
  """

  def __init__(self, age: float = 0.0):
    """Begins `age` seconds ago."""
    self.began = time.time() - age
    self.compilations = 0
    self._seconds = dict.fromkeys(PARTS, 0.0) | {'restart': age}
    self._part, self._since = 'restart', time.perf_counter()
    self._thread, self._lock = threading.get_ident(), threading.Lock()
    self._done = self._queue = None  # of the step under way
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  @contextlib.contextmanager
  def part(self, name: str, then: str | None = None):
    """A context in a part; after it `then`, or the part before."""
    before = self._part
    self._enter(name)
    try:
      yield
    finally:
      self._enter(then or before)

  def seconds(self) -> dict[str, float]:
    """Seconds of all parts until now; their sum is the wall time."""
    with self._lock:
      self._add()
      return dict(self._seconds)

  @contextlib.contextmanager
  def loop(self):
    """A context of 'steps' for `in_flight`; what comes after it is 'other'."""
    self._queue = queue.SimpleQueue()
    thread = threading.Thread(target=_stamp, args=(self._queue,), daemon=True)
    thread.start()
    try:
      with self.part('steps', then='other'):
        yield
    finally:
      self._queue.put(None)
      self._queue = self._done = None

  def in_flight(self, results) -> None:
    """Notes, without waiting, when the arrays of a step are computed."""
    self._done = []
    self._queue.put((results, self._done))

  @contextlib.contextmanager
  def waiting_for_data(self):
    """A context around taking a batch.

    While the step under way computes this costs nothing and is 'steps': 'data'
    is the time in which the devices had nothing to do.
    """
    with self.part('data'):
      began = time.perf_counter()  # within the part: no more than it is moved
      yield
      ended = time.perf_counter()
    if self._done is not None:
      hidden = min(self._done[0] if self._done else ended, ended) - began
      self._move('data', 'steps', hidden)

  def _enter(self, name):
    with self._lock:
      self._add()
      self._part = name

  def _add(self):
    now = time.perf_counter()
    self._seconds[self._part] += now - self._since
    self._since = now

  def _move(self, source, target, seconds):
    with self._lock:
      self._add()
      seconds = min(max(seconds, 0.0), self._seconds[source])
      self._seconds[source] -= seconds
      self._seconds[target] += seconds

  def _listen(self, event, seconds, **_):
    if event == _COMPILED:
      self.compilations += 1
      if threading.get_ident() == self._thread:
        self._move(self._part, 'compile', seconds)


def _stamp(work) -> None:
  """Waits for one step after another, which the loop goes on beside."""
  while item := work.get():
    results, done = item
    # The loop itself meets an error of the step.
    with contextlib.suppress(Exception):
      jax.block_until_ready(results)
    done.append(time.perf_counter())


def process_age() -> float:
  """Seconds since this process began; 0 where the system does not say it."""
  try:
    with open('/proc/self/stat', encoding='utf-8') as file:
      ticks = int(file.read().rpartition(')')[2].split()[19])
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    age = now - ticks / os.sysconf('SC_CLK_TCK')
  except (OSError, AttributeError, ValueError, IndexError):
    return 0.0
  return age if 0 <= age < _MAX_AGE else 0.0
