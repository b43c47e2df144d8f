"""An encoder for whoever wants features: pictures in, NumPy arrays out.

Batches, devices and compilation are seen to here; the evaluations, which read
whole data sets, have their own way (evals/features.py).
"""

import concurrent.futures
import itertools
import os
import threading
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ijepa_jax.data import decode
from ijepa_jax.data.transforms import crop
from ijepa_jax.errors import UserError
from ijepa_jax.pretrained import frozen_encoder, load
from ijepa_jax.runtime import files, sharding


def load_encoder(
  path,
  *,
  which: str = 'target',
  step: int | None = None,
  image_size: int | tuple[int, int] | None = None,
  pos_embed: str = 'recompute',
  heads: int | None = None,
  dtype: str | None = None,
  batch_size: int = 64,
  mesh=None,
) -> 'ImageEncoder':
  """Loads an encoder of anybody's I-JEPA.

  Size, patch, resolution and normalisation are read from the file.

      encoder = ijepa_jax.load_encoder('runs/vit_l16')
      encoder.features(['a.jpg', 'b.jpg'])            # [2, D]
      encoder.features(images_BHWC, kind='tokens')    # [B, N, D]

  Args:
    path: of a training workdir, an export of python -m ijepa_jax.convert, a
      released .pth.tar file (which needs torch), a Hugging Face folder.
    which: 'target', which the paper evaluates; 'context'; or, of a workdir,
      'untrained', as the run began. Hugging Face's converted folders hold the
      context encoder alone: it is taken, and a warning says so.
    step: of a workdir's checkpoint; None: the newest that can be read.
    image_size: (H, W) in pixels, or the side of a square, that pictures of a
      list are brought to; None: what it was trained with.
    pos_embed: on another grid of patches than it was trained with, 'recompute'
      the sin-cos table or 'interpolate' the stored one, bicubically, as Hugging
      Face's `interpolate_pos_encoding` does. A table that was trained is taken
      by 'interpolate' alone.
    heads: of a .pth.tar file that does not say; None: the method's for its
      width.
    dtype: of the computation, 'float32' or 'bfloat16'; None: as it was trained,
      or float32 where that is not known.
    batch_size: images at a time over all devices.
    mesh: devices of this process that share the work, see sharding.make_mesh;
      None: all of them.

  Raises:
    UserError: there is nothing of the kind, it is damaged or of another
      model, or what is asked for does not fit it.
    UserError: a batch_size or a mesh that can't be.
  """
  if which == 'pixels':
    raise UserError('which is pixels: there is no encoder to that.')
  mesh = mesh or sharding.make_mesh(devices=jax.local_devices())
  if mesh.is_multi_process:
    raise UserError('The mesh has devices of other processes: leave them out.')
  if batch_size < 1:
    raise UserError(f'batch_size is {batch_size}: take 1 or more.')
  frozen = load.load(
    path,
    mesh=mesh,
    which=which,
    step=step,
    image_size=image_size,
    pos_embed=pos_embed,
    heads=heads,
    dtype=dtype,
  )
  return ImageEncoder(frozen, mesh, batch_size)


