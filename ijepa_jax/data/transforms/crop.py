"""Crops and resizes an encoded or raw image to the size that a model takes."""

import dataclasses
import math

import numpy as np
from PIL import Image

from ijepa_jax.data.decode import BadImage, Encoded
from ijepa_jax.errors import UserError

_MAX_PIXELS = 2**26  # of an image that is resized before it is cropped
FILTERS = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
}


def crop(
  image: Image.Image | Encoded | np.ndarray,
  box: tuple[int, int, int, int],
  size: tuple[int, int],
  resample: str = 'bilinear',
) -> np.ndarray:
  """Cuts a box out of an image and resizes it with antialiasing.

  Args:
    image: Pillow's, in a mode of decode.MODES; encoded; or uint8 [h, w, C].
    box: left, top, right, bottom in whole pixels.
    size: (H, W) in pixels.
    resample: 'bilinear' (as the release pre-trains) or 'bicubic'.

  Returns:
    uint8 [H, W, C].

  Raises:
    BadImage: an encoded image can't be decoded.
  """
  fast = False
  if isinstance(image, Encoded):
    fast = image.fast and resample == 'bilinear'
    image, box = image.region_for_crop(box, size)
  # Cut first: the filter of a resize would read pixels beyond the edge of the
  # box. In a reduced image the box may begin within a pixel.
  left, top = math.floor(box[0]), math.floor(box[1])
  right, bottom = math.ceil(box[2]), math.ceil(box[3])
  inner = box[0] - left, box[1] - top, box[2] - left, box[3] - top
  if isinstance(image, Image.Image) and image.mode in ('L', 'RGB') and not fast:
    return _resize(
      image.crop((left, top, right, bottom)), inner, size, resample
    )
  pixels = np.atleast_3d(np.asarray(image))[top:bottom, left:right]
  channels = pixels.shape[-1]
  if fast and channels in (1, 3):
    return _resize_fast(pixels, inner, size)
  if channels == 3:
    return _resize(Image.fromarray(pixels), inner, size, resample)
  # Each plane by itself: Pillow would weight colors by a fourth channel.
  planes = (Image.fromarray(pixels[..., i]) for i in range(channels))
  resized = [_resize(plane, inner, size, resample) for plane in planes]
  return resized[0] if channels == 1 else np.concatenate(resized, axis=-1)


def _resize(image, box, size, resample):
  image = image.resize(size[::-1], FILTERS[resample], box)
  return np.frombuffer(image.tobytes(), np.uint8).reshape(*size, -1)


