"""Maps a function over jobs in spawned processes, and starts Grain's workers.

With a progress bar and clean cancellation; no process outlives its parent.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Sequence

import tqdm

from ijepa_jax.errors import UserError

# (common argument, stop event, counters of images and of bad ones) of this
# worker process.
_worker = None


def cores() -> int:
  """Returns how many cores this process may use."""
  usable = getattr(os, 'sched_getaffinity', lambda _: range(os.cpu_count()))
  return len(usable(0))


class _Stopped(Exception):
  """The parent wants no more."""


def report_progress(images: int = 1, bad: int = 0) -> None:
  """Counts the images a job has done, and ends it if the parent has stopped."""
  _, stop, *counters = _worker
  for counter, increment in zip(counters, (images, bad), strict=True):
    with counter.get_lock():
      counter.value += increment
  if stop.is_set():
    raise _Stopped


def start_grain_worker(index, count):
  """Makes a Grain worker end with its parent, and with nothing else."""
  # Out of the parent's process group: a launcher may send more signals to the
  # whole group than Ctrl-C and SIGTERM.
  os.setpgrp()
  _exit_with_parent()


def _exit_with_parent():
  """Starts a thread that ends this process when its parent is dead."""

  def wait():
    multiprocessing.parent_process().join()
    os._exit(1)  # else it would wait for ever to hand out its result

  threading.Thread(target=wait, daemon=True).start()


def hush_resource_tracker():
  """Has Python not warn of shared memory that a stopped job leaves.

  Its tracker, a process that starts with the first worker, removes it.
  """
  option = 'ignore:resource_tracker'
  if option not in sys.warnoptions:
    sys.warnoptions.append(option)


@contextlib.contextmanager
def undisturbed():
  """Processes and threads that are started within see no Ctrl-C or SIGTERM.

  These may reach all processes at once, and it is the parent that decides.
  """
  signals = signal.SIGINT, signal.SIGTERM
  before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_main():
  """Processes that are spawned within do not import the main module."""
  main = sys.modules['__main__']
  sys.modules['__main__'] = types.ModuleType('__main__')
  try:
    yield
  finally:
    sys.modules['__main__'] = main


def _start(*worker):
  global _worker
  _worker = worker
  _exit_with_parent()


def _call(function, job):
  return function(_worker[0], *job)


def map_in_processes(
  function: Callable,
  jobs: Sequence[tuple],
  *,
  common=None,
  processes: int,
  total: int,
  title: str = '',
  max_bad: float = float('inf'),
  import_main: bool = True,
) -> list:
  """Returns [function(common, *job) for job in jobs], each in some process.

  Whatever ends it early, Ctrl-C too, ends the running jobs at their next
  `report_progress`.

  Args:
    function: of a module; it calls `report_progress` after each image.
    common: sent once to each process.
    processes: how many are spawned at most.
    total, title: of the progress bar, in images.
    max_bad: how many images may be bad.
    import_main: whether the processes import the caller's main module, which
      then needs a guard; without it `common` may hold nothing from there.

  Raises:
    UserError: too many images are bad, or a process died.
    Exception: a job raised it.
  """
  hush_resource_tracker()
  spawn = multiprocessing.get_context('spawn')
  stop, images, bad = spawn.Event(), spawn.Value('q', 0), spawn.Value('q', 0)
  pool = concurrent.futures.ProcessPoolExecutor(
    min(processes, len(jobs)), spawn, _start, (common, stop, images, bad)
  )
  try:
    main = contextlib.nullcontext() if import_main else _without_main()
    with undisturbed(), main:
      # The first job starts all processes.
      waiting = futures = [pool.submit(_call, function, job) for job in jobs]
    with tqdm.tqdm(desc=title, total=total, unit='img', disable=None) as bar:
      while waiting:
        done, waiting = concurrent.futures.wait(waiting, 0.2)
        bar.update(images.value - bar.n)
        for future in done:
          future.result()
        if bad.value > max_bad:
          raise UserError(
            f'{bad.value} of {images.value} images cannot be read, more than '
            'max_bad_share allows: the log names them.'
          )
    return [future.result() for future in futures]
  except concurrent.futures.BrokenExecutor as error:
    raise UserError(
      'A process died, perhaps for want of memory: take fewer processes; what '
      'is finished is kept.'
    ) from error
  finally:
    stop.set()
    pool.shutdown(cancel_futures=True)
