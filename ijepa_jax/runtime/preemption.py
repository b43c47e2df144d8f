"""SIGTERM and Ctrl-C: a job saves its state before it ends.

The exit status is 0 if the job is complete; if it is not, 143 after SIGTERM and
130 after Ctrl-C.
"""

import contextlib
import functools
import os
import select
import signal
import sys
import threading
import time

from ijepa_jax.runtime.distributed import peers

_NAMES = {signal.SIGINT: 'Ctrl-C', signal.SIGTERM: 'SIGTERM'}
# Seconds.
_SAME_SIGNAL = 1.0  # a launcher passes on what the terminal has sent already
_PATIENCE = 5.0  # for the main thread to return from C++
_FAREWELL = 5.0  # for the other processes to disconnect as well


class Stopped(SystemExit):
  """SIGTERM or Ctrl-C ended a job that is not complete.

  Args:
    number: of the signal. The process ends with 128 + number.
  """

  def __init__(self, number: int):
    super().__init__(128 + number)


class Preemption:
  """SIGTERM and Ctrl-C since the job began.

  The first signal raises Stopped in the main thread, or is kept until a loop
  asks for it, see `together`. A second one ends the process at once.

  Attributes:
    number: of the signal that came; 0: none.
    raised: it has raised Stopped.
  """

  def __init__(self):
    self.number = 0
    self.raised = False
    self._deferred = False  # a signal is kept and does not raise
    self._agreement = None  # on its way, see `requested`

  def take_signals(self) -> None:
    """Takes the signals; again after jax.distributed, which takes SIGTERM."""
    for number in _NAMES:
      signal.signal(number, self._handle)

  def _handle(self, number, frame):
    if self.number:
      return  # `listen` ends the process at a second one
    self.number = number
    if not self._deferred:
      self.raised = True
      raise Stopped(number)
    _print(number, 'it stops as soon as all is saved; a second one ends it now')

  def listen(self, pipe: int) -> None:
    """Ends the process at a second signal, or if the main thread is in C++.

    For a thread of its own; returns when the pipe is closed.

    Args:
      pipe: its other end is given to `signal.set_wakeup_fd`.
    """
    began = None  # when the first signal came
    while True:
      unhandled = began and not self.number and not self._deferred
      if select.select([pipe], [], [], _PATIENCE if unhandled else None)[0]:
        data = os.read(pipe, 1)
        if not data:  # the other end is closed
          os.close(pipe)
          return
        if (number := data[0]) in _NAMES:
          if began and time.monotonic() - began > _SAME_SIGNAL:
            os._exit(128 + number)
          began, last = began or time.monotonic(), number
      elif not self.number and not self._deferred:
        _print(last, _RESUMABLE)
        os._exit(128 + last)

  @contextlib.contextmanager
  def together(self):
    """A context in which several processes stop together.

    They keep a signal until all of them ask for it. A single process is ended
    at once until it calls `keep`.
    """
    import jax

    self._deferred = jax.process_count() > 1
    try:
      yield
    finally:
      self._deferred, self._agreement = False, None

  def keep(self) -> None:
    """Keeps signals from now on, since there is a state to save.

    Until `together` ends; `requested` and `check` ask for them.
    """
    self._deferred = True

  def requested(self) -> bool:
    """Returns whether a loop has to stop after this step, alike everywhere.

    All processes call it equally often. Several processes learn it one step
    later, so that none waits for its devices.
    """
    import jax

    if jax.process_count() == 1:
      return bool(self.number)
    previous, self._agreement = self._agreement, _largest(self.number)
    return previous is not None and bool(int(previous))

  def agree(self) -> int:
    """Returns the number of a signal to any process, 0: none; all call it."""
    import jax

    if jax.process_count() == 1:
      return self.number
    return int(_largest(self.number))

  def check(self) -> None:
    """Ends the job if any process has kept a signal; all call it.

    Raises:
      Stopped: on all of them.
    """
    if number := self.agree():
      _print(number, _RESUMABLE)
      raise Stopped(number)


_RESUMABLE = 'stopped; the same command goes on from what is saved'
_active: Preemption | None = None


@contextlib.contextmanager
def watch():
  """A context that gives a Preemption; within another, it gives that one.

  In other threads than the main one it never sees a signal.
  """
  global _active
  if _active or threading.current_thread() is not threading.main_thread():
    yield _active or Preemption()
    return
  _active = Preemption()
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  thread = threading.Thread(target=_active.listen, args=(reader,), daemon=True)
  thread.start()
  previous_pipe = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  handlers = {number: signal.getsignal(number) for number in _NAMES}
  _active.take_signals()
  try:
    yield _active
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(previous_pipe)
    os.close(writer)
    _active = None


@contextlib.contextmanager
def job():
  """A context around a whole program: a stopped job ends with one line.

  Its exit status is 143 or 130.
  """
  with watch() as preemption:
    try:
      yield preemption
    except BaseException as error:
      # Any class: C++ code turns what a callback raises into its own errors.
      if preemption.raised:
        _print(preemption.number, _RESUMABLE)
        _exit(128 + preemption.number)
      peers.fail(error)
      raise


def _exit(status: int):
  """Exits without waiting for compilations, nor long for other processes."""
  peers.tell(status, _NAMES[status - 128])
  jax = sys.modules.get('jax')
  if jax and jax.distributed.is_initialized():
    thread = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    thread.start()
    thread.join(_FAREWELL)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def _print(number: int, words: str) -> None:
  # Not through a stream: the signal may have interrupted a write to it.
  os.write(2, f'\n{_NAMES[number]}: {words}.\n'.encode())


@functools.cache
def _reduction():
  """-> sharding of one number a device, and the function of their maximum."""
  import jax
  from jax.sharding import Mesh, NamedSharding, PartitionSpec

  mesh = Mesh(jax.devices(), 'all')
  everywhere = NamedSharding(mesh, PartitionSpec())
  by_device = NamedSharding(mesh, PartitionSpec('all'))
  return by_device, jax.jit(lambda x: x.max(), out_shardings=everywhere)


def _largest(number: int):
  """-> the maximum over all processes, which the devices compute in turn."""
  import jax
  import numpy as np

  by_device, reduce = _reduction()
  return reduce(
    jax.make_array_from_callback(
      (jax.device_count(),), by_device, lambda _: np.full(1, number, np.int32)
    )
  )
