"""Encodes the images that are packed, and measures their pixels."""

import dataclasses
import io

import numpy as np
from PIL import Image

from ijepa_jax.data import decode
from ijepa_jax.data.transforms import crop
from ijepa_jax.errors import UserError

_LOSSY = 'JPEG', 'MPO', 'WEBP'
_QUALITY = 95  # of lossy images that have to be encoded again
_POWERS = np.stack([np.arange(256), np.arange(256) ** 2], 1)


@dataclasses.dataclass(frozen=True)
class Encoding:
  """How images are stored: by default their bytes as they are.

  Attributes:
    resize: shorter side in pixels that larger images get, bicubic with
      antialiasing; 0: their own.
    quality: 1 to 100: every image becomes a JPEG of this quality. 0: only
      images that are resized are encoded again, JPEG and WebP as JPEG of
      quality 95 and all others without loss, as PNG. Arrays of 1 or 3 channels
      become PNG, and of any other number .npy files.
    alpha: transparency is kept, as a fourth channel of every image; images that
      are encoded again become PNG.
    max_pixels: images of more are left out; 0: no limit.
  """

  resize: int = 0
  quality: int = 0
  alpha: bool = False
  max_pixels: int = decode.max_pixels()

  def __post_init__(self):
    if self.resize < 0:
      raise UserError(f'resize is {self.resize}: take 1 pixel or more.')
    if not 0 <= self.quality <= 100:
      raise UserError(f'quality is {self.quality}: take 1 to 100.')
    if self.alpha and self.quality:
      raise UserError('JPEG has no alpha: leave quality, or alpha.')

  def __call__(
    self, image: bytes | np.ndarray
  ) -> tuple[bytes, Image.Image | np.ndarray]:
    """Encodes an image.

    Args:
      image: encoded, or uint8 [H, W, C].

    Returns:
      The bytes to store; the pixels in them as RGB, RGBA with `alpha`, or
      uint8 [H, W, C] of an array.

    Raises:
      BadImage: see decode.decode.
      UserError: a JPEG can't have as many channels.
    """
    if isinstance(image, np.ndarray):
      if image.shape[-1] not in (1, 3):
        return self._as_array(image)
      pixels = image[..., 0] if image.shape[-1] == 1 else image
      image = _encode(Image.fromarray(pixels), 'PNG')
    pixels = decode.decode(image, 4 if self.alpha else 3)
    size = self._smaller(*pixels.size)
    if self.alpha:
      if not size:
        return image, pixels
      pixels = Image.fromarray(_resize(pixels, size))
      return _encode(pixels, 'PNG'), pixels
    if size:
      pixels = pixels.resize(size, Image.Resampling.BICUBIC)
    elif not self.quality:
      return image, pixels
    lossy = Image.open(io.BytesIO(image)).format in _LOSSY
    file_format = 'JPEG' if self.quality or lossy else 'PNG'
    r, g, b = (channel.tobytes() for channel in pixels.split())
    stored = pixels.getchannel(0) if r == g == b else pixels
    quality = self.quality or _QUALITY
    return _encode(stored, file_format, quality=quality), pixels

  def _as_array(self, pixels):
    height, width, channels = pixels.shape
    if self.quality:
      raise UserError(
        f'An image has {channels} channels and a JPEG 1 or 3: leave quality.'
      )
    if size := self._smaller(width, height):
      pixels = _resize(pixels, size)
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue(), pixels

  def _smaller(self, *size):
    """Returns the width and height that a larger image gets; None: its own."""
    scale = self.resize / min(size)
    if 0 < scale < 1:
      return tuple(max(self.resize, round(side * scale)) for side in size)


def _resize(image, size) -> np.ndarray:
  """Resizes to (width, height); no channel is weighted by a fourth one."""
  box = 0, 0, *crop.image_size(image)
  return crop.crop(image, box, size[::-1], 'bicubic')


def _encode(image, file_format, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, file_format, **options)
  return file.getvalue()


def channel_moments(pixels: Image.Image | np.ndarray) -> np.ndarray:
  """Returns [channels, 2]: means of values in [0, 1], and of their squares."""
  if isinstance(pixels, np.ndarray):
    planes = pixels.reshape(-1, pixels.shape[-1]).T
    counts = np.stack([np.bincount(plane, minlength=256) for plane in planes])
  else:
    counts = np.array(pixels.histogram()).reshape(-1, 256)
  # Integers up to here: grey images have the same moments in each channel.
  return counts @ _POWERS / counts[0].sum() / [255, 255**2]


def add_moments(total, moments, name):
  """Adds the `channel_moments` of the image `name`; [] is the sum of none.

  Raises:
    UserError: it has another number of channels.
  """
  if len(total) and len(moments) and len(total) != len(moments):
    raise UserError(
      f'{name} has {len(moments)} channels and an image before it '
      f'{len(total)}: pack them apart.'
    )
  if len(total) and len(moments):
    return np.add(total, moments)
  return [*total, *moments]
