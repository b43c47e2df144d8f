"""An encoder for users who want features: pictures in, NumPy arrays out.

It takes care of batches, devices and compilation; the evaluations, which read
whole data sets, have their own way (evals/features.py).
"""

import os
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ijepa_jax.errors import UserError, one_of
from ijepa_jax.pretrained import pictures
from ijepa_jax.pretrained.frozen_encoder import FrozenEncoder
from ijepa_jax.runtime import sharding


class ImageEncoder:
  """An encoder and the images that it takes; `load_encoder` makes it.

  Attributes:
    name: its source, and which encoder it is.
    image_size: (H, W) in pixels that pictures of a list are brought to.
    patch_size: in pixels.
    grid: rows and columns of patches at that size; N is their product.
    width: D, the features of a token.
    channels: of its images.
    mean: per channel, of pixels in [0, 1].
    std: the same of their standard deviation.
  """

  def __init__(
    self, frozen: FrozenEncoder, mesh: jax.sharding.Mesh, batch_size: int
  ):
    self.name, self.channels = frozen.name, frozen.channels
    self.image_size = frozen.image_size
    self.mean, self.std = frozen.mean, frozen.std
    self.patch_size = frozen.encoder.patch_size
    self.width = frozen.encoder.width
    self.grid = tuple(n // self.patch_size for n in self.image_size)
    self._frozen, self._mesh = frozen, mesh
    self._batch_sharding = sharding.batch_sharding(mesh)
    self._batch_size = -(-batch_size // mesh.size) * mesh.size
    self._reader = pictures.PictureReader(self.image_size, self.channels)
    functions = {
      'pooled': lambda params, image: frozen.encode(params, image).mean(1),
      'tokens': frozen.encode,
      'last4': lambda params, image: frozen.pooled(params, image)[1],
    }
    self._run = {kind: jax.jit(f) for kind, f in functions.items()}

  def __repr__(self) -> str:
    (h, w), p = self.image_size, self.patch_size
    return f'<{self.name}: {h} x {w}, patches of {p}, width {self.width}>'

  def features(
    self, images, kind: str = 'pooled', *, normalized: bool = False
  ) -> np.ndarray:
    """Computes features of images.

    Args:
      images: an array [n, H, W, C], taken as it is, H and W any multiples of
        the patch: uint8, or float pixels in [0, 1]. Or an iterable of paths,
        PIL images and uint8 arrays [H, W, C] or [H, W], each of them treated as
        `crop` says.
      kind: 'pooled', the average of the last layer's tokens; 'tokens'; or
        'last4', the averages of the last four layers side by side, each after
        the encoder's last norm (the wider input of the paper's probes).
      normalized: a float array is normalized already, and may have any values.

    Returns:
      float32 [n, D] if pooled, [n, N, D] if tokens, rows of patches one after
      the other, [n, 4 D] if last4 (fewer where there are fewer layers).

    Raises:
      UserError: there are none, they don't fit the encoder, or one can't be
        read, with its name.
    """
    run = self._run[one_of('kind', kind, self._run)]
    params = self._frozen.params
    done, running = [], None
    for batch in self._batches(images, normalized):
      size = self._batch_size if running else self._padded(len(batch))
      batch_BHWC = np.zeros((size, *batch.shape[1:]), batch.dtype)
      batch_BHWC[: len(batch)] = batch
      out = run(params, jax.device_put(batch_BHWC, self._batch_sharding))
      # The batch before is fetched, and the next one decoded, while this runs.
      if running:
        done.append(_fetch(*running))
      running = out, len(batch)
    if not running:
      raise UserError('There are no images.')
    return np.concatenate([*done, _fetch(*running)])

  def crop(self, images: Iterable) -> np.ndarray:
    """Returns the pixels that the encoder sees of pictures in a list.

    As in the evaluations: the right way up, in the encoder's channels, the
    shorter side brought to 256/224 of `image_size` (bicubic), and the middle
    taken.

    Args:
      images: an iterable, see `features`.

    Returns:
      uint8 [n, H, W, C].

    Raises:
      UserError: there are none, or one can't be read.
    """
    if not (batches := list(self._reader.batches(images, self._batch_size))):
      raise UserError('There are no images.')
    return np.concatenate(batches)

  def _padded(self, n: int) -> int:
    """Returns the batch that n images are computed in: devices times 2^k.

    One image does not cost a whole batch, and sets of all sizes take a handful
    of compilations, not one each.
    """
    size = self._mesh.size
    while size < n:
      size *= 2
    return min(size, self._batch_size)

  def _batches(self, images, normalized: bool) -> Iterator[np.ndarray]:
    """Yields [n, H, W, C], uint8 or normalized float32."""
    if isinstance(images, str | os.PathLike | Image.Image):
      raise UserError('images is one picture: give a list of it, [picture].')
    if not hasattr(images, '__array__'):
      if normalized:
        raise UserError('normalized is for arrays: pictures of a list are not.')
      yield from self._reader.batches(images, self._batch_size)
      return
    images = np.asarray(images)
    self._check(images, normalized)
    mean, std = np.float32(self.mean), np.float32(self.std)
    for start in range(0, len(images), self._batch_size):
      batch = images[start : start + self._batch_size]
      if batch.dtype != np.uint8:
        batch = batch.astype(np.float32)
        batch = batch if normalized else (batch - mean) / std
      yield batch

  def _check(self, images: np.ndarray, normalized: bool) -> None:
    """Refuses an array that is not images of this encoder."""
    shape, p = images.shape, self.patch_size
    if len(shape) != 4 or shape[-1] != self.channels:
      raise UserError(
        f'images has the shape {shape}: take [n, H, W, {self.channels}], '
        'channels last, or a list of pictures.'
      )
    if not shape[1] or not shape[2] or shape[1] % p or shape[2] % p:
      h, w = self.image_size
      raise UserError(
        f'Images of {shape[1]} x {shape[2]} pixels are no whole number of '
        f'patches of {p}: crop them, or give list(images), each of which is '
        f'brought to {h} x {w}.'
      )
    is_float = jnp.issubdtype(images.dtype, jnp.floating)
    if images.dtype != np.uint8 and not is_float:
      raise UserError(
        f'images is of {images.dtype}: take uint8, or float pixels in [0, 1].'
      )
    if normalized and not is_float:
      raise UserError('normalized is set and images is uint8: take floats.')
    if is_float and not normalized and images.size:
      least, most = float(images.min()), float(images.max())
      if not 0 <= least <= most <= 1:
        raise UserError(
          f'Float images go from {least:g} to {most:g}: take pixels in [0, 1], '
          'or uint8, or normalized=True where mean and std are seen to.'
        )


def _fetch(out: jax.Array, rows: int) -> np.ndarray:
  return np.asarray(out)[:rows]
