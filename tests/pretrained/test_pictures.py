"""Pictures as users give them, and the pixels that the encoder sees."""

import numpy as np
import PIL.Image
import pytest

from ijepa_jax.errors import UserError
from tests.pretrained.small_encoder import (
  pixels,
)


def test_ways_to_give_pictures(encoder, photos):
  seen = encoder.crop(photos)
  assert seen.shape == (4, 48, 48, 3) and seen.dtype == np.uint8
  upright = [PIL.ImageOps.exif_transpose(PIL.Image.open(p)) for p in photos]
  for same in (
    list(map(str, photos)),
    map(PIL.Image.open, photos),
    upright,
    [np.asarray(image) for image in upright],
    [photos[0], upright[1], np.asarray(upright[2])[..., None], upright[3]],
  ):
    np.testing.assert_array_equal(encoder.crop(same), seen)
  # An array is taken as it is.
  np.testing.assert_array_equal(
    encoder.features(photos), encoder.features(seen)
  )
  # The crop of the evaluations: 55 pixels of the shorter side, 48 of them.
  wide = PIL.Image.open(photos[0]).resize((73, 55), PIL.Image.BICUBIC)
  expected = np.asarray(wide)[3:51, 12:60]
  np.testing.assert_array_equal(seen[0], expected)
  # Lazily opened, and twice in the list.
  lazy = PIL.Image.open(photos[1])
  again = encoder.crop([lazy] * 20)
  np.testing.assert_array_equal(again, seen[1:2].repeat(20, 0))


def test_odd_modes(encoder, tmp_path):
  """Opened by the user or here, they are the same; and stay what they are."""
  ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
  colour = PIL.Image.fromarray(pixels(1)[0])
  colour.convert('P').save(tmp_path / '1.png', transparency=3)
  PIL.Image.fromarray(ramp).save(tmp_path / '2.png')
  colour.convert('RGBA').save(tmp_path / '3.png')
  colour.convert('CMYK').save(tmp_path / '4.tif')
  paths = sorted(tmp_path.iterdir())
  opened = [PIL.Image.open(p) for p in paths]
  seen = encoder.crop(paths)
  assert seen[1].std() > 50
  np.testing.assert_array_equal(encoder.crop(opened), seen)
  assert opened[0].info['transparency'] == 3 and opened[0].mode == 'P'


def test_a_picture_cut_short_is_told(encoder, photos, tmp_path):
  path = tmp_path / 'half.png'
  path.write_bytes(photos[0].read_bytes()[:90])
  for picture, name in ((path, 'half.png'), (PIL.Image.open(path), '2')):
    with pytest.raises(UserError, match=f'{name} cannot be read'):
      encoder.features([*photos[:2], picture])
