"""Locks: one writer at a time for a folder or a file.

A lock is a file that names its owner. On a disk of this machine, or a network
disk with locks, the kernel releases it when its owner dies. Elsewhere (on a
bucket) the owner writes the file again every BEAT seconds, and another process
watches it for two and a half beats before it takes the lock.
"""

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid

import numpy as np
from absl import logging
from etils import epath

from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files

try:
  import fcntl
except ImportError:  # not on Windows
  fcntl = None


BEAT = 20.0  # seconds
_NO_LOCKS = errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK
_NO_LOCKS += (errno.EINVAL,)


class Busy(UserError):
  """Another process holds the lock: one sentence that says which."""


@contextlib.contextmanager
def only_writer(
  place, *, wait: bool = False, job: bool = False, beside: bool = False
):
  """A context that holds a lock, so that nobody else writes to `place`.

  Args:
    place: a folder on a disk, where it is made if needed, or on a bucket.
    wait: wait until the owner of the lock is done or dead, instead of refusing.
    job: one lock for all processes of this job, which call alike; process 0
      takes it. Otherwise each process is a writer of its own.
    beside: the lock is .<name>.lock beside `place`, which may be a file or not
      exist yet; otherwise it is .lock in the folder.

  Raises:
    Busy: another process holds the lock, and `wait` is False.
    OSError: the lock can't be written.
  """
  place = epath.Path(place)
  file = place.parent / f'.{place.name}.lock' if beside else place / '.lock'
  with contextlib.ExitStack() as stack:
    enter = _enter_by_job if job else _enter
    enter(stack, file, place, wait)
    yield


def _enter_by_job(stack, path, place, wait):
  """Process 0 takes the lock, or all processes refuse."""
  import jax
  from jax.experimental import multihost_utils

  refusal = None
  if jax.process_index() == 0:
    try:
      _enter(stack, path, place, wait)
    except (Busy, OSError) as error:
      refusal = error
  if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(
    np.int32(refusal is not None)
  ):
    refusal = refusal or Busy(f'Process 0 cannot write to {place}.')
  if refusal:
    raise refusal


def _enter(stack, path, place, wait):
  if files.is_url(path) or fcntl is None:
    stack.enter_context(_lease(path, place, wait))
    return
  stack.enter_context(_temporary_folder(path.parent))
  while True:
    _make_folder(path.parent)  # its previous owner may have removed it
    # Not 'w', which would erase the name of the owner.
    try:
      file = open(path, 'a+', encoding='utf-8')  # noqa: SIM115
    except FileNotFoundError:
      continue
    stack.callback(file.close)
    if not _flock(file, path, place, wait):
      stack.enter_context(_lease(path, place, wait))
      return
    # Its previous owner may have removed the file that this process waited for.
    with contextlib.suppress(OSError):
      if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
        break
    file.close()
  file.truncate(0)
  file.write(_signature())
  file.flush()
  stack.callback(_remove, path)


@contextlib.contextmanager
def _temporary_folder(path):
  """Makes a folder, and removes it and its new parents if they stay empty.

  A job that refuses its config inside its lock leaves nothing behind.
  """
  new = [p for p in (path, *path.parents) if not p.exists()]
  _make_folder(path)
  try:
    yield
  finally:
    with contextlib.suppress(OSError):
      for parent in new:
        os.rmdir(parent)


def _make_folder(path) -> None:
  """Makes a folder, whose parents other processes may remove meanwhile."""
  for _ in range(100):
    with contextlib.suppress(FileNotFoundError, FileExistsError):
      return path.mkdir(parents=True, exist_ok=True)
  path.mkdir(parents=True, exist_ok=True)


def _remove(path):
  with contextlib.suppress(OSError):
    path.unlink()


def _flock(file, path, place, wait) -> bool:
  """Takes the kernel's lock; returns False if the disk has no locks."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    owner = _owner(path)
    if not wait:
      raise _busy(owner, place) from None
    logging.info('Waiting for %s, which writes to %s.', owner, place)
    fcntl.flock(file, fcntl.LOCK_EX)
  except OSError as error:
    if error.errno not in _NO_LOCKS:
      raise
    return False
  return True


@contextlib.contextmanager
def _lease(path, place, wait):
  """Holds a lock file by writing it again and again."""
  while True:
    if not (content := _read(path)):
      break
    owner = _owner(path)
    logging.info('Watching whether %s still writes to %s.', owner, place)
    time.sleep(2.5 * BEAT)
    if _read(path) == content:
      break
    if not wait:
      raise _busy(owner, place)
  path.parent.mkdir(parents=True, exist_ok=True)
  signature, stop = _signature(), threading.Event()

  def beat():
    for count in range(1 << 62):
      with contextlib.suppress(OSError):  # The next write may succeed.
        path.write_text(f'{signature} {count}')
      if stop.wait(BEAT):
        break

  path.write_text(signature)
  thread = threading.Thread(target=beat, daemon=True)
  thread.start()
  try:
    yield
  finally:
    stop.set()
    thread.join()
    _remove(path)


def _signature() -> str:
  return json.dumps([socket.gethostname(), os.getpid(), uuid.uuid4().hex])


def _read(path) -> str:
  with contextlib.suppress(OSError):
    return path.read_text()
  return ''


def _owner(path) -> str:
  """-> the owner of the lock, for a sentence."""
  with contextlib.suppress(ValueError, TypeError):
    (host, pid, _), _ = json.JSONDecoder().raw_decode(_read(path))
    return f'process {pid} on {host}'
  return 'another process'


def _busy(owner, place) -> Busy:
  return Busy(
    f'{owner} writes to {place}: wait until it is done or end it, or take '
    'another place.'
  )
