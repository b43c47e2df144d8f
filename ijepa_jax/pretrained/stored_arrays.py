"""What frozen models make of a data set: arrays on disk, computed once.

folder/<name>.npy  an array of N rows
folder/done.json   {"rows": how many are complete, "shapes": ...}: an
                   interrupted pass goes on from there

One process at a time writes to a folder; others that need the same arrays wait
for it.
"""

import functools
import json
import math
import pathlib
import shutil
from collections.abc import Callable, Mapping

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils

from ijepa_jax.data import loader
from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files, locks, sharding

_FLUSH = 50  # batches between two updates of done.json


class StoredArrays:
  """The folder of arrays of N rows; process 0 alone writes.

  Args:
    cache_dir: of many such folders; several processes need a disk that all
      see.
    key: name of the folder, see files.name_of.
    shapes: name -> jax.ShapeDtypeStruct of the array.

  Raises:
    UserError: cache_dir is a URL.
  """

  def __init__(
    self, cache_dir, key: str, shapes: Mapping[str, jax.ShapeDtypeStruct]
  ):
    if files.is_url(cache_dir):
      raise UserError(
        f'Arrays cannot be kept in {cache_dir}: set cache_dir to a folder of '
        'this machine.'
      )
    self.folder = pathlib.Path(files.resolve(cache_dir)) / key
    self.shapes = shapes
    (self.rows,) = {x.shape[0] for x in shapes.values()}
    self._arrays = {}

  def done(self) -> int:
    """Returns the number of complete rows on disk, alike on every process.

    0 if the arrays have other shapes.
    """
    rows = 0
    try:
      rows = json.loads((self.folder / 'done.json').read_text())['rows']
      stored = {k: (x.shape, x.dtype) for k, x in self.read().items()}
      if stored != {k: (x.shape, x.dtype) for k, x in self.shapes.items()}:
        rows = 0
    except (OSError, ValueError):
      rows = 0
    if jax.process_count() == 1:
      return rows
    return int(multihost_utils.broadcast_one_to_all(np.int32(rows)))

  def read(self) -> dict[str, np.ndarray]:
    """Maps all arrays from disk."""
    return {
      k: np.load(self.folder / f'{k}.npy', mmap_mode='r') for k in self.shapes
    }

  def open(self, new: bool) -> None:
    """Opens all arrays for writing; `new` ones are made."""
    if jax.process_index() != 0:
      return
    self.folder.mkdir(parents=True, exist_ok=True)
    if new:
      (self.folder / 'done.json').unlink(missing_ok=True)
    self._arrays = {
      name: np.lib.format.open_memmap(
        self.folder / f'{name}.npy',
        mode='w+' if new else 'r+',
        dtype=x.dtype,
        shape=x.shape if new else None,
      )
      for name, x in self.shapes.items()
    }

  def write(self, start: int, rows: dict) -> None:
    """Writes rows from `start` on; those beyond the last row are padding."""
    for name, array in self._arrays.items():
      part = array[start : start + len(rows[name])]
      part[:] = np.asarray(rows[name])[: len(part)]

  def flush(self, rows: int) -> None:
    """Marks the first `rows` rows as complete."""
    for array in self._arrays.values():
      array.flush()
    if self._arrays:
      shapes = {k: x.shape for k, x in self.shapes.items()}
      with files.atomic_write(self.folder / 'done.json') as path:
        path.write_text(json.dumps({'rows': rows, 'shapes': shapes}))

  def compute(
    self,
    run: Callable,
    params,
    make_dataset: Callable,
    *,
    mesh,
    keys: tuple[str, ...],
    batch_size: int,
    title: str,
    advice: str = 'set cache_dir to a folder with more room',
  ) -> None:
    """Computes the rows that are missing; every process calls alike.

    Args:
      run: (params, batch) -> {name: rows}, of arrays on the devices.
      params: on the devices.
      make_dataset: start -> this process's batches from batch `start` on.
      mesh: devices that share the work.
      keys: what `run` takes of a batch.
      batch_size: rows of a batch over all devices.
      title: of the progress bar, and of the arrays.
      advice: what to do where the disk is too small.

    Raises:
      UserError: the disk can't hold them.
    """
    if (done := self.done()) == self.rows:
      return
    self._check_space(done, title, advice)
    with locks.only_writer(self.folder, wait=True, job=True):
      # Asked again: the process that was waited for may have computed these.
      if (done := self.done()) == self.rows:
        return
      first = done // batch_size
      self.open(new=first == 0)
      bar = tqdm.tqdm(
        total=self.rows,
        initial=first * batch_size,
        desc=title,
        unit='img',
        disable=None,
      )
      run = jax.jit(run, out_shardings=sharding.replicated(mesh))
      dataset = make_dataset(first)
      with bar, loader.device_batches(dataset, mesh, *keys) as batches:
        self._fill(functools.partial(run, params), batches, first, bar)

  def _check_space(self, done: int, title: str, advice: str) -> None:
    """Refuses what the disk can't hold: to write it would end the process."""
    row = sum(
      math.prod(x.shape[1:]) * np.dtype(x.dtype).itemsize
      for x in self.shapes.values()
    )
    need = row * (self.rows - done)
    folders = self.folder, *self.folder.parents
    disk = next(path for path in folders if path.exists())
    if need > (free := shutil.disk_usage(disk).free):
      raise UserError(
        f'The {title} of {self.rows} images need {need / 2**30:.1f} GiB of '
        f'disk and {disk} has {free / 2**30:.1f}: {advice}.'
      )

  def _fill(self, run, batches, first: int, bar) -> None:
    pending = None  # fetched from the devices while the next batch runs
    for step, batch in enumerate(batches, first):
      rows = run(batch)
      if pending:
        self.write(*pending)
      size = len(next(iter(rows.values())))
      pending = step * size, rows
      bar.update(min(size, self.rows - step * size))
      if (step + 1) % _FLUSH == 0:
        self.flush(step * size)
    self.write(*pending)
    self.flush(self.rows)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('arrays are on disk')
