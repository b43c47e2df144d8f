"""JPEGs decoded no further than needed, and by faster libraries: how near both
come to Pillow.
"""

import io

import numpy as np
import pytest
from PIL import Image

from ijepa_jax.data import decode
from ijepa_jax.data.transforms import crop as transforms_crop
from tests.data.test_decode import PHOTOS, assert_turned, encoded


def photo(width, height) -> Image.Image:
  """A large one, as sharp as small ones are: many of them side by side."""
  image = Image.new('RGB', (width, height))
  tiles = [Image.open(path) for path in PHOTOS]
  for i, y in enumerate(range(0, height, 427)):
    for j, x in enumerate(range(0, width, 512)):
      image.paste(tiles[(i + j) % len(tiles)], (x, y))
  return image


def apart(side, scale):
  """How far a crop to 128 x 128 is from Pillow's of the full image."""
  data = encoded(photo(2600, 2200), 'JPEG', quality=92)
  lazy, full = decode.Encoded(data, 3), Image.open(io.BytesIO(data))
  box = (41, 57, 41 + side, 57 + side)
  crop = transforms_crop.crop(lazy, box, (128, 128)).astype(int)
  assert list(lazy._decoded) == [scale]
  expected = full.crop(box).resize((128, 128), Image.Resampling.BILINEAR)
  return abs(crop - np.asarray(expected))


@pytest.mark.parametrize(
  ('side', 'scale'), [(1000, 1), (1023, 1), (1024, 2), (2047, 2), (2048, 4)]
)
def test_jpegs_are_reduced_where_it_shows_little(side, scale):
  """By a scale that leaves 99 values in 100 within 2 grey levels."""
  if scale == 1:
    assert not apart(side, scale).any()
  else:
    assert np.mean(apart(side, scale) > 2) < 0.01


def test_at_half_the_margin_it_would_show(monkeypatch):
  monkeypatch.setattr(decode, 'MIN_DRAFT_RATIO', 2)
  assert np.mean(apart(520, 2) > 2) > 0.05


def test_no_other_kind_is_reduced():
  data = encoded(photo(1200, 1100), 'PNG')
  lazy = decode.Encoded(data, 3)
  transforms_crop.crop(lazy, (0, 0, 1200, 1100), (32, 32))
  assert list(lazy._decoded) == [1]


@pytest.mark.parametrize(
  ('orientation', 'size', 'scale'),
  [
    (1, (1203, 1005), 8),
    *((i, (1200, 1000), 8) for i in range(2, 9)),
    (6, (1204, 1004), 4),
    (6, (1203, 1005), 1),
  ],
)
def test_reduced_and_turned(orientation, size, scale):
  """The box means the same pixels, whichever way up they were stored."""
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encoded(photo(*size), 'JPEG', quality=92, exif=exif)
  lazy = decode.Encoded(data, 3)
  crop = transforms_crop.CenterCrop((24, 24), 26)(lazy).astype(int)
  assert list(lazy._decoded) == [scale]
  full = transforms_crop.CenterCrop((24, 24), 26)(decode.decode(data, 3))
  assert abs(crop - full).mean() < 0.5


# ---- fast ----


@pytest.fixture
def fast():
  for name in decode.FAST_PACKAGES:
    pytest.importorskip(name)


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_fast_pixels_are_pillows(fast, channels, mode):
  for path in PHOTOS:
    for settings in ({}, {'progressive': True}, {'subsampling': 0}):
      if mode == 'L':
        settings.pop('subsampling', None)
      image = Image.open(path).convert(mode)
      data = encoded(image, 'JPEG', quality=90, **settings)
      for scale in (1, 2, 4, 8):
        pixels = decode.Encoded(data, channels, fast=True).pixels(scale)
        expected = decode.Encoded(data, channels).pixels(scale)
        np.testing.assert_array_equal(
          np.squeeze(np.asarray(pixels)), np.asarray(expected)
        )


@pytest.mark.parametrize('channels', [1, 3])
def test_fast_crops_are_near(fast, channels):
  """Within a grey level; and bicubic ones are Pillow's."""
  rng = np.random.default_rng(0)
  for path in PHOTOS:
    data = path.read_bytes()
    for size in ((224, 224), (96, 128), (700, 500)):
      box = transforms_crop.RandomResizedCrop(size).box(640, 427, rng)
      exact, fast = (
        transforms_crop.crop(
          decode.Encoded(data, channels, f), box, size
        ).astype(int)
        for f in (False, True)
      )
      assert exact.shape == fast.shape == (*size, channels)
      assert abs(exact - fast).max() <= 1
  center_crop = transforms_crop.CenterCrop((64, 64), 70)
  np.testing.assert_array_equal(
    *(center_crop(decode.Encoded(data, 3, f)) for f in (False, True))
  )


def test_fast_follows_exif(fast):
  for orientation in range(1, 9):
    assert_turned('JPEG', orientation, fast=True)


def test_fast_gives_up_as_pillow_does(fast):
  data = PHOTOS[0].read_bytes()
  with pytest.raises(decode.BadImage, match='truncated'):
    decode.Encoded(data[:30_000], 3, fast=True).pixels()
