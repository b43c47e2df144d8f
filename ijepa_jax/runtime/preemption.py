"""SIGTERM and Ctrl-C: a job saves what it has before it goes.

The exit status tells: 0 where the job is complete, 143 after SIGTERM and 130
after Ctrl-C where it is not.
"""

import contextlib
import functools
import os
import select
import signal
import sys
import threading
import time

_NAMES = {signal.SIGINT: 'Ctrl-C', signal.SIGTERM: 'SIGTERM'}
_SAME = 1.0  # seconds: a launcher hands on what the terminal sent already
_PATIENCE = 5.0  # seconds for the main thread to come back from C++
_PARTING = 5.0  # seconds for the other processes to say that they go as well


class Stopped(SystemExit):
  """SIGTERM or Ctrl-C ended a job that is not complete.

  Args:
    number: of the signal. The process ends with 128 + number.
  """

  def __init__(self, number: int):
    super().__init__(128 + number)


class Watch:
  """What became of SIGTERM and Ctrl-C since the job began.

  The first one raises Stopped in the main thread, or is kept until a loop asks,
  see `together`. A second one ends the process at once.
  """

  def __init__(self):
    self.number = 0  # of the signal that came; 0: none
    self.raised = False
    self._kept = False
    self._agreeing = None

  def take_signals(self) -> None:
    """Again after anything else took them: jax.distributed does."""
    for number in _NAMES:
      signal.signal(number, self._ask)

  def _ask(self, number, frame):
    if self.number:
      return  # `listen` looks after a second one
    self.number = number
    if not self._kept:
      self.raised = True
      raise Stopped(number)
    _say(number, 'it stops as soon as all is saved; a second one ends it now')

  def listen(self, pipe: int) -> None:
    """Sees signals at once, also while the main thread is in C++.

    Args:
      pipe: what `signal.set_wakeup_fd` writes to.
    """
    first = None
    while True:
      unseen = first and not self.number and not self._kept
      if select.select([pipe], [], [], _PATIENCE if unseen else None)[0]:
        data = os.read(pipe, 1)
        if not data:  # the other end is closed
          os.close(pipe)
          return
        if (number := data[0]) in _NAMES:
          if first and time.monotonic() - first > _SAME:
            os._exit(128 + number)
          first, asking = first or time.monotonic(), number
      elif not self.number and not self._kept:
        _say(asking, _GOES_ON)
        os._exit(128 + asking)

  @contextlib.contextmanager
  def together(self):
    """Within, several processes keep a signal until all of them look at it.

    One process alone is ended at once until it calls `keep`.
    """
    import jax

    self._kept = jax.process_count() > 1
    try:
      yield
    finally:
      self._kept, self._agreeing = False, None

  def keep(self) -> None:
    """From now on there is something to save: signals are kept until the end of
    `together`, for `asked` and `check` to look at.
    """
    self._kept = True

  def asked(self) -> bool:
    """Whether a loop is to stop after this step, alike on every process.

    All call it alike often. Several are told one step later, so that none waits
    for its devices.
    """
    import jax

    if jax.process_count() == 1:
      return bool(self.number)
    before, self._agreeing = self._agreeing, _largest(self.number)
    return before is not None and bool(int(before))

  def agree(self) -> int:
    """The number of the signal that any process got; all call it. 0: none."""
    import jax

    if jax.process_count() == 1:
      return self.number
    return int(_largest(self.number))

  def check(self) -> None:
    """Ends the job where a signal is kept; all processes call it.

    Raises:
      Stopped: on all of them.
    """
    if number := self.agree():
      _say(number, _GOES_ON)
      raise Stopped(number)


_GOES_ON = 'stopped; the same command goes on from what is saved'
_active: Watch | None = None


@contextlib.contextmanager
def watch():
  """Watches for SIGTERM and Ctrl-C; within another, that one goes on.

  In the main thread only: elsewhere signals are never seen.
  """
  global _active
  if _active or threading.current_thread() is not threading.main_thread():
    yield _active or Watch()
    return
  _active = Watch()
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  thread = threading.Thread(target=_active.listen, args=(reader,), daemon=True)
  thread.start()
  pipe_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  before = {number: signal.getsignal(number) for number in _NAMES}
  _active.take_signals()
  try:
    yield _active
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(pipe_before)
    os.close(writer)
    _active = None


@contextlib.contextmanager
def job():
  """Around a whole program: a stopped job ends with one line, 143 or 130."""
  with watch() as watched:
    try:
      yield watched
    except BaseException:
      # Of any kind: C++ makes errors of its own of what a callback raises.
      if not watched.raised:
        raise
      _say(watched.number, _GOES_ON)
      _leave(128 + watched.number)


def _leave(status: int):
  """Without waiting for threads that compile, nor long for other processes."""
  jax = sys.modules.get('jax')
  if jax and jax.distributed.is_initialized():
    thread = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    thread.start()
    thread.join(_PARTING)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def _say(number: int, words: str) -> None:
  # Not through a stream, in which this may have interrupted a write.
  os.write(2, f'\n{_NAMES[number]}: {words}.\n'.encode())


@functools.cache
def _reduction():
  """The largest of one number a device."""
  import jax
  from jax.sharding import Mesh, NamedSharding, PartitionSpec

  mesh = Mesh(jax.devices(), 'all')
  whole = NamedSharding(mesh, PartitionSpec())
  split = NamedSharding(mesh, PartitionSpec('all'))
  return split, jax.jit(lambda x: x.max(), out_shardings=whole)


def _largest(number: int):
  """Over all processes, on its way: the devices compute it in their turn."""
  import jax
  import numpy as np

  split, reduce = _reduction()
  return reduce(
    jax.make_array_from_callback(
      (jax.device_count(),), split, lambda _: np.full(1, number, np.int32)
    )
  )
