"""Frozen features of a data set, computed once and kept on disk.

cache_dir/<key>/last.npy    float32 [N, D]    average pool of the last layer
cache_dir/<key>/last4.npy   float32 [N, 4 D]  of the last 4 layers, side by side
cache_dir/<key>/labels.npy  int32 [N, L]
cache_dir/<key>/done.json   {"rows": how many are there, ...}: an interrupted
                            pass goes on from it

The key is a hash of the parameters, the data and the transform. One process at
a time writes to a folder; who wants the same features waits for them.
"""

import dataclasses
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

VERSION = 2  # raise it whenever the same input gives other features
_FLUSH = 50  # batches between two notes of how far it is


@dataclasses.dataclass(frozen=True)
class Features:
  """Of N images, as numpy arrays mapped from the disk.

  Attributes:
    last: float32 [N, D], see `Frozen.pooled`.
    last4: float32 [N, 4 D].
    labels: int32 [N, L], the source's.
    key: names them: another checkpoint, data set or transform has another.
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
  """Features of every image of a source, in its order.

  Args:
    frozen: the encoder.
    source: see sources/.
    transform: without randomness, such as crop.CenterCrop.
    mesh: devices that share the work.
    cache_dir: of all features; with several processes on a disk that all see.
    batch_size: images at a time over all devices.
    workers: see pipeline.make_dataset.

  Raises:
    UserError: the images don't fit the encoder, or one can't be read.
  """
  key = sharding.of_first(
    files.name_of(
      kind='features',
      version=VERSION,
      encoder=[frozen.fingerprint, frozen.channels],
      images=source.identity,
      transform=repr(transform),
    )
  )
  if files.is_url(cache_dir):
    raise UserError(
      f'Features can not be kept in {cache_dir}: set cache_dir to a folder of '
      'this machine.'
    )
  folder = pathlib.Path(files.resolve(cache_dir)) / key
  n = len(source)
  image = jnp.zeros((1, *transform.size, frozen.channels), jnp.uint8)
  last, last4 = jax.eval_shape(frozen.pooled, frozen.params, image)
  shapes = {
    'last': (n, last.shape[1]),
    'last4': (n, last4.shape[1]),
    'labels': (n, len(source.labels)),
  }
  if _agree(_done(folder, shapes)) < n:
    with locks.only_writer(folder, wait=True, job=True):
      # Perhaps it was these that the process before was making.
      done = _agree(_done(folder, shapes))
      if done < n:
        _compute(
          *(frozen, source, transform, mesh, folder, shapes, done),
          *(batch_size, workers),
        )
  return Features(
    **{k: np.load(folder / f'{k}.npy', mmap_mode='r') for k in shapes}, key=key
  )


def _compute(
  frozen, source, transform, mesh, folder, shapes, done, batch_size, workers
):
  batch_size = -(-batch_size // mesh.size) * mesh.size
  first = done // batch_size
  dataset = loader.local_batches(
    source,
    transform=transform,
    batch_size=batch_size,
    channels=frozen.channels,
    one_pass=True,
    start=first,
    workers=workers,
    max_bad_share=0.0,  # accuracy on other images would be another number
  )
  run = jax.jit(
    lambda params, batch: (
      *frozen.pooled(params, batch['image']),
      batch['label'],
    ),
    out_shardings=sharding.replicated(mesh),
  )
  writer = jax.process_index() == 0
  arrays = _open(folder, shapes, new=done == 0) if writer else {}
  n = len(source)
  bar = tqdm.tqdm(
    total=n,
    initial=first * batch_size,
    desc='features',
    unit='img',
    disable=None,
  )

  def store(at, out):
    rows = min(batch_size, n - at)
    for name, values in zip(shapes, out, strict=True):
      if writer:
        arrays[name][at : at + rows] = np.asarray(values)[:rows]
    bar.update(rows)

  def note(rows):
    for array in arrays.values():
      array.flush()
    if writer:
      with files.atomic_write(folder / 'done.json') as path:
        path.write_text(json.dumps({'rows': rows, 'shapes': shapes}))

  # The batch before is fetched while this one runs.
  pending = None
  with bar, loader.device_batches(dataset, mesh, 'image', 'label') as batches:
    for step, batch in enumerate(batches, first):
      out = run(frozen.params, batch)
      if pending:
        store(*pending)
      pending = step * batch_size, out
      if (step + 1) % _FLUSH == 0:
        note(step * batch_size)
    store(*pending)
  note(n)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('features are on disk')


def _open(folder, shapes, new: bool) -> dict[str, np.memmap]:
  folder.mkdir(parents=True, exist_ok=True)
  return {
    name: np.lib.format.open_memmap(
      folder / f'{name}.npy',
      mode='w+' if new else 'r+',
      dtype=np.int32 if name == 'labels' else np.float32,
      shape=shape if new else None,
    )
    for name, shape in shapes.items()
  }


def _done(folder, shapes) -> int:
  """Rows that are on disk already; 0 where what is there can't be gone on."""
  try:
    done = json.loads((folder / 'done.json').read_text())
    there = {
      k: np.load(folder / f'{k}.npy', mmap_mode='r').shape for k in shapes
    }
  except (OSError, ValueError):
    return 0
  return done['rows'] if there == shapes else 0


def _agree(done: int) -> int:
  if jax.process_count() == 1:
    return done
  return int(multihost_utils.broadcast_one_to_all(np.int32(done)))
