"""Frozen features of a data set, computed once and kept on disk.

cache_dir/<key>/last.npy    float32 [N, D]    average pool of the last layer
cache_dir/<key>/last4.npy   float32 [N, 4 D]  of the last 4 layers, side by side
cache_dir/<key>/labels.npy  int32 [N, L]

The key is a hash of the parameters, the data and the transform; see
pretrained/stored_arrays.py for interrupted passes and several processes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax.data import loader
from ijepa_jax.pretrained import frozen_encoder, stored_arrays
from ijepa_jax.runtime import files, sharding

VERSION = 2  # raise it if the same input gives other features


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
  image = jnp.zeros((1, *transform.size, frozen.channels), jnp.uint8)
  last, last4 = jax.eval_shape(frozen.pooled, frozen.params, image)
  n = len(source)
  store = stored_arrays.StoredArrays(
    cache_dir,
    key,
    {
      'last': jax.ShapeDtypeStruct((n, last.shape[1]), np.float32),
      'last4': jax.ShapeDtypeStruct((n, last4.shape[1]), np.float32),
      'labels': jax.ShapeDtypeStruct((n, len(source.labels)), np.int32),
    },
  )
  batch_size = -(-batch_size // mesh.size) * mesh.size

  def make_dataset(start):
    return loader.local_batches(
      source,
      transform=transform,
      batch_size=batch_size,
      channels=frozen.channels,
      one_pass=True,
      start=start,
      workers=workers,
      max_bad_share=0.0,  # the accuracy would be of other images
    )

  store.compute(
    make_rows(frozen),
    frozen.params,
    make_dataset,
    mesh=mesh,
    keys=('image', 'label'),
    batch_size=batch_size,
    title='features',
  )
  return Features(**store.read(), key=key)


def make_rows(frozen):
  """Returns (the encoder's params, batch of image and label) -> rows."""

  def rows(params, batch):
    last, last4 = frozen.pooled(params, batch['image'])
    return {'last': last, 'last4': last4, 'labels': batch['label']}

  return rows


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
