"""Fixtures of the tests of pretrained/: a small encoder on disk, photos."""

import numpy as np
import PIL.Image
import pytest

from ijepa_jax.pretrained import load
from ijepa_jax.pretrained.formats import (
  huggingface,
)
from ijepa_jax.runtime import sharding
from tests.pretrained.small_encoder import CONFIG, random_params


@pytest.fixture(scope='session')
def params():
  return random_params(CONFIG)


@pytest.fixture(scope='session')
def folder(params, tmp_path_factory):
  """A Hugging Face folder of the target encoder."""
  path = tmp_path_factory.mktemp('files') / 'hf'
  huggingface.write(path, {'target': params}, CONFIG)
  return path


@pytest.fixture(scope='session')
def encoder(folder):
  return load.load_encoder(folder, batch_size=16)


@pytest.fixture(scope='session')
def one(cpus):
  """A mesh of one device: what is compiled is compiled sooner."""
  return sharding.make_mesh(devices=cpus[:1])


@pytest.fixture(scope='session')
def photos(tmp_path_factory):
  """Files: wide, high, grey, and lying on its side says EXIF."""
  path, r = tmp_path_factory.mktemp('photos'), np.random.default_rng(2)
  exif = PIL.Image.Exif()
  exif[0x0112] = 6
  shapes = (60, 80, 3), (90, 50, 3), (64, 64), (50, 70, 3)
  for i, shape in enumerate(shapes):
    coarse = r.integers(0, 256, (5, 5, *shape[2:]), np.uint8)
    image = PIL.Image.fromarray(coarse).resize(shape[1::-1])
    more = {'exif': exif} if i == 3 else {}
    image.save(path / f'{i}.png', **more)
  return sorted(path.iterdir())