class ImageEncoder:
  """An encoder and how it wants its images; `load_encoder` makes it.

  Attributes:
    name: where it is from, and which encoder it is.
    image_size: (H, W) in pixels that pictures of a list are brought to.
    patch_size: in pixels.
    grid: rows and columns of patches at that size; N is their product.
    width: D, the features of a token.
    channels: of its images.
    mean, std: per channel, of pixels in [0, 1].
  """

  def __init__(
    self,
    frozen: frozen_encoder.FrozenEncoder,
    mesh: jax.sharding.Mesh,
    batch_size,
  ):
    self.name, self.channels = frozen.name, frozen.channels
    self.image_size = frozen.image_size
    self.mean, self.std = frozen.mean, frozen.std
    self.patch_size = frozen.encoder.patch_size
    self.width = frozen.encoder.width
    self.grid = tuple(n // self.patch_size for n in self.image_size)
    self._frozen, self._mesh = frozen, mesh
    self._split = sharding.batch_sharding(mesh)
    self._batch_size = -(-batch_size // mesh.size) * mesh.size
    self._transform = crop.evaluation_crop(self.image_size)
    # Pillow decodes when pixels are first asked for, and the same picture may
    # stand in a list twice.
    self._lock = threading.Lock()
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
    """Features of images.

    Args:
      images: an array [n, H, W, C], taken as it is, H and W any multiples of
        the patch: uint8, or float pixels in [0, 1]. Or an iterable of paths,
        PIL images and uint8 arrays [H, W, C] or [H, W], each of them treated as
        `crop` says.
      kind: 'pooled', the average of the last layer's tokens; 'tokens'; or
        'last4', the averages of the last four layers side by side, each after
        the encoder's last norm (the wider input of the paper's probes).
      normalized: a float array is normalised already, and may have any values.

    Returns:
      float32 [n, D] if pooled, [n, N, D] if tokens, rows of patches one after
      the other, [n, 4 D] if last4 (fewer where there are fewer layers).

    Raises:
      UserError: there are none, they don't fit the encoder, or one can't be
        read, with its name.
    """
    if kind not in self._run:
      raise UserError(f'kind is {kind!r}: take {", ".join(self._run)}.')
    run, params = self._run[kind], self._frozen.params
    done, running = [], None
    for batch in self._batches(images, normalized):
      size = self._batch_size if running else self._padded(len(batch))
      batch_BHWC = np.zeros((size, *batch.shape[1:]), batch.dtype)
      batch_BHWC[: len(batch)] = batch
      out = run(params, jax.device_put(batch_BHWC, self._split))
      # The batch before is fetched, and the next one decoded, while this runs.
      if running:
        done.append(_fetch(*running))
      running = out, len(batch)
    if not running:
      raise UserError('There are no images.')
    return np.concatenate([*done, _fetch(*running)])

  def crop(self, images: Iterable) -> np.ndarray:
    """What the encoder sees of pictures in a list: uint8 [n, H, W, C].

    As the evaluations see them: the right way up, in the encoder's channels,
    the shorter side brought to 256/224 of `image_size` (bicubic), and the
    middle taken.

    Args:
      images: an iterable, see `features`.

    Raises:
      UserError: there are none, or one can't be read.
    """
    if not (batches := list(self._crops(images))):
      raise UserError('There are no images.')
    return np.concatenate(batches)

  def _padded(self, n: int) -> int:
    """The batch that so few images are computed in: the devices times a power
    of two. One image does not cost a whole batch, and sets of all sizes take a
    handful of compilations, not one each."""
    size = self._mesh.size
    while size < n:
      size *= 2
    return min(size, self._batch_size)

  def _batches(self, images, normalized: bool) -> Iterator[np.ndarray]:
    """uint8, or normalised float32, [n, H, W, C]; only the last is smaller."""
    if isinstance(images, str | os.PathLike | Image.Image):
      raise UserError('images is one picture: give a list of it, [picture].')
    if not hasattr(images, '__array__'):
      if normalized:
        raise UserError('normalized is for arrays: pictures of a list are not.')
      yield from self._crops(images)
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
    floats = jnp.issubdtype(images.dtype, jnp.floating)
    if images.dtype != np.uint8 and not floats:
      raise UserError(
        f'images is of {images.dtype}: take uint8, or float pixels in [0, 1].'
      )
    if normalized and not floats:
      raise UserError('normalized is set and images is uint8: take floats.')
    if floats and not normalized and images.size:
      least, most = float(images.min()), float(images.max())
      if not 0 <= least <= most <= 1:
        raise UserError(
          f'Float images go from {least:g} to {most:g}: take pixels in [0, 1], '
          'or uint8, or normalized=True where mean and std are seen to.'
        )

  def _crops(self, images: Iterable) -> Iterator[np.ndarray]:
    """uint8 [n, H, W, C], read by all cores."""
    numbered = enumerate(images)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      while some := list(itertools.islice(numbered, self._batch_size)):
        yield np.stack(list(pool.map(self._read, *zip(*some, strict=True))))

  def _read(self, number: int, picture) -> np.ndarray:
    """uint8 [H, W, C] of one picture."""
    name = f'Picture {number}'
    try:
      if isinstance(picture, str | os.PathLike):
        name = str(picture)
        encoded = files.resolve(picture).read_bytes()
        if not encoded.startswith(decode.NPY_MAGIC):
          return self._transform(decode.decode(encoded, self._decodable()))
        picture = decode.decode_npy(encoded)
      if not isinstance(picture, Image.Image):
        picture = self._array(picture)
      if isinstance(picture, Image.Image):
        with self._lock:
          picture = decode.upright(picture, self._decodable())
      return self._transform(picture)
    except (OSError, ValueError, decode.BadImage) as error:
      raise UserError(f'{name} can not be read: {error}') from error

  def _array(self, picture) -> Image.Image | np.ndarray:
    """Pillow's where the channels are to be changed."""
    x = np.asarray(picture) if hasattr(picture, '__array__') else None
    if x is None or x.dtype != np.uint8 or x.ndim not in (2, 3) or not x.size:
      what = type(picture).__name__ if x is None else f'{x.dtype} {x.shape}'
      raise UserError(
        f'it is {what}; take a path, a PIL image or a uint8 array [H, W, C].'
      )
    x = x if x.ndim == 3 else x[..., None]
    if x.shape[-1] == self.channels:
      return x
    if x.shape[-1] not in decode.MODES:
      raise UserError(f'it has {x.shape[-1]} channels, not {self.channels}.')
    return Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x)

  def _decodable(self) -> int:
    if self.channels not in decode.MODES:
      raise UserError(
        f'the encoder takes {self.channels} channels and pictures have up to '
        f'{max(decode.MODES)}, so give arrays, or .npy files.'
      )
    return self.channels


def _fetch(out: jax.Array, rows: int) -> np.ndarray:
  return np.asarray(out)[:rows]
