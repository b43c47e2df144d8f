"""ImageEncoder: features of images, however they are given."""

import jax
import numpy as np
import PIL.Image
import pytest

from ijepa_jax.errors import UserError
from ijepa_jax.models import vit
from ijepa_jax.pretrained import load
from ijepa_jax.pretrained.formats import (
  huggingface,
)
from ijepa_jax.runtime import sharding
from tests.close import BFLOAT16, close
from tests.pretrained.small_encoder import (
  CONFIG,
  by_hand,
  normalised,
  pixels,
  random_params,
)

KINDS = 'pooled', 'tokens', 'last4'


@pytest.mark.parametrize('shape', [(48, 48), (24, 64)])
def test_the_three_kinds(encoder, params, shape):
  image = pixels(3, *shape)
  expected = by_hand(params, image)
  for kind in KINDS:
    actual = encoder.features(image, kind)
    assert actual.dtype == np.float32 and type(actual) is np.ndarray
    close(actual, expected[kind])
  tokens = encoder.features(image, 'tokens')
  assert tokens.shape == (3, shape[0] * shape[1] // 64, 32)


def test_kinds_of_arrays(encoder):
  image = pixels(3)
  expected = encoder.features(image)
  for same in (
    image / 255,
    (image / 255).astype(np.float32),
    jax.numpy.asarray(image),
    jax.numpy.asarray(image / np.float32(255)),
  ):
    close(encoder.features(same), expected)
  actual = encoder.features(normalised(image), normalized=True)
  close(actual, expected)
  half = jax.numpy.asarray(image / 255, 'bfloat16')
  close(encoder.features(half), expected, BFLOAT16)


def test_neither_batches_nor_devices_matter(encoder, folder, cpus):
  image = pixels(21)
  expected = encoder.features(image, 'last4')
  assert expected.shape == (21, 4 * 32)
  for devices, size in ((1, 4), (3, 1)):
    mesh = sharding.make_mesh(devices=cpus[:devices])
    other = load.load_encoder(folder, mesh=mesh, batch_size=size)
    actual = other.features(image, 'last4')
    close(actual, expected)
  split = sharding.make_mesh(fsdp=4, devices=cpus)
  other = load.load_encoder(folder, mesh=split)
  close(other.features(image, 'last4'), expected)


def test_more_pictures_than_a_batch_read_as_needed(encoder):
  images, ahead, computed = pixels(40), [], []
  run = encoder._run['pooled']

  def give():
    for i, image in enumerate(images):
      ahead.append(i // 16 - len(computed))
      yield image

  def counting(*args):
    computed.append(1)
    return run(*args)

  encoder._run['pooled'] = counting
  try:
    actual = encoder.features(give())
  finally:
    encoder._run['pooled'] = run
  assert set(ahead) == {0}  # none is read before the batch before it runs
  expected = encoder.features(encoder.crop(images))
  close(actual, expected)


def test_compilations(folder, caplog):
  encoder = load.load_encoder(folder, batch_size=32)

  def compiled(n, kind='pooled', **kwargs):
    caplog.clear()
    with jax.log_compiles():
      assert len(encoder.features(pixels(n, **kwargs), kind)) == n
    return sum('Finished XLA comp' in r.getMessage() for r in caplog.records)

  assert compiled(5) == 1
  assert compiled(5) == 0
  # Alike: what few images are padded to, and the last of many batches.
  assert [compiled(n) for n in (1, 2, 8)] == [0, 0, 0]
  assert [compiled(n) for n in (9, 16, 20, 32, 33, 70)] == [1, 0, 1, 0, 0, 0]
  assert [compiled(70, 'tokens'), compiled(33, 'tokens')] == [1, 0]
  assert [compiled(3, h=24), compiled(3, h=24)] == [1, 0]


def test_what_it_says_of_itself(encoder, folder):
  assert encoder.name == 'hf, target encoder'
  assert encoder.image_size == (48, 48) and encoder.grid == (6, 6)
  assert (encoder.width, encoder.patch_size, encoder.channels) == (32, 8, 3)
  assert encoder.mean == vit.IMAGENET_MEAN
  assert encoder.std == vit.IMAGENET_STD
  assert repr(encoder) == (
    '<hf, target encoder: 48 x 48, patches of 8, width 32>'
  )
  other = load.load_encoder(folder, image_size=64, pos_embed='interpolate')
  assert other.grid == (8, 8)
  assert other.name.endswith('encoder, at 64 x 64, positions interpolated')


@pytest.mark.parametrize(
  ('images', 'kwargs', 'words'),
  [
    (pixels(2), {'kind': 'mean'}, "'mean': take one of pooled, tokens, last4"),
    ('a.jpg', {}, r'give a list of it, \[picture\]'),
    (PIL.Image.new('RGB', (9, 9)), {}, 'give a list of it'),
    ([], {}, 'no images'),
    (pixels(0), {}, 'no images'),
    (pixels(2)[0], {}, r'\(48, 48, 3\): take \[n, H, W, 3\]'),
    (pixels(2).transpose(0, 3, 1, 2), {}, r'\(2, 3, 48, 48\).*channels last'),
    (pixels(2, c=1), {}, r'take \[n, H, W, 3\]'),
    (pixels(2, 50), {}, r'50 x 48.*patches of 8.*list\(images\).*48 x 48'),
    (pixels(2).astype(int), {}, 'int64: take uint8'),
    (pixels(2) / 1.0, {}, r'from 0 to 255.*\[0, 1\].*normalized=True'),
    (pixels(2) * np.nan, {}, 'nan'),
    (pixels(2), {'normalized': True}, 'uint8: take floats'),
    (list(pixels(2)), {'normalized': True}, 'normalized is for arrays'),
    (['/nowhere.png'], {}, r'/nowhere\.png cannot be read'),
    ([__file__], {}, r'test_image_encoder\.py cannot be read'),
    ([*pixels(2), 5], {}, 'Picture 2 cannot be read: it is int; take a path'),
    (list(pixels(2) / 255), {}, r'Picture 0 .*float64 \(48, 48, 3\)'),
    ([pixels(1, c=5)[0]], {}, 'Picture 0.*5 channels'),
    ([np.zeros((0, 3), np.uint8)], {}, 'Picture 0'),
  ],
)
def test_mistakes_in_images_are_told(encoder, images, kwargs, words):
  with pytest.raises(UserError, match=words) as told:
    encoder.features(images, **kwargs)
  assert '\n' not in str(told.value)


def test_other_channels(tmp_path, photos, one):
  config = CONFIG | {'channels': 5, 'mean': [0.5] * 5, 'std': [0.5] * 5}
  huggingface.write(tmp_path / 'hf', {'target': random_params(config)}, config)
  encoder = load.load_encoder(tmp_path / 'hf', mesh=one)
  image = pixels(2, c=5)
  features = encoder.features(list(image))
  assert features.shape == (2, 32)
  paths = [tmp_path / '0.npy', tmp_path / '1.npy']
  for path, pixels_HWC in zip(paths, image, strict=True):
    np.save(path, pixels_HWC)
  np.testing.assert_array_equal(encoder.features(paths), features)
  with pytest.raises(UserError, match=r'0\.png.*takes 5 channels'):
    encoder.features(photos)
