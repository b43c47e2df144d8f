"""Worker processes: their start, their end, and a map over them."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing import parent_process

import tqdm

from ijepa_jax.errors import UserError


def start_grain_worker(index, count):
  """Ties a worker to its parent's life, and to nothing else."""
  # A launcher may send more than Ctrl-C and SIGTERM to the whole group.
  os.setpgrp()

  def watch():
    parent_process().join()
    os._exit(1)  # or it would wait for ever to hand out a batch

  threading.Thread(target=watch, daemon=True).start()


_worker = None  # what a worker was started with


def cores() -> int:
  """That this process may use."""
  usable = getattr(os, 'sched_getaffinity', lambda _: range(os.cpu_count()))
  return len(usable(0))


class _Stopped(Exception):
  """The parent wants no more."""


def report_progress(images: int = 1, bad: int = 0) -> None:
  """Counts what a job has done, and ends it where the parent wants no more."""
  _, stop, *counters = _worker
  for counter, more in zip(counters, (images, bad), strict=True):
    with counter.get_lock():
      counter.value += more
  if stop.is_set():
    raise _Stopped


@contextlib.contextmanager
def undisturbed():
  """Processes and threads that are started within see no Ctrl-C or SIGTERM.

  These may reach all processes at once, and it is the parent that decides.
  """
  asking = signal.SIGINT, signal.SIGTERM
  before = signal.pthread_sigmask(signal.SIG_BLOCK, asking)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(*given):
  global _worker
  _worker = given

  def watch():
    multiprocessing.parent_process().join()
    os._exit(1)  # killed, and nobody is there to tell

  threading.Thread(target=watch, daemon=True).start()


def _call(function, job):
  return function(_worker[0], *job)


def map_in_processes(
  function: Callable,
  jobs: Sequence[tuple],
  *,
  common=None,
  processes: int,
  total: int,
  max_bad: float = float('inf'),
) -> list:
  """[function(common, *job) for job in jobs], each in one of the processes.

  Whatever ends it early, Ctrl-C too, ends the jobs that run at their next
  `report_progress`.

  Args:
    function: of a module; it calls `report_progress` after each image.
    common: sent once to each process.
    processes: spawned, so the caller's main module needs a guard.
    total: images of all jobs, for the bar.
    max_bad: images; more are too many.

  Raises:
    UserError: too many images are bad, or a process died.
    Exception: what a job raised.
  """
  spawn = multiprocessing.get_context('spawn')
  stop, seen, bad = spawn.Event(), spawn.Value('q', 0), spawn.Value('q', 0)
  pool = concurrent.futures.ProcessPoolExecutor(
    min(processes, len(jobs)), spawn, _start, (common, stop, seen, bad)
  )
  try:
    with undisturbed():
      waiting = futures = [pool.submit(_call, function, job) for job in jobs]
    with tqdm.tqdm(total=total, unit='img', disable=None) as bar:
      while waiting:
        done, waiting = concurrent.futures.wait(waiting, 0.2)
        bar.update(seen.value - bar.n)
        for future in done:
          future.result()
        if bad.value > max_bad:
          raise UserError(
            f'{bad.value} of {seen.value} images can not be read, more than '
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
