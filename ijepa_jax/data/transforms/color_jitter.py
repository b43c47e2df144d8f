"""Random color changes, grey and blur, as contrastive methods use them.

The strengths are SimCLR's (Chen et al., 2020, appendix A). I-JEPA needs none of
them, and its release trains without: they are here to measure what they do.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from ijepa_jax.errors import UserError

JITTERED_SHARE = 0.8  # of the images
BLUR_SIGMA = 0.1, 2.0  # pixels


def _shift_hue(image: Image.Image, turn: float) -> Image.Image:
  """Shifts the hue by -.5 to .5 turns of the color circle."""
  hue, saturation, value = image.convert('HSV').split()
  hue = hue.point([(i + round(255 * turn)) % 256 for i in range(256)])
  return Image.merge('HSV', (hue, saturation, value)).convert('RGB')


def enhance(enhancer):
  """Returns Pillow's enhancer as an operation, see OPERATIONS."""
  return lambda image, factor, *_: enhancer(image).enhance(factor)


# Brightness, contrast, saturation, hue: (operation(image, value), value that
# changes nothing, half-width of the draw at strength 1).
OPERATIONS: tuple[tuple[Callable, float, float], ...] = (
  (enhance(ImageEnhance.Brightness), 1, 0.8),
  (enhance(ImageEnhance.Contrast), 1, 0.8),
  (enhance(ImageEnhance.Color), 1, 0.8),
  (_shift_hue, 0, 0.2),
)


@dataclasses.dataclass(frozen=True)
class ColorJitter:
  """Random color changes after a crop; a transform for batch.Reading.

  Attributes:
    crop: the transform before it, such as crop.RandomResizedCrop.
    jitter: strength of the changes in brightness, contrast, saturation and hue
      that four images in five get, in an order drawn for each (SimCLR: 1).
    grey: share of the images that become grey (SimCLR: .2).
    blur: share of the images that are blurred, by a Gaussian of .1 to 2 pixels
      (SimCLR: .5).
  """

  crop: Callable
  jitter: float = 0.0
  grey: float = 0.0
  blur: float = 0.0

  def __post_init__(self):
    # At 1.25 the least brightness is 0, and hues go around the circle.
    if not 0 <= self.jitter <= 1.25:
      raise UserError(
        f'data.jitter is {self.jitter}: take a strength from 0 to 1.25.'
      )
    for name in ('grey', 'blur'):
      if not 0 <= getattr(self, name) <= 1:
        raise UserError(
          f'data.{name} is {getattr(self, name)}: take a share from 0 to 1.'
        )

  @property
  def size(self) -> tuple[int, int]:
    return self.crop.size

  def check(self, channels: int) -> None:
    """Raises UserError for images of other than three channels."""
    if channels != 3:
      raise UserError(
        'data.jitter, data.grey and data.blur are for 3 channels and the '
        f'images have {channels}: set them to 0.'
      )

  def __call__(self, image, rng: np.random.Generator) -> np.ndarray:
    """Returns uint8 [H, W, 3]; color images only."""
    pixels = self.crop(image, rng)
    self.check(pixels.shape[-1])
    image = Image.fromarray(pixels)
    if self.jitter and rng.random() < JITTERED_SHARE:
      for i in rng.permutation(len(OPERATIONS)):
        operation, identity, spread = OPERATIONS[i]
        value = identity + self.jitter * spread * rng.uniform(-1, 1)
        image = operation(image, value)
    if rng.random() < self.grey:
      image = image.convert('L').convert('RGB')
    if rng.random() < self.blur:
      image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR_SIGMA)))
    return np.asarray(image)
