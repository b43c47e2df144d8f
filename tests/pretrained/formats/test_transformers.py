"""Folders of Hugging Face against transformers itself."""

import json
import re

import numpy as np
import PIL.Image
import pytest

from ijepa_jax.convert import export
from ijepa_jax.data import decode
from ijepa_jax.data.transforms import crop
from ijepa_jax.models import positions
from ijepa_jax.pretrained.formats import (
  huggingface,
  huggingface_names,
  release_names,
  weights,
)
from tests.close import close
from tests.pretrained.formats.test_huggingface import assert_equal, outputs

SHAPES = {
  'tiny': dict(size='tiny', image_size=(224, 224), patch_size=16),
  'tiny wide': dict(size='tiny', image_size=(64, 112), patch_size=16),
  'huge': dict(size='huge', depth=2, image_size=(224, 224), patch_size=14),
  'huge tall': dict(size='huge', depth=2, image_size=(112, 56), patch_size=14),
}


@pytest.fixture
def transformers(monkeypatch):
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  pytest.importorskip('torch')
  return pytest.importorskip('transformers')


def their_outputs(transformers, model, image_BHWC):
  import torch

  with torch.no_grad():
    pixels = torch.from_numpy(image_BHWC.transpose(0, 3, 1, 2).copy())
    return model.eval()(pixel_values=pixels).last_hidden_state.numpy()


@pytest.fixture(params=SHAPES)
def config(request):
  return weights.complete_config(SHAPES[request.param] | {'channels': 3}, [])


def random_tensors(config):
  """Large enough that every tensor matters; in the release's names."""
  r = np.random.default_rng(0)
  tensors = {
    name: r.normal(0, 0.05, shape).astype(np.float32)
    for name, shape in weights.release_shapes(config, 'encoder').items()
  }
  for name in tensors:
    if 'norm' in name and name.endswith('weight'):
      tensors[name] += 1
  grid = [n // config['patch_size'] for n in config['image_size']]
  tensors['pos_embed'] = positions.sincos_table(grid, config['width'])[None]
  return tensors


def test_their_model_here(transformers, config, tmp_path):
  import torch

  model = transformers.IJepaModel(
    transformers.IJepaConfig(
      hidden_size=config['width'],
      num_hidden_layers=config['depth'],
      num_attention_heads=config['heads'],
      intermediate_size=config['mlp_dim'],
      patch_size=config['patch_size'],
      image_size=list(config['image_size']),
      layer_norm_eps=1e-6,
    )
  )
  tensors = huggingface_names.from_release(random_tensors(config))
  model.save_pretrained(tmp_path / 'random')
  assert 'table differs' in huggingface.read(tmp_path / 'random').notes[-1]
  named = dict(model.named_parameters())
  older = {huggingface_names.older(name): name for name in named}
  assert older.keys() == tensors.keys()
  with torch.no_grad():
    for name, x in tensors.items():
      named[older[name]].copy_(torch.from_numpy(x.copy()))
  for name, options in {
    'a': {},
    # The names of transformers 5's modules.
    'b': {'save_original_format': False},
  }.items():
    model.save_pretrained(tmp_path / name, **options)
    loaded = huggingface.read(tmp_path / name)
    assert loaded.config == config
    assert len(loaded.notes) == 1
    image = (
      np.random.default_rng(1)
      .normal(size=(2, *config['image_size'], 3))
      .astype(np.float32)
    )
    close(outputs(loaded, image), their_outputs(transformers, model, image))


def test_our_model_there(transformers, config, tmp_path):
  params = {
    'target': release_names.from_release(random_tensors(config), 'encoder')
  }
  stats = dict(mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.1))
  huggingface.write(tmp_path / 'ours', params, config | stats)
  model, report = transformers.IJepaModel.from_pretrained(
    tmp_path / 'ours', output_loading_info=True
  )
  assert not any(report.values()), report
  image = (
    np.random.default_rng(1)
    .normal(size=(2, *config['image_size'], 3))
    .astype(np.float32)
  )
  close(
    outputs(huggingface.read(tmp_path / 'ours'), image),
    their_outputs(transformers, model, image),
  )
  # Through their code and back: still the target encoder, bit for bit.
  model.save_pretrained(tmp_path / 'back')
  back = huggingface.read(tmp_path / 'back')
  assert_equal(back.params, params)


