"""RandAugment: operations are what they say, all a function of the rng."""

import numpy as np
import pytest
from PIL import Image

from ijepa_jax.data.transforms import randaugment
from ijepa_jax.data.transforms.crop import RandomResizedCrop
from ijepa_jax.errors import UserError
from tests.close import close

# These have no strength, or turn pixels over.
STRONG_AT_ONCE = {'autocontrast', 'equalize', 'invert', 'solarize'}


def picture(seed=0):
  r = np.random.default_rng(seed)
  small = Image.fromarray(r.integers(0, 256, (6, 6, 3), np.uint8))
  return np.asarray(small.resize((32, 32), Image.Resampling.BICUBIC))


def apply(name, level, sign=1):
  operation, value = randaugment.OPERATIONS[name]
  image = Image.fromarray(picture())
  return np.asarray(operation(image, value(level, sign), (124, 116, 104)))


@pytest.mark.parametrize('name', randaugment.OPERATIONS)
def test_every_operation_keeps_shape_and_changes_pixels(name):
  pixels = apply(name, 0.9)
  assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
  assert (pixels != picture()).any()


@pytest.mark.parametrize(
  'name',
  sorted(set(randaugment.OPERATIONS) - STRONG_AT_ONCE),
)
def test_increasing_operations_begin_at_nothing(name):
  before = picture() & 0xF0 if name == 'posterize' else picture()
  np.testing.assert_array_equal(apply(name, 0.0), before)


def test_known_values():
  x = picture().astype(int)
  np.testing.assert_array_equal(apply('invert', 0.9), 255 - x)
  np.testing.assert_array_equal(
    apply('solarize', 0.5), np.where(x < 128, x, 255 - x)
  )
  added = np.where(x < 128, np.minimum(x + 99, 255), x)
  np.testing.assert_array_equal(apply('solarize_add', 0.9), added)
  half = apply('translate_x', 0.9 / 0.9)  # 45% of 32 pixels: not whole ones
  assert (half[:, -10:] == (124, 116, 104)).all()
  close(apply('brightness', 0.5, -1), np.clip(x * 0.55, 0, 255), within=1)


def test_a_function_of_the_generator():
  crop = RandomResizedCrop((24, 24), (0.5, 1.0))
  transform = randaugment.RandAugment(crop)
  assert transform.size == (24, 24)
  images = [
    transform(picture(), np.random.default_rng(seed)) for seed in (1, 1, 2)
  ]
  np.testing.assert_array_equal(images[0], images[1])
  assert (images[0] != images[2]).any()
  still = randaugment.RandAugment(crop, count=0)
  np.testing.assert_array_equal(
    still(picture(), np.random.default_rng(3)),
    crop(picture(), np.random.default_rng(3)),
  )


def test_mistakes_are_told():
  crop = RandomResizedCrop((24, 24))
  with pytest.raises(UserError, match='magnitude from 0 to 10'):
    randaugment.RandAugment(crop, magnitude=11)
  with pytest.raises(UserError, match='3 channels and the images have 1'):
    randaugment.RandAugment(crop)(picture()[..., :1], np.random.default_rng(0))
