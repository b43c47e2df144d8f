"""Views: the published draws, each a function of (seed, step, row, view)."""

import numpy as np
import pytest
from PIL import ImageFilter

from ijepa_jax.data.scenes import scene
from ijepa_jax.data.transforms import color_jitter, views
from ijepa_jax.data.transforms.crop import RandomResizedCrop
from ijepa_jax.errors import UserError
from tests.close import close
from tests.data import test_pipeline

WHOLE = RandomResizedCrop((48, 48), (1, 1), (1, 1))
CROP = RandomResizedCrop((16, 16), (0.08, 1.0), flip=True)
STILL = {'jitter': 0, 'grey': 0, 'blur': (0,), 'solarize': (0,)}


def picture(index=0):
  return scene.render('scenes', 0, index)[0]


def many(count=400, crop=WHOLE, image=None, **settings):
  """[count, V, H, W, C] views of one picture."""
  transform = views.Views(crop, **STILL | settings)
  image = picture() if image is None else image
  return np.stack(
    [transform(image, np.random.default_rng(i)) for i in range(count)]
  )


def test_nothing_asked_for_nothing_done():
  images = many(5)
  assert images.shape == (5, 2, 48, 48, 3) and images.dtype == np.uint8
  assert (images == picture()).all()


def test_shares():
  """Of each view its own; more views than shares begin again."""
  jittered = (many(jitter=0.8) != picture()).any((2, 3, 4))
  assert 0.74 < jittered.mean() < 0.86
  grey = (np.ptp(many(grey=0.2), axis=-1) == 0).all((2, 3))
  assert 0.14 < grey.mean() < 0.26
  # Each view has a stream of its own.
  for x in jittered, grey:
    assert abs(np.corrcoef(x.T)[0, 1]) < 0.2
  pixels = picture()
  inverted = np.where(pixels < 128, pixels, 255 - pixels)
  changed = many(solarize=(0, 0.2)) != pixels
  changed = changed.any((2, 3, 4))
  assert not changed[:, 0].any() and 0.14 < changed[:, 1].mean() < 0.26
  images = many(2, solarize=(1, 0))[:, 0]
  assert (images == inverted).all()
  # A tenth of a pixel, where all is drawn small, can't be seen.
  blurred = (many(60, num_views=3, blur=(1, 0)) != pixels).any((2, 3, 4))
  assert blurred[:, [0, 2]].mean() > 0.6 and not blurred[:, 1].any()


def test_strengths():
  """Uniform, as far as published; the blur in proportion to the image."""
  drawn, sigmas = [], []
  spied = [
    (lambda image, value, i=i: drawn.append((i, value)) or image, still, far)
    for i, (_, still, far) in enumerate(color_jitter.OPERATIONS)
  ]

  def blur(sigma):
    sigmas.append(sigma)
    return ImageFilter.BoxBlur(0)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(color_jitter, 'OPERATIONS', spied)
    patch.setattr(ImageFilter, 'GaussianBlur', blur)
    many(300, jitter=1, blur=(1,))
  for i, far in enumerate((0.4, 0.4, 0.2, 0.1)):
    values = np.array([value for at, value in drawn if at == i]) - (i < 3)
    assert len(values) == 600 and abs(values).max() <= far
    quarters = np.quantile(values / far, [0.25, 0.5, 0.75])
    close(quarters, [-0.5, 0, 0.5], within=0.12)
  orders = {tuple(i for i, _ in drawn[k : k + 4]) for k in range(0, 2400, 4)}
  assert len(orders) == 24
  sigmas = np.array(sigmas) * 224 / 48
  close(np.quantile(sigmas, [0, 0.5, 1]), [0.1, 1.05, 2], within=0.15)


def test_a_view_is_a_function_of_its_generator_and_number():
  """The first views of three are those of two."""
  two, three = (
    many(3, CROP, num_views=n, jitter=0.8, grey=0.2) for n in (2, 3)
  )
  np.testing.assert_array_equal(two, three[:, :2])
  np.testing.assert_array_equal(two, many(3, CROP, jitter=0.8, grey=0.2))
  everything = three.reshape(9, -1)
  assert len(np.unique(everything, axis=0)) == 9


@pytest.mark.parametrize('channels', [1, 2, 3, 5])
def test_other_channels(channels):
  """Of one the light changes; of others there is the crop alone."""
  noise = np.random.default_rng(0).integers(0, 256, (48, 48, channels))
  image = noise.astype(np.uint8)
  images = many(40, image=image, jitter=1, grey=1, blur=(1,), solarize=(1,))
  assert images.shape == (40, 2, 48, 48, channels)
  same = (images == image).all((2, 3, 4))
  assert same.all() if channels in (2, 5) else not same.any()


def take(source, count, **settings):
  """Batches of the pipeline, of views in place of crops."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      test_pipeline,
      'RandomResizedCrop',
      lambda **crop: views.Views(RandomResizedCrop(**crop)),
    )
    return test_pipeline.take(source, count, **settings)


def test_the_same_views_however_they_are_made():
  """Two processes, one with a worker, and a start in the middle."""
  source = test_pipeline.Encoded(30, quality=90)
  expected = take(source, 4)
  assert expected[0]['image'].shape == (8, 2, 16, 24, 3)
  test_pipeline.assert_same(expected, take(source, 4))
  parts = [
    take(source, 2, start=2, part=i, parts=2, workers=i) for i in range(2)
  ]
  for step in range(2):
    joined = {
      k: np.concatenate([p[step][k] for p in parts]) for k in expected[0]
    }
    test_pipeline.assert_same([expected[2 + step]], [joined])
  other = take(source, 1, seed=6)
  assert (other[0]['image'] != expected[0]['image']).any((2, 3, 4)).all()


def test_encoded_images_and_arrays_give_the_same_views():
  """An image is decoded once for all of its views."""
  arrays, encoded = (
    take(source(9), 1)[0]
    for source in (test_pipeline.Arrays, test_pipeline.Encoded)
  )
  test_pipeline.assert_same([arrays], [encoded])


@pytest.mark.parametrize(
  ('setting', 'words'),
  [
    ({'num_views': 1}, r'vicreg\.num_views is 1: take 2 or more'),
    ({'jitter': 1.5}, r'vicreg\.jitter is 1\.5: take a share from 0 to 1\.'),
    ({'blur': (1, -1)}, r'vicreg\.blur is \(1, -1\): .*one for each view'),
    ({'solarize': ()}, r'vicreg\.solarize is \(\): take a share'),
  ],
)
def test_what_can_not_be(setting, words):
  with pytest.raises(UserError, match=words):
    many(1, **setting)