def test_their_classifier_here(transformers, tmp_path):
  config = transformers.IJepaConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    patch_size=8,
    image_size=48,
    layer_norm_eps=1e-6,
    num_labels=7,
  )
  model = transformers.IJepaForImageClassification(config)
  image = np.random.default_rng(1).normal(size=(2, 48, 48, 3))
  image = image.astype(np.float32)
  for name, options in {
    'one': {},
    'newer': {'save_original_format': False},
    'several': {'max_shard_size': '20kB'},
  }.items():
    model.save_pretrained(tmp_path / name, **options)
    loaded = huggingface.read(tmp_path / name)
    assert 'Passed over: classifier.bias, classifier.weight.' in loaded.notes
    # Their random table is not the one that is computed here.
    assert len(loaded.notes) == 3
    encoder, _ = weights.models(loaded.config)
    ours = encoder.apply(
      {'params': loaded.params['encoder']},
      image,
      position_ND=loaded.tables['encoder'],
    )
    error = np.asarray(ours) - their_outputs(transformers, model.ijepa, image)
    assert np.abs(error).max() < 1e-4


def photograph(width, height, seed):
  """Large patches of color with a little noise, as photographs have them."""
  r = np.random.default_rng(seed)
  coarse = r.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), np.uint8)
  image = PIL.Image.fromarray(coarse).resize((width, height))
  noise = r.normal(0, 8, (height, width, 3))
  pixels = np.clip(np.asarray(image) + noise, 0, 255)
  return PIL.Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize('size', [(48, 48), (64, 112), (224, 224)])
@pytest.mark.parametrize('channels', [1, 3])
def test_the_processor_makes_our_pixels(transformers, tmp_path, size, channels):
  if channels == 1 and transformers.__version__ < '5':
    pytest.skip('transformers 4 takes no grey pictures')
  mean, std = [0.5, 0.4, 0.3][:channels], [0.3, 0.2, 0.1][:channels]
  given = dict(image_size=size, channels=channels, mean=mean, std=std)
  written = huggingface_names.preprocessor(given)
  (tmp_path / 'preprocessor_config.json').write_text(json.dumps(written))
  (tmp_path / 'config.json').write_text('{"model_type": "ijepa"}')
  processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
  sides = (640, 480), (333, 500), (481, 321), (101, 77), (20, 13), (40, 300)
  images = [photograph(*side, seed) for seed, side in enumerate(sides)]
  if channels == 3:
    images += [images[0].convert('L'), images[1].convert('CMYK')]
  images = [image.convert(decode.MODES[channels]) for image in images]
  theirs = processor(images, return_tensors='np')['pixel_values']
  for image, theirs_CHW in zip(images, theirs, strict=True):
    pixels = theirs_CHW.transpose(1, 2, 0) * std + mean
    ours = crop.evaluation_crop(size)(image).astype(float)
    # The backend by torchvision rounds otherwise than Pillow.
    assert np.abs(255 * pixels - ours).max() < 2.1
    assert np.abs(255 * pixels - ours).mean() < 0.5


def test_the_card_as_it_is_run(transformers, small_run, tmp_path, monkeypatch):
  """The snippets of the card give the same features; of turned pictures too."""
  export.export(small_run, tmp_path / 'lr[1e-3] hf', 'huggingface')
  monkeypatch.chdir(tmp_path)
  exif = PIL.Image.Exif()
  exif[0x0112] = 6
  photograph(200, 140, 0).save('a.jpg', exif=exif)
  photograph(140, 203, 1).save('b.jpg')
  card = (tmp_path / 'lr[1e-3] hf/README.md').read_text()
  assert 'CLIPImageProcessor' in card
  assert "mean of the last layer's tokens" in card
  results = []
  for block in re.findall(r'```python\n(.*?)```', card, re.DOTALL):
    scope = {}
    exec(block, scope)
    results.append(np.asarray(scope['features']))
  ours, other = results
  length = np.linalg.norm(ours, axis=1) * np.linalg.norm(other, axis=1)
  assert ((ours * other).sum(1) / length).min() > 0.999
