"""Crops are Pillow's and the release's; colours change as much as they say."""

import io

import numpy as np
import pytest
from PIL import Image

from configs import tiny
from ijepa_jax.data import decode
from ijepa_jax.data.scenes import scene
from ijepa_jax.data.transforms import color_jitter
from ijepa_jax.data.transforms import crop as transforms_crop
from ijepa_jax.errors import UserError
from ijepa_jax.train.run import make_run
from tests.close import close
from tests.data.sources.test_sources import png


@pytest.mark.parametrize('size', [(16, 16), (40, 12), (90, 130)])
def test_a_crop_is_pillows(size):
  """Cut, then resized with antialiasing: smaller, larger and non-square."""
  image = Image.open(io.BytesIO(png(0, 60, 80)))
  box = (7, 11, 71, 52)
  expected = image.crop(box).resize(size[::-1], Image.Resampling.BILINEAR)
  array = np.asarray(image)
  lazy = decode.Encoded(png(0, 60, 80), 3)
  for source in (image, lazy, array, np.concatenate([array, array], -1)):
    pixels = transforms_crop.crop(source, box, size)
    assert pixels.shape[:2] == size
    np.testing.assert_array_equal(pixels[..., :3], expected)
    np.testing.assert_array_equal(pixels[..., -3:], expected)
  np.testing.assert_array_equal(
    transforms_crop.crop(array[..., 1:2], box, size)[..., 0],
    np.asarray(expected)[..., 1],
  )


def test_too_long_and_thin_to_cut_out_the_middle():
  """A file of some bytes would take gigabytes."""
  thin = Image.new('L', (20_000, 4))
  with pytest.raises(decode.BadImage, match='20000 x 4 pixels are too long'):
    transforms_crop.CenterCrop((224, 224), 256)(thin)
  assert transforms_crop.CenterCrop((24, 24), 32)(thin).shape == (24, 24, 1)


def boxes(crop, width, height, count=4000):
  rng = np.random.default_rng(0)
  drawn = [crop.box(width, height, rng) for _ in range(count)]
  left, top, right, bottom = np.array(drawn).T
  assert left.min() >= 0 and top.min() >= 0
  assert right.max() <= width and bottom.max() <= height
  return left, top, right - left, bottom - top


def test_boxes_of_the_release():
  """Area and aspect in their bounds, but for rounding to whole pixels."""
  *_, w, h = boxes(transforms_crop.RandomResizedCrop((16, 16)), 500, 375)
  share = w * h / (500 * 375)
  assert 0.297 < share.min() < 0.32 and 0.9 < share.max() <= 1
  assert 0.745 < (w / h).min() < 0.78 and 1.28 < (w / h).max() < 1.343


def test_boxes_are_uniform():
  """In area, in the logarithm of the aspect, and in place."""
  crop = transforms_crop.RandomResizedCrop((16, 16), scale=(0.1, 0.4))
  left, top, w, h = boxes(crop, 1000, 1000)

  def uniform(x):
    return np.quantile(x, [0.1, 0.25, 0.5, 0.75, 0.9])

  close(
    (uniform(w * h / 1e6) - 0.1) / 0.3, [0.1, 0.25, 0.5, 0.75, 0.9], within=0.04
  )
  aspect = np.log(w / h) / np.log(4 / 3)
  close(uniform(aspect), [-0.8, -0.5, 0, 0.5, 0.8], within=0.07)
  for place in (left / (1000 - w), top / (1000 - h)):
    close(uniform(place), [0.1, 0.25, 0.5, 0.75, 0.9], within=0.04)


@pytest.mark.parametrize(
  ('width', 'height', 'box'),
  [
    (1000, 10, (493, 0, 506, 10)),
    (10, 1000, (0, 493, 10, 506)),
    (1, 50, (0, 24, 1, 25)),
    (1, 1, (0, 0, 1, 1)),
  ],
)
def test_the_middle_where_no_box_fits(width, height, box):
  crop = transforms_crop.RandomResizedCrop((8, 8), scale=(0.9, 1))
  assert crop.box(width, height, np.random.default_rng(0)) == box


# ---- colours ----


def picture(index=0):
  return scene.render('scenes', 0, index)[0]


WHOLE_IMAGE = transforms_crop.Resize((48, 48))


def changed(count=400, **settings):
  """[count, H, W, 3] ways that one picture comes out."""
  transform = color_jitter.ColorJitter(WHOLE_IMAGE, **settings)
  images = [
    transform(picture(), np.random.default_rng(i)) for i in range(count)
  ]
  assert {(i.shape, i.dtype.name) for i in images} == {((48, 48, 3), 'uint8')}
  return np.stack(images)


