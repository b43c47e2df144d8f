"""Frozen features of a data set, computed once and kept on disk.

cache_dir/<key>/last.npy    float32 [N, D]    average pool of the last layer
cache_dir/<key>/last4.npy   float32 [N, 4 D]  of the last 4 layers, side by side
cache_dir/<key>/labels.npy  int32 [N, L]
cache_dir/<key>/done.json   {"rows": how many are complete, "shapes": ...}: an
                            interrupted pass goes on from there

The key is a hash of the parameters, the data and the transform. One process at
a time writes to a folder; others that need the same features wait for it.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.experimental import multihost_utils

from ijepa_jax.data import loader
from ijepa_jax.errors import UserError
from ijepa_jax.pretrained import frozen_encoder
from ijepa_jax.runtime import files, locks, sharding

VERSION = 2  # raise it if the same input gives other features
_FLUSH = 50  # batches between two updates of done.json


@dataclasses.dataclass(frozen=True)
class Features:
  """Features of N images, as NumPy arrays mapped from disk.

  Attributes:
    last: float32 [N, D], see `FrozenEncoder.pooled`.
    last4: float32 [N, 4 D].
    labels: int32 [N, L], the source's.
    key: name of the folder: another checkpoint, data set or transform has
      another.
  """

  last: np.ndarray
  last4: np.ndarray
  labels: np.ndarray
  key: str


def extract(
  frozen: frozen_encoder.FrozenEncoder | frozen_encoder.RawPixels,
  source,
  transform,
  *,
  mesh,
  cache_dir,
  batch_size: int = 256,
  workers: int = 0,
) -> Features:
  """Returns the features of every image of a source, in its order.

  They are computed if they are not on disk yet; every process calls alike.

  Args:
    source: see data/sources.
    transform: without randomness, such as crop.CenterCrop.
    mesh: devices that share the work.
    cache_dir: of all features; several processes need a disk that all see.
    batch_size: images at a time over all devices.
    workers: see pipeline.make_dataset.

  Raises:
    UserError: the images don't fit the encoder, or one can't be read.
  """
  key = _make_key(frozen, source, transform)
  if files.is_url(cache_dir):
    raise UserError(
      f'Features can not be kept in {cache_dir}: set cache_dir to a folder of '
      'this machine.'
    )
  image = jnp.zeros((1, *transform.size, frozen.channels), jnp.uint8)
  last, last4 = jax.eval_shape(frozen.pooled, frozen.params, image)
  n = len(source)
  shapes = {
    'last': (n, last.shape[1]),
    'last4': (n, last4.shape[1]),
    'labels': (n, len(source.labels)),
  }
  store = FeatureStore(pathlib.Path(files.resolve(cache_dir)) / key, shapes)
  batch_size = -(-batch_size // mesh.size) * mesh.size
  if store.done() < n:
    with locks.only_writer(store.folder, wait=True, job=True):
      # Asked again: the process that was waited for may have computed these.
      if (done := store.done()) < n:
        first = done // batch_size
        dataset = loader.local_batches(
          source,
          transform=transform,
          batch_size=batch_size,
          channels=frozen.channels,
          one_pass=True,
          start=first,
          workers=workers,
          max_bad_share=0.0,  # the accuracy would be of other images
        )
        _compute(frozen, dataset, mesh, store, batch_size, first)
  return Features(**store.read(), key=key)


def _make_key(frozen, source, transform) -> str:
  """Names features by all that they depend on, alike on every process."""
  name = files.name_of(
    kind='features',
    version=VERSION,
    encoder=[frozen.fingerprint, frozen.channels],
    images=source.identity,
    transform=repr(transform),
  )
  return sharding.of_first(name)


def _compute(frozen, dataset, mesh, store, batch_size: int, first: int) -> None:
  """Writes the features of `dataset`, which starts at batch `first`."""

  @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
  def run(params, batch):
    last, last4 = frozen.pooled(params, batch['image'])
    return {'last': last, 'last4': last4, 'labels': batch['label']}

  n = store.rows
  store.open(new=first == 0)
  bar = tqdm.tqdm(
    total=n,
    initial=first * batch_size,
    desc='features',
    unit='img',
    disable=None,
  )

  def write(start, features):
    store.write(start, features)
    bar.update(min(batch_size, n - start))

  # The batch before is fetched from the devices while this one runs.
  pending = None
  with bar, loader.device_batches(dataset, mesh, 'image', 'label') as batches:
    for step, batch in enumerate(batches, first):
      features = run(frozen.params, batch)
      if pending:
        write(*pending)
      pending = step * batch_size, features
      if (step + 1) % _FLUSH == 0:
        store.flush(step * batch_size)
    write(*pending)
  store.flush(n)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('features are on disk')


class FeatureStore:
  """The folder of one set of features; process 0 alone writes.

  Args:
    folder: of the arrays and done.json.
    shapes: name -> shape; 'labels' are int32, the others float32.
  """

  def __init__(self, folder: pathlib.Path, shapes: dict[str, tuple[int, int]]):
    self.folder, self.shapes = folder, shapes
    self.rows = shapes['labels'][0]
    self._arrays = {}

  def done(self) -> int:
    """Returns the number of complete rows on disk, alike on every process.

    0 if the arrays have other shapes.
    """
    rows = 0
    try:
      rows = json.loads((self.folder / 'done.json').read_text())['rows']
      if {k: x.shape for k, x in self.read().items()} != self.shapes:
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
        dtype=np.int32 if name == 'labels' else np.float32,
        shape=shape if new else None,
      )
      for name, shape in self.shapes.items()
    }

  def write(self, start: int, features: dict) -> None:
    """Writes rows from `start` on; those beyond the last row are padding."""
    for name, array in self._arrays.items():
      rows = array[start : start + len(features[name])]
      rows[:] = np.asarray(features[name])[: len(rows)]

  def flush(self, rows: int) -> None:
    """Marks the first `rows` rows as complete."""
    for array in self._arrays.values():
      array.flush()
    if self._arrays:
      with files.atomic_write(self.folder / 'done.json') as path:
        path.write_text(json.dumps({'rows': rows, 'shapes': self.shapes}))
