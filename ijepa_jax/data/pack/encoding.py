"""How images are encoded when they are packed."""

import dataclasses
import io

import numpy as np
from PIL import Image

from ijepa_jax.data import decode
from ijepa_jax.data.transforms import crop
from ijepa_jax.errors import UserError

_LOSSY = 'JPEG', 'MPO', 'WEBP'
_QUALITY = 95  # of what has to be encoded again, and was lossy before
_POWERS = np.stack([np.arange(256), np.arange(256) ** 2], 1)


@dataclasses.dataclass(frozen=True)
class Encoding:
  """How images are stored: their bytes as they are, unless asked otherwise.

  Attributes:
    resize: the shorter side in pixels of images that are larger; 0: their own.
      Bicubic with antialiasing.
    quality: of JPEG, 1 to 100: every image becomes one. 0: only what is resized
      is encoded again, JPEG and WebP as JPEG of quality 95 and everything else
      without loss, as PNG. Arrays of 1 or 3 channels become PNG, and of any
      other number .npy files.
    alpha: transparency is kept, as a fourth channel of every image; what is
      encoded again becomes PNG.
    max_pixels: images of more are no good; 0: no limit.
  """

  resize: int = 0
  quality: int = 0
  alpha: bool = False
  max_pixels: int = decode.most_pixels()

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
    """-> what is to be stored, and its pixels as RGB, or as the array's.

    Args:
      image: encoded, or uint8 [H, W, C].

    Raises:
      BadImage: see augment.decode.
      UserError: a JPEG is wanted of other than 1 or 3 channels.
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
      whole = 0, 0, *pixels.size
      array = crop.crop(pixels, whole, size[::-1], 'bicubic')
      pixels = Image.fromarray(array)
      return _encode(pixels, 'PNG'), pixels
    if size:
      pixels = pixels.resize(size, Image.Resampling.BICUBIC)
    elif not self.quality:
      return image, pixels
    lossy = Image.open(io.BytesIO(image)).format in _LOSSY
    kind = 'JPEG' if self.quality or lossy else 'PNG'
    r, g, b = (channel.tobytes() for channel in pixels.split())
    grey = r == g == b
    stored = pixels.getchannel(0) if grey else pixels
    return _encode(stored, kind, quality=self.quality or _QUALITY), pixels

  def _as_array(self, pixels):
    height, width, channels = pixels.shape
    if self.quality:
      raise UserError(
        f'An image has {channels} channels and a JPEG 1 or 3: leave quality.'
      )
    if size := self._smaller(width, height):
      whole = 0, 0, width, height
      pixels = crop.crop(pixels, whole, size[::-1], 'bicubic')
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue(), pixels

  def _smaller(self, *size):
    """The width and height that a larger image is to have; None for others."""
    scale = self.resize / min(size)
    if 0 < scale < 1:
      return tuple(max(self.resize, round(side * scale)) for side in size)


def _encode(image, kind, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def channel_moments(pixels: Image.Image | np.ndarray) -> np.ndarray:
  """[channels, 2]: means of the values in [0, 1] and of their squares."""
  if isinstance(pixels, np.ndarray):
    planes = pixels.reshape(-1, pixels.shape[-1]).T
    counts = np.stack([np.bincount(plane, minlength=256) for plane in planes])
  else:
    counts = np.array(pixels.histogram()).reshape(-1, 256)
  # Whole numbers up to here: grey images have the same in each channel.
  return counts @ _POWERS / counts[0].sum() / [255, 255**2]


def add_moments(sums, more, where):
  """The sum of what `channel_moments` gave; [] is the one of none."""
  if len(sums) and len(more) and len(sums) != len(more):
    raise UserError(
      f'{where} has {len(more)} channels and an image before it {len(sums)}: '
      'pack them apart.'
    )
  return np.add(sums, more) if len(sums) and len(more) else [*sums, *more]
