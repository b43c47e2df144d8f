"""RandAugment (Cubuk et al., 2020), as fine-tuning recipes use it.

The operations and strengths are timm's 'increasing' ones. MAE, BEiT and
I-JEPA's fine-tuning use them by the string rand-m9-mstd0.5-inc1: two operations
an image, each left out half of the time, at magnitude 9 of 10 with a normal
deviation of .5.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from ijepa_jax.data.transforms.color_jitter import enhance
from ijepa_jax.errors import UserError

APPLIED_SHARE = 0.5  # of the chosen operations


def _affine(image, matrix, fill):
  return image.transform(
    image.size,
    Image.Transform.AFFINE,
    matrix,
    Image.Resampling.BICUBIC,
    fillcolor=fill,
  )


def _rotate(image, angle, fill):
  return image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=fill)


def _solarize_add(image, add, fill):
  return image.point(
    [min(255, i + add) if i < 128 else i for i in range(256)] * 3
  )


def _signed_factor(level, sign):
  return 1 + 0.9 * level * sign


# Name -> (operation(image, value, fill color), value(level in [0, 1], sign)).
OPERATIONS: dict[str, tuple[Callable, Callable]] = {
  'autocontrast': (lambda i, v, f: ImageOps.autocontrast(i), lambda m, s: 0),
  'equalize': (lambda i, v, f: ImageOps.equalize(i), lambda m, s: 0),
  'invert': (lambda i, v, f: ImageOps.invert(i), lambda m, s: 0),
  'rotate': (_rotate, lambda m, s: 30 * m * s),  # degrees
  'posterize': (
    lambda i, v, f: ImageOps.posterize(i, v) if v else i,
    lambda m, s: 4 - int(4 * m),  # bits that are kept
  ),
  'solarize': (
    lambda i, v, f: ImageOps.solarize(i, v),
    lambda m, s: 256 - min(256, int(256 * m)),  # threshold
  ),
  'solarize_add': (_solarize_add, lambda m, s: min(128, int(110 * m))),
  'color': (enhance(ImageEnhance.Color), _signed_factor),
  'contrast': (enhance(ImageEnhance.Contrast), _signed_factor),
  'brightness': (enhance(ImageEnhance.Brightness), _signed_factor),
  'sharpness': (enhance(ImageEnhance.Sharpness), _signed_factor),
  'shear_x': (
    lambda i, v, f: _affine(i, (1, v, 0, 0, 1, 0), f),
    lambda m, s: 0.3 * m * s,
  ),
  'shear_y': (
    lambda i, v, f: _affine(i, (1, 0, 0, v, 1, 0), f),
    lambda m, s: 0.3 * m * s,
  ),
  'translate_x': (
    lambda i, v, f: _affine(i, (1, 0, v * i.width, 0, 1, 0), f),
    lambda m, s: 0.45 * m * s,  # share of the width
  ),
  'translate_y': (
    lambda i, v, f: _affine(i, (1, 0, 0, 0, 1, v * i.height), f),
    lambda m, s: 0.45 * m * s,
  ),
}


@dataclasses.dataclass(frozen=True)
class RandAugment:
  """Random operations after a crop; a transform for batch.Reading.

  Attributes:
    crop: the transform before it, such as crop.RandomResizedCrop.
    count: number of operations that are chosen for an image.
    magnitude: mean of their strength, 0 to 10.
    deviation: standard deviation of the strength, which is normal and clipped
      to that range.
    fill: color of the pixels that are shifted in, 0 to 255, per channel.
  """

  crop: Callable
  count: int = 2
  magnitude: float = 9.0
  deviation: float = 0.5
  fill: tuple[int, ...] = (124, 116, 104)  # ImageNet's mean

  def __post_init__(self):
    if not 0 <= self.magnitude <= 10 or self.count < 0 or self.deviation < 0:
      raise UserError(
        f'RandAugment of {self.count} operations at {self.magnitude} +- '
        f'{self.deviation}: take counts and deviations of 0 or more, and a '
        'magnitude from 0 to 10.'
      )

  @property
  def size(self) -> tuple[int, int]:
    return self.crop.size

  def __call__(self, image, rng: np.random.Generator) -> np.ndarray:
    """Returns uint8 [H, W, 3]; color images only."""
    pixels = self.crop(image, rng)
    if pixels.shape[-1] != 3:
      raise UserError(
        f'RandAugment is for 3 channels and the images have '
        f'{pixels.shape[-1]}: switch it off.'
      )
    image = Image.fromarray(pixels)
    operations = tuple(OPERATIONS.values())
    for i in rng.choice(len(operations), self.count):
      operation, value = operations[i]
      strength = rng.normal(self.magnitude, self.deviation)
      applied, sign = rng.random() < APPLIED_SHARE, rng.choice((-1, 1))
      if applied:
        level = float(np.clip(strength, 0, 10)) / 10
        image = operation(image, value(level, sign), self.fill)
    return np.asarray(image)