def _resize_fast(pixels, box, size):
  """Bilinear, within one grey level of Pillow's; uint8 [h, w, 1 or 3]."""
  import cykooz_resizer as cr

  height, width, channels = pixels.shape
  kind = cr.PixelType.U8 if channels == 1 else cr.PixelType.U8x3
  left, top, right, bottom = box
  result = cr.ImageData(*size[::-1], kind)
  cr.Resizer().resize(
    cr.ImageData(width, height, kind, pixels.tobytes()),
    result,
    cr.ResizeOptions(
      cr.ResizeAlg.convolution(cr.FilterType.bilinear),
      crop_box=cr.CropBox(left, top, right - left, bottom - top),
    ),
  )
  return np.frombuffer(result.get_buffer(), np.uint8).reshape(*size, channels)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
  """Cuts out a random box and resizes it, as torchvision's RandomResizedCrop.

  The area is uniform, the aspect log-uniform; a box that does not fit is drawn
  again, ten times in all, and then the largest one in the middle is taken.

  Attributes:
    size: (H, W) of the result in pixels.
    scale: least and greatest share of the image's area.
    ratio: least and greatest width over height, before resizing.
    flip: mirror one image in two left to right (release: never).
    resample: see `crop`.
  """

  size: tuple[int, int]
  scale: tuple[float, float] = (0.3, 1.0)
  ratio: tuple[float, float] = (3 / 4, 4 / 3)
  flip: bool = False
  resample: str = 'bilinear'

  def __post_init__(self):
    if len(self.size) != 2 or min(self.size) < 1:
      raise UserError(
        f'image_size is {self.size}: take a height and a width in pixels.'
      )
    if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
      raise UserError(
        f'crop_scale is {self.scale}: take two shares of the area, the lesser '
        'first, above 0 and up to 1.'
      )
    if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1]:
      raise UserError(
        f'crop_ratio is {self.ratio}: take two ratios of width to height, the '
        'lesser first, above 0.'
      )

  def box(
    self, width: int, height: int, rng: np.random.Generator
  ) -> tuple[int, int, int, int]:
    """Draws left, top, right, bottom in an image of width x height pixels."""
    (s0, s1), (r0, r1) = self.scale, self.ratio
    for _ in range(10):
      u_area, u_ratio, u_top, u_left = rng.random(4).tolist()
      area = width * height * (s0 + u_area * (s1 - s0))
      ratio = r0 * (r1 / r0) ** u_ratio
      w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
      if 0 < w <= width and 0 < h <= height:
        left, top = int(u_left * (width - w + 1)), int(u_top * (height - h + 1))
        return left, top, left + w, top + h
    # At most one of the two is less than the side of the image.
    w = max(1, min(width, round(height * r1)))
    h = max(1, min(height, round(width / r0)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h

  def __call__(
    self, image: Image.Image | Encoded | np.ndarray, rng: np.random.Generator
  ) -> np.ndarray:
    """Returns uint8 [H, W, C] of an image, see `crop`."""
    box = self.box(*image_size(image), rng)
    pixels = crop(image, box, self.size, self.resample)
    if self.flip and rng.random() < 0.5:
      pixels = pixels[:, ::-1]
    return pixels


@dataclasses.dataclass(frozen=True)
class CenterCrop:
  """Resizes the shorter side to `resize` pixels and cuts out the middle.

  Bicubic.

  Attributes:
    size: (H, W) of the result in pixels.
    resize: of the shorter side, at least the larger of `size`; the paper's
      evaluations: 256 for a size of 224.
  """

  size: tuple[int, int]
  resize: int

  def __post_init__(self):
    if not 1 <= max(self.size) <= self.resize:
      raise UserError(
        f'resize is {self.resize}: take at least the {max(self.size)} pixels '
        'of the crop.'
      )

  def __call__(
    self,
    image: Image.Image | Encoded | np.ndarray,
    rng: np.random.Generator | None = None,
  ) -> np.ndarray:
    """Returns uint8 [H, W, C] of an image, see `crop`; `rng` is not used."""
    width, height = image_size(image)
    # The longer side is rounded down, as torchvision and transformers do.
    short = min(width, height)
    resized = height * self.resize // short, width * self.resize // short
    if math.prod(resized) > _MAX_PIXELS:
      raise BadImage(
        f'{width} x {height} pixels are too long and thin to cut out the middle'
      )
    pixels = crop(image, (0, 0, width, height), resized, 'bicubic')
    top, left = ((a - b) // 2 for a, b in zip(resized, self.size, strict=True))
    return pixels[top : top + self.size[0], left : left + self.size[1]]


def evaluation_crop(size: tuple[int, int]) -> CenterCrop:
  """Returns the transform of evaluations and of `ImageEncoder`.

  Args:
    size: (H, W) in pixels that the encoder takes.
  """
  return CenterCrop(size, round(max(size) * 256 / 224))


@dataclasses.dataclass(frozen=True)
class Resize:
  """Stretches the whole image to a size; bilinear, as VISSL does for CLEVR.

  Attributes:
    size: (H, W) in pixels.
    flip: mirror one image in two left to right.
  """

  size: tuple[int, int]
  flip: bool = False

  def __call__(
    self,
    image: Image.Image | Encoded | np.ndarray,
    rng: np.random.Generator | None = None,
  ) -> np.ndarray:
    """Returns uint8 [H, W, C] of an image, see `crop`."""
    pixels = crop(image, (0, 0, *image_size(image)), self.size)
    return pixels[:, ::-1] if self.flip and rng.random() < 0.5 else pixels


def image_size(image: Image.Image | Encoded | np.ndarray) -> tuple[int, int]:
  """Returns width and height in pixels."""
  if isinstance(image, np.ndarray):
    return image.shape[1], image.shape[0]
  return image.size
