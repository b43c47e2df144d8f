"""Whole runs of the generator: pages, figures and numbers from a run."""

import json

import numpy as np
import PIL.Image
import pytest

from configs import tiny, visualize
from ijepa_jax.errors import UserError
from ijepa_jax.runtime.checkpoint import checksums
from ijepa_jax.train import loop
from ijepa_jax.visualize import report, subject
from ijepa_jax.visualize.generator import train


def make_config(path, cache, **changes):
  c = visualize.get_config()
  c.init_from, c.cache_dir, c.batch_size = str(path), str(cache), 16
  c.visualize.update(images=24, shown=2, draws=20, judged=8, seeds=2)
  c.visualize.sample_steps = 2
  c.generator.update(total_steps=3, blocks=64, width=16, depth=1, heads=2)
  c.generator.update(batch_size=16, warmup_steps=1)
  c.update_from_flattened_dict(changes)
  return c


@pytest.mark.usefixtures('one_device')
def test_from_a_run_to_page_figure_and_numbers(workdir, cache, model, mesh):
  before = checksums.digests((model.params, model.target))
  steps = {'generator.total_steps': 6, 'generator.blocks': 96}
  config = make_config(workdir, cache, **steps)
  numbers = report.run(config, '')
  out = workdir / 'visualize'
  assert json.loads((out / 'report.json').read_text()) == numbers
  generated = numbers['generator']
  assert generated['steps'] == 6 and generated['blocks'] == 96
  assert generated['rank']['sample']['candidates'] == 7
  assert {'real block', 'sample', 'no vector', "another image's vector"} <= set(
    generated['labels']['hue']
  )
  assert {'rankme', 'gap_share'} <= set(numbers['health'])
  picture = PIL.Image.open(out / 'samples.png')
  assert round(picture.info['dpi'][0]) == 300 and picture.width > 1500
  pdf = (out / 'samples.pdf').read_bytes()
  assert b'/Font' in pdf and b'/Type3' not in pdf  # text stays text
  text = (out / 'index.html').read_text()
  for words in ('What it draws', 'found again', 'Which label', 'Health'):
    assert words in text
  after = subject.load_subject(workdir, mesh)
  assert checksums.digests((after.params, after.target)) == before


@pytest.mark.usefixtures('one_device')
def test_the_generator_goes_on_bit_for_bit(
  workdir, cache, tmp_path, monkeypatch
):
  """Stopped after its second step, it ends as if it had not stopped."""
  config = make_config(workdir, cache, **{'generator.every_steps': 2})
  config.generator.blocks = 32  # as many for two steps
  expected = report.run(config, str(tmp_path / 'whole'))

  def broken(state):
    raise RuntimeError('broken')

  with monkeypatch.context() as patch:
    patch.setattr(train, '_held_out_loss', lambda *_: broken)
    with pytest.raises(loop.MonitorFailed):
      report.run(config, str(tmp_path / 'stopped'))
  (checkpoints,) = (tmp_path / 'stopped').glob('generator/*/checkpoints')
  assert [p.name for p in checkpoints.iterdir() if p.name.isdigit()] == ['2']
  # The page without the generator is there all the same.
  assert (tmp_path / 'stopped/index.html').exists()
  assert report.run(config, str(tmp_path / 'stopped')) == expected
  # Asked for fewer steps than there are, the report says how many it has.
  config.generator.total_steps = 2
  numbers = report.run(config, str(tmp_path / 'stopped'))
  assert numbers['generator']['steps'] == 3


def make_sources(tmp_path, count, shape):
  path = tmp_path / 'images'
  path.mkdir()
  r = np.random.default_rng(0)
  for i in range(count):
    pixels = r.integers(0, 256, shape, np.uint8)
    if len(shape) == 3 and shape[-1] > 4:
      np.save(path / f'{i}.npy', pixels)
    else:
      PIL.Image.fromarray(pixels).save(path / f'{i}.png')
  return path


@pytest.mark.usefixtures('one_device')
@pytest.mark.parametrize(
  'channels', [13, pytest.param(1, marks=pytest.mark.slow)]
)
def test_images_of_any_channels_that_are_not_square(
  untrained_run, cache, tmp_path, channels
):
  c = tiny.get_config()
  shape = (48, 64) if channels == 1 else (48, 64, channels)
  c.data.source, c.data.path = 'folder', str(make_sources(tmp_path, 12, shape))
  c.data.split, c.data.image_size, c.data.channels = '', (48, 64), channels
  c.data.mean, c.data.std = (0.5,) * channels, (0.25,) * channels
  c.model.depth = 1
  c.mask.sampler, c.mask.num_targets = 'release', 4
  c.mask.target_scale, c.mask.target_aspect = (0.15, 0.2), (0.75, 1.5)
  c.mask.min_keep = 2
  untrained_run(c, tmp_path / 'run')
  # Several batches: the sampler draws a size for each step.
  config = make_config(tmp_path / 'run', cache, batch_size=8)
  numbers = report.run(config, '')
  assert numbers['generator']['labels'] == {}
  # Half of the twelve are judged, and learned from is the other half.
  assert numbers['generator']['rank']['sample']['candidates'] < 6
  assert (tmp_path / 'run/visualize/samples.png').exists()


@pytest.mark.usefixtures('one_device')
def test_too_few_images(untrained_run, cache, tmp_path, caplog):
  c = tiny.get_config()
  c.data.source = 'folder'
  c.data.path = str(make_sources(tmp_path, 3, (48, 48, 3)))
  c.data.split, c.model.depth = '', 1
  untrained_run(c, tmp_path / 'run')
  numbers = report.run(make_config(tmp_path / 'run', cache), '')
  assert 'generator' not in numbers and 'too few' in caplog.text
  config = make_config(tmp_path / 'run', cache)
  (tmp_path / 'images/0.png').unlink()
  (tmp_path / 'images/1.png').unlink()
  with pytest.raises(UserError, match='There are 1 images'):
    report.run(config, '')


@pytest.mark.usefixtures('one_device')
def test_targets_that_are_no_rectangles(untrained_run, cache, tmp_path, caplog):
  c = tiny.get_config()
  c.mask.sampler, c.model.depth, c.data.count = 'random', 1, 40
  untrained_run(c, tmp_path / 'run')
  numbers = report.run(make_config(tmp_path / 'run', cache), '')
  assert 'generator' not in numbers and 'no rectangles' in caplog.text


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'generator.patch_size': 5}, 'image_size is 16, patch_size 5'),
    ({'generator.heads': 3}, 'heads 3'),
    ({'generator.batch_size': 12}, 'multiple of the 8 devices'),
    ({'generator.dtype': 'float8'}, 'float8'),
    ({'visualize.seeds': 1}, 'visualize.seeds is 1: take 2 or more'),
    ({'generator.ema': 1.5}, 'generator.ema is 1.5'),
  ],
)
def test_mistakes_before_anything_is_computed(
  workdir, cache, changes, words, tmp_path
):
  with pytest.raises(UserError, match=words):
    report.run(make_config(workdir, cache, **changes), str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()