def test_nothing_asked_for_nothing_done():
  (images,) = np.unique(changed(20), axis=0)
  np.testing.assert_array_equal(images, picture())


def test_shares():
  """Four images in five jittered; grey and blur as asked."""
  same = (changed(jitter=1) == picture()).all((1, 2, 3))
  assert 0.14 < same.mean() < 0.26
  images = changed(grey=0.2)
  is_grey = (np.ptp(images, axis=-1) == 0).all((1, 2))
  assert 0.14 < is_grey.mean() < 0.26
  luma = np.asarray(Image.fromarray(picture()).convert('L'))
  np.testing.assert_array_equal(images[is_grey][0, ..., 0], luma)
  blurred = (changed(blur=0.5) != picture()).any((1, 2, 3))
  # One blur in twenty is too weak to be seen.
  assert 0.38 < blurred.mean() < 0.56


@pytest.mark.parametrize('strength', [0.5, 1])
def test_strengths(strength):
  """Each operation's values reach, uniformly, as far as SimCLR's."""
  drawn = []
  spied = [
    (lambda image, value, i=i: drawn.append((i, value)) or image, still, far)
    for i, (_, still, far) in enumerate(color_jitter.OPERATIONS)
  ]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(color_jitter, 'OPERATIONS', spied)
    changed(jitter=strength)
  for i, far in enumerate((0.8, 0.8, 0.8, 0.2)):
    values = np.array([value for at, value in drawn if at == i]) - (i < 3)
    assert len(values) > 250 and abs(values).max() <= far * strength
    quarters = np.quantile(values / (far * strength), [0.25, 0.5, 0.75])
    close(quarters, [-0.5, 0, 0.5], within=0.12)
  orders = {tuple(i for i, _ in drawn[k : k + 4]) for k in range(0, 800, 4)}
  assert len(orders) == 24


def test_operations():
  """What each does to a colour, by the book."""
  image = Image.new('RGB', (2, 2), (200, 100, 50))
  image.putpixel((0, 0), (100, 200, 50))
  brighter, contrast, saturation, hue = (
    o for o, _, _ in color_jitter.OPERATIONS
  )
  pixels = np.asarray(image).astype(float)
  luma = np.asarray(image.convert('L')).astype(float)
  for operation, still in (
    (brighter, 0),
    (contrast, round(luma.mean())),
    (saturation, luma[..., None]),
  ):
    for factor in (0.4, 1.3):
      expected = np.clip(still + factor * (pixels - still), 0, 255)
      close(operation(image, factor), expected, within=1)
  turned = np.asarray(hue(image, 1 / 3))
  close(turned, np.roll(pixels, 1, axis=-1), within=6)
  close(turned, hue(image, -2 / 3), within=6)


def test_crops_stay_those_without():
  """What is drawn for a colour is drawn after the crop."""
  crop = transforms_crop.RandomResizedCrop((16, 16), flip=True)
  grey = color_jitter.ColorJitter(crop, grey=1)
  for i in range(5):
    pixels = crop(picture(), np.random.default_rng(i))
    luma = np.asarray(Image.fromarray(pixels).convert('L'))
    np.testing.assert_array_equal(
      grey(picture(), np.random.default_rng(i))[..., 0], luma
    )


@pytest.mark.parametrize(
  ('setting', 'message'),
  [
    ({'jitter': 1.5}, r'data\.jitter is 1\.5: take a strength from 0 to 1\.25'),
    ({'grey': -0.1}, r'data\.grey is -0\.1: take a share from 0 to 1'),
    ({'blur': 2.0}, r'data\.blur is 2\.0: take a share'),
  ],
)
def test_strengths_that_can_not_be(setting, message):
  """Refused by the transform too, and the knobs are off in the recipes."""
  config = tiny.get_config()
  assert not (config.data.jitter or config.data.grey or config.data.blur)
  with pytest.raises(UserError, match=message):
    color_jitter.ColorJitter(WHOLE_IMAGE, **setting)
  config.data.update(setting)
  with pytest.raises(UserError, match=message.split(':')[0]):
    make_run(config)


def test_color_changes_need_three_channels():
  config = tiny.get_config()
  config.data.update(blur=0.5, channels=1, mean=(0.5,), std=(0.5,))
  with pytest.raises(UserError, match='for 3 channels and the images have 1'):
    make_run(config)


def test_knobs_reach_the_batches():
  config = tiny.get_config()
  config.data.update(grey=1.0, workers=0, count=64)
  config.batch_size = 8
  batches = iter(make_run(config).batches(0))
  assert (np.ptp(next(batches)['image'], axis=-1) == 0).all()
