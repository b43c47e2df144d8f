"""Random views of an image, as methods of invariance train on them.

The augmentations are BYOL's (Grill et al., 2020, appendix B), which VICReg took
over (Bardes et al., 2022, appendix D): crop, flip, colors, grey, blur and
solarization, the last two with shares that differ from view to view.
"""

import dataclasses

import numpy as np
from absl import logging
from PIL import Image, ImageFilter, ImageOps

from ijepa_jax.data.transforms import color_jitter
from ijepa_jax.data.transforms.crop import RandomResizedCrop
from ijepa_jax.errors import UserError

# Half-widths of the draws of brightness, contrast, saturation and hue.
STRENGTHS = 0.4, 0.4, 0.2, 0.1
# Of the blur's deviation in pixels, for images of so many pixels.
BLUR_IMAGE_SIZE = 224
# Channels -> how many of the color operations such images have.
COLOR_OPERATIONS = {1: 2, 3: 4}
# Of the section `vicreg` of a config, see configs/base.py.
KNOBS = 'num_views', 'crop_scale', 'flip', 'jitter', 'grey', 'blur', 'solarize'


def make_views(
  size: tuple[int, int], channels: int, *, crop_scale, flip: bool, **settings
) -> 'Views':
  """Makes the transform from KNOBS, for images of so many channels.

  Raises:
    UserError: one sentence with the value, the limit and what to do.
  """
  if channels not in COLOR_OPERATIONS:
    logging.warning(
      'Images of %d channels are cropped and flipped alone: colors are changed '
      'of 1 and of 3.',
      channels,
    )
  crop = RandomResizedCrop(
    size, tuple(crop_scale), flip=flip, resample='bicubic'
  )
  settings |= {k: tuple(settings[k]) for k in ('blur', 'solarize')}
  return Views(crop, **settings)


@dataclasses.dataclass(frozen=True)
class Views:
  """Several views of an image; a transform for batch.Reading.

  View v of an image is a function of the image's generator and of v, whatever
  the number of views.

  Attributes:
    crop: of each view, with its flip.
    num_views: of an image.
    jitter: share of the views whose brightness, contrast, saturation and hue
      change, in an order drawn for each.
    grey: share of the views that turn grey.
    blur: shares of the first view, the second and so on, and again from the
      first, that are blurred by a Gaussian of .1 to 2 pixels at 224 pixels, in
      proportion at others.
    solarize: the same of those whose bright pixels are inverted.
  """

  crop: RandomResizedCrop
  num_views: int = 2
  jitter: float = 0.8
  grey: float = 0.2
  blur: tuple[float, ...] = (1.0, 0.1)
  solarize: tuple[float, ...] = (0.0, 0.2)

  def __post_init__(self):
    if self.num_views < 2:
      raise UserError(f'vicreg.num_views is {self.num_views}: take 2 or more.')
    for name in ('jitter', 'grey', 'blur', 'solarize'):
      shares = np.atleast_1d(getattr(self, name))
      if not shares.size or not ((shares >= 0) & (shares <= 1)).all():
        raise UserError(
          f'vicreg.{name} is {getattr(self, name)}: take a share from 0 to 1'
          f'{", or one for each view" if name in ("blur", "solarize") else ""}.'
        )

  @property
  def size(self) -> tuple[int, int]:
    return self.crop.size

  def __call__(self, image, rng: np.random.Generator) -> np.ndarray:
    """Returns uint8 [V, H, W, C] of an image, see crop.crop."""
    rngs = rng.spawn(self.num_views)
    return np.stack([self.view(image, v, r) for v, r in enumerate(rngs)])

  def view(self, image, v: int, rng: np.random.Generator) -> np.ndarray:
    """One view: uint8 [H, W, C].

    Images of one channel have no saturation, hue and grey; those of two, or of
    more than three, are cropped and flipped alone.
    """
    pixels = self.crop(image, rng)
    channels = pixels.shape[-1]
    if channels not in COLOR_OPERATIONS:
      return pixels
    image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
    if rng.random() < self.jitter:
      for i in rng.permutation(COLOR_OPERATIONS[channels]):
        operation, identity, _ = color_jitter.OPERATIONS[i]
        image = operation(image, identity + STRENGTHS[i] * rng.uniform(-1, 1))
    if rng.random() < self.grey and channels == 3:
      image = image.convert('L').convert('RGB')
    if rng.random() < self.blur[v % len(self.blur)]:
      sigma = rng.uniform(*color_jitter.BLUR_SIGMA)
      sigma *= min(image.size) / BLUR_IMAGE_SIZE
      image = image.filter(ImageFilter.GaussianBlur(sigma))
    if rng.random() < self.solarize[v % len(self.solarize)]:
      image = ImageOps.solarize(image)
    return np.asarray(image).reshape(pixels.shape)
