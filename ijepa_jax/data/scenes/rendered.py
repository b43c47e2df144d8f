"""Whole sets of the embedded pictures: drawn in parallel, kept on disk."""

import multiprocessing
import warnings

import numpy as np
import tqdm

from ijepa_jax.data import workers
from ijepa_jax.data.scenes import scene
from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files

_RECORD = np.dtype(
  [('image', 'u1', (scene.SIZE, scene.SIZE, 3)), ('label', '<i4', (2,))]
)
# Images; fewer are drawn before a process has started.
_MIN_PER_PROCESS = 128


def _render(_, flavour, seed, start, stop):
  """Draws images start..stop in a worker process."""
  records = np.zeros(stop - start, _RECORD)
  for row, index in enumerate(range(start, stop)):
    records[row] = scene.render(flavour, seed, index)
    workers.report_progress()
  return records


def _render_all(flavour, seed, count, processes):
  title, size = f'making {flavour}', _MIN_PER_PROCESS
  processes = min(processes, count // size)
  # A process of multiprocessing may have no children of its own.
  if processes > 1 and not multiprocessing.parent_process():
    try:
      parts = workers.map_in_processes(
        _render,
        [
          (flavour, seed, i, min(i + size, count))
          for i in range(0, count, size)
        ],
        processes=processes,
        total=count,
        title=title,
        import_main=False,  # it may import JAX and have no guard
      )
      return np.concatenate(parts)
    except (UserError, OSError):
      warnings.warn(
        'workers could not make the images; making them in this process.',
        RuntimeWarning,
        stacklevel=3,
      )
  records = np.zeros(count, _RECORD)
  bar = tqdm.trange(count, desc=title, unit='img', disable=count < size or None)
  for index in bar:
    records[index] = scene.render(flavour, seed, index)
  return records


def _read(path, flavour, seed, count):
  """Returns records [count] mapped from the disk; None: they must be drawn."""
  try:
    records = np.lib.format.open_memmap(path, mode='r')
    valid = records.dtype == _RECORD and records.shape == (count,)
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (OSError, ValueError):
    valid = False
  if valid:
    # The last one tells whether the file is of this flavour and seed. Rounding
    # differs a little between machines.
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


def rendered_images(flavour, seed, count, processes=None):
  """Returns images 0..count-1 of a flavour and seed; drawn once, then read.

  They are kept in files.cache_dir(); if that cannot be written, a warning is
  given and they stay in memory. Safe when several processes ask at once: each
  draws the same bytes, and the file appears whole or not at all.

  Args:
    processes: that draw, by default one a usable core. They import neither JAX
      nor the caller's main module.

  Returns:
    images uint8 [count, 48, 48, 3] and labels int32 [count, 2], read-only; the
    images may be mapped from the disk.

  Raises:
    UserError: an unknown flavour, a negative seed, or count or processes
      below 1.
  """
  if processes is None:
    processes = workers.cores()
  scene.check(flavour, seed=seed, count=count, processes=processes)
  name = f'{flavour}-v{scene.VERSION}-seed{seed}-{count}.npy'
  path = files.cache_dir() / name
  records = _read(path, flavour, seed, count)
  if records is None:
    records = _render_all(flavour, seed, count, processes)
    _write(path, records)
    records.flags.writeable = False
  return np.asarray(records['image']), np.asarray(records['label'])
