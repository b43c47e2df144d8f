"""Random colour, grey and blur, as contrastive methods have them.

The strengths are SimCLR's (Chen et al., 2020, appendix A). I-JEPA needs none of
it and its release trains without: they are here to measure what they do.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from ijepa_jax.errors import UserError

JITTERED = 0.8  # share of the images
SIGMA = 0.1, 2.0  # pixels, of the blur


def _hue(image: Image.Image, turn: float) -> Image.Image:
  """Turns of the colour circle, -.5 to .5."""
  hue, *others = image.convert('HSV').split()
  hue = hue.point([(i + round(255 * turn)) % 256 for i in range(256)])
  return Image.merge('HSV', (hue, *others)).convert('RGB')


def _enhance(kind):
  return lambda image, factor: kind(image).enhance(factor)


# Operation of image and value; value without change; how far from it it is
# drawn at a strength of 1. Brightness, contrast, saturation, hue.
OPERATIONS: tuple[tuple[Callable, float, float], ...] = (
  (_enhance(ImageEnhance.Brightness), 1, 0.8),
  (_enhance(ImageEnhance.Contrast), 1, 0.8),
  (_enhance(ImageEnhance.Color), 1, 0.8),
  (_hue, 0, 0.2),
)


@dataclasses.dataclass(frozen=True)
class ColorJitter:
  """Random changes after a crop; a transform for pipeline.make_dataset.

  Attributes:
    crop: what cuts and resizes first, such as crop.RandomResizedCrop.
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
    # Where brightness comes down to nothing, and hue goes all around.
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
    """-> uint8 [H, W, 3]; colour images only."""
    pixels = self.crop(image, rng)
    self.check(pixels.shape[-1])
    image = Image.fromarray(pixels)
    if self.jitter and rng.random() < JITTERED:
      for i in rng.permutation(len(OPERATIONS)):
        operation, still, far = OPERATIONS[i]
        value = still + self.jitter * far * rng.uniform(-1, 1)
        image = operation(image, value)
    if rng.random() < self.grey:
      image = image.convert('L').convert('RGB')
    if rng.random() < self.blur:
      image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*SIGMA)))
    return np.asarray(image)
