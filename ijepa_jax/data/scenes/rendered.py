"""Whole sets of the embedded pictures: made in parallel, kept on disk."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import warnings

import numpy as np
import tqdm

from ijepa_jax.data.scenes import scene
from ijepa_jax.data.workers import cores
from ijepa_jax.runtime import files

_RECORD = np.dtype(
  [('image', 'u1', (scene.SIZE, scene.SIZE, 3)), ('label', '<i4', (2,))]
)
_WORKER_SHARE = 128  # images; fewer are drawn before a worker has started


def _render_into(records, flavour, seed, start=0):
  for offset in range(len(records)):
    records[offset] = scene.render(flavour, seed, start + offset)


def _serve(flavour, seed, start, stop):
  """What a worker runs: records start..stop as bytes on standard output."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it instead
  chunk = np.zeros(1, _RECORD)
  try:
    for index in range(start, stop):
      _render_into(chunk, flavour, seed, index)
      sys.stdout.buffer.write(chunk.tobytes())
    sys.stdout.buffer.flush()
  except BrokenPipeError:
    os._exit(1)  # the parent has gone: nobody to tell


def _render_parallel(records, flavour, seed, workers, bar):
  """Fills `records` from plain Python processes -> whether all went well.

  Not multiprocessing: its spawned children import the caller's main module
  again, which takes jax with it and needs a main guard.
  """
  package = str(pathlib.Path(__file__).resolve().parent.parent)
  path = os.pathsep.join(filter(None, [package, os.environ.get('PYTHONPATH')]))
  threads = dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'), '1')
  environment = os.environ | threads | {'PYTHONPATH': path}
  edges = np.linspace(0, len(records), workers + 1).astype(int).tolist()
  processes, readers, lock = [], [], threading.Lock()

  def receive(process, part):
    for at in range(0, len(part), 32):
      target = part[at : at + 32]
      data = process.stdout.read(target.nbytes)
      if len(data) < target.nbytes:
        return
      target[:] = np.frombuffer(data, _RECORD)
      with lock:
        bar.update(len(target))

  try:
    for start, stop in itertools.pairwise(edges):
      call = f'gallery._serve({flavour!r}, {seed}, {start}, {stop})'
      process = subprocess.Popen(
        [
          sys.executable,
          '-c',
          f'from ijepa_jax.data.scenes import rendered; {call}',
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environment,
      )
      processes.append(process)
      part = records[start:stop]
      reader = threading.Thread(target=receive, args=(process, part))
      readers.append(reader)
      reader.start()
    for reader in readers:
      reader.join()
    return all(process.wait() == 0 for process in processes)
  except OSError:  # no process could be started
    return False
  finally:
    for process in processes:
      process.kill()
    for reader in readers:
      reader.join()
    for process in processes:
      process.wait()
      process.stdout.close()


def _make(flavour, seed, count, workers):
  records = np.zeros(count, _RECORD)
  workers = min(workers, count // _WORKER_SHARE)
  name = f'making {flavour}'
  with tqdm.tqdm(total=count, desc=name, unit='', disable=not workers) as bar:
    if workers > 1:
      if _render_parallel(records, flavour, seed, workers, bar):
        return records
      warnings.warn(
        'workers could not make the images; making them in this process.',
        RuntimeWarning,
        stacklevel=3,
      )
      bar.reset()
    for start in range(0, count, 32):
      part = records[start : start + 32]
      _render_into(part, flavour, seed, start)
      bar.update(len(part))
  return records


def _read(path, flavour, seed, count):
  """-> records [count] mapped from the disk, or None when they must be made."""
  try:
    records = np.lib.format.open_memmap(path, mode='r')
    known = records.dtype == _RECORD and records.shape == (count,)
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (OSError, ValueError):
    known = False
  if known:
    # Whole, but is it ours? Rounding differs a little between machines.
    image, labels = scene.render(flavour, seed, count - 1)
    last = records[-1]
    error = np.abs(last['image'].astype(int) - image).mean()
    if error < 1 and np.array_equal(last['label'], labels):
      return records
  warnings.warn(
    f'{path} is damaged or foreign; making it again.',
    RuntimeWarning,
    stacklevel=3,
  )
  return None


def _write(path, records):
  try:
    with files.atomic_write(path) as temporary, open(temporary, 'wb') as file:
      np.save(file, records)
  except OSError as error:
    warnings.warn(
      f'the images stay in memory only: {path.parent} cannot be written '
      f'({error.strerror}); set IJEPA_JAX_CACHE to a folder that can.',
      RuntimeWarning,
      stacklevel=3,
    )


def rendered_images(flavour, seed, count, cache_dir=None, workers=None):
  """Images 0..count-1 of a flavour and seed: made once, then read from disk.

  Safe when several processes ask at once: each makes the same bytes, and the
  file appears whole or not at all.

  Args:
    cache_dir: default files.cache_dir(). When it can not be written, a warning
      is given and the images stay in memory.
    workers: processes that draw, default one a usable core. They import
      neither jax nor the caller's main module.

  Returns:
    images uint8 [count,48,48,3] and labels int32 [count,2], read-only; the
    images may be mapped from the disk.

  Raises:
    UserError: an unknown flavour, a negative seed, or count or workers
      below 1.
  """
  if workers is None:
    workers = cores()
  scene.check(flavour, seed=seed, count=count, workers=workers)
  folder = pathlib.Path(cache_dir or files.cache_dir())
  path = folder / f'{flavour}-v{scene.VERSION}-seed{seed}-{count}.npy'
  records = _read(path, flavour, seed, count)
  if records is None:
    records = _make(flavour, seed, count, workers)
    _write(path, records)
    records.flags.writeable = False
  return np.asarray(records['image']), np.asarray(records['label'])
