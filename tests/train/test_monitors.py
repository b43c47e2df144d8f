"""What looks at a run: on any labelled images, and which checkpoint is kept."""

import json
import os
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from configs import tiny
from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files, metrics
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.train import (
  compile,
  health,
  loop,
  monitors,
  online_probe,
  pretrain,
  report,
)
from ijepa_jax.train.run import make_run


def make_config(images, **changes):
  c = tiny.get_config()
  c.data.source, c.data.path = 'folder', str(images)
  c.batch_size, c.model.depth, c.mask.sampler = 16, 2, 'rasterized'
  c.probe.every_steps, c.probe.split = 5, 'test'
  c.health.images, c.health.every_steps = 16, 5
  c.log.tensorboard = False
  c.update_from_flattened_dict(changes)
  return c


def test_probe_of_a_folder(images):
  config = make_config(images)
  run = make_run(config)
  probe = monitors.make_probe(run)
  _, make_state = compile.abstract_state(run)
  found = probe(make_state(jax.random.key(0)).target)
  assert found['probe/label'] == found['knn/label'] == 1.0
  assert set(found) == set(probe.names)
  assert probe.chance()['probe/label'] == 0.5
  assert probe.pixels()['probe/label'] == 1.0


def test_the_best_checkpoint_is_kept(tmp_path):
  """By a signal that is looked at with each save."""
  config = tiny.get_config()
  config.update_from_flattened_dict(
    {
      'total_steps': 8,
      'batch_size': 16,
      'data.count': 100,
      'model.depth': 2,
      'mask.sampler': 'rasterized',
      'probe.every_steps': 0,
      'health.every_steps': 100,
      'health.images': 16,
      'checkpoint.every_steps': 2,
      'checkpoint.keep_last': 1,
      'checkpoint.keep_best': 'health/feature_std',
      'checkpoint.keep_best_mode': 'max',
      'log.tensorboard': False,
    }
  )
  pretrain.run(config, tmp_path)
  values = {
    row['step']: row['health/feature_std']
    for row in metrics.read(tmp_path)
    if 'health/feature_std' in row
  }
  assert list(values) == [2, 4, 6, 8]
  best = max(values, key=values.get)
  with checkpointer.Checkpointer(tmp_path / 'checkpoints') as checkpoints:
    assert checkpoints.steps() == sorted({best, 8})


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'probe.split': ''}, 'probe.split is empty'),
    ({'probe.split': 'val'}, "'val'"),
    ({'probe.split': 'train'}, "'train' names the images that are trained on"),
    ({'probe.split': 'other'}, "a class 'green': give both the same"),
    ({'probe.split': 'renamed'}, "a class 'blue': give both the same"),
  ],
)
def test_mistakes_are_told(changes, words, images, tmp_path):
  for split in 'train', 'test':
    shutil.copytree(images / split, tmp_path / split)
  shutil.copytree(images / 'test', tmp_path / 'other')
  shutil.copytree(tmp_path / 'other/red', tmp_path / 'other/green')
  shutil.copytree(images / 'test', tmp_path / 'renamed')
  os.rename(tmp_path / 'renamed/blue', tmp_path / 'renamed/purple')
  config = make_config(tmp_path, **changes)
  run = make_run(config)
  with pytest.raises(UserError, match=words):
    monitors.make_probe(run)


def test_images_without_labels(images, tmp_path, caplog, capsys):
  """A flat folder trains, and ends with a table, a verdict and curves."""
  folder = tmp_path / 'flat'
  shutil.copytree(images / 'train/red', folder)
  changes = {'health.split': 'val', 'total_steps': 2, 'optim.warmup_steps': 1}
  workdir = tmp_path / 'run'
  pretrain.run(make_config(folder, **changes), workdir)
  assert 'The images have no classes' in caplog.text
  assert "no folder 'val'" in caplog.text
  assert 'are of training images' in caplog.text
  shown = capsys.readouterr().out
  found = json.loads((workdir / 'report.json').read_text())
  assert found['verdict_in_words'] in shown
  assert 'No label was there to judge by' in found['verdict_in_words']
  assert (workdir / 'curves.png').exists()


def test_keep_best_of_what_is_not_looked_at(images):
  config = make_config(
    images, **{'checkpoint.keep_best': 'probe/clas', 'health.every_steps': 0}
  )
  run = make_run(config)
  probe = monitors.make_probe(run)
  with pytest.raises(UserError, match='probe/label, knn/label, rankme'):
    monitors.make_monitors(run, probe, None)


def few(images, path, train, test):
  """As many images of each class."""
  for split, count in (('train', train), ('test', test)):
    for name in 'blue', 'red':
      (path / split / name).mkdir(parents=True)
      for k in range(count):
        shutil.copy(images / split / name / f'{k:02}.png', path / split / name)
  return path


def test_a_probe_of_a_few_images(images, tmp_path):
  """Neighbours are as many as there are training images at most."""
  config = make_config(few(images, tmp_path, 3, 1))
  run = make_run(config)
  probe = monitors.make_probe(run)
  assert [len(x.images) for x in (probe.train, probe.test)] == [6, 2]
  _, make_state = compile.abstract_state(run)
  found = probe(make_state(jax.random.key(0)).target)
  assert set(found) == set(probe.names)
  assert all(np.isfinite(value) for value in found.values())


@pytest.mark.parametrize(
  ('train', 'test', 'words'),
  [
    (2, 1, '4 training examples are too few for a probe: take at least 5'),
    (3, 0, 'looked for files ending'),
  ],
)
def test_too_few_for_a_probe(train, test, words, images, tmp_path):
  config = make_config(few(images, tmp_path, train, test))
  run = make_run(config)
  with pytest.raises(UserError, match=words):
    monitors.make_probe(run)


def test_one_class_to_probe(images, tmp_path):
  few(images, tmp_path, 6, 6)
  for split in 'train', 'test':
    shutil.rmtree(tmp_path / split / 'red')
  config = make_config(tmp_path)
  run = make_run(config)
  with pytest.raises(
    UserError, match=r'fewer than two classes.*probe\.every_steps=0'
  ):
    monitors.make_probe(run)


@pytest.mark.parametrize(('count', 'seen'), [(12, 24), (6, 8), (4, 8)])
def test_health_sees_no_image_twice(count, seen, images, tmp_path):
  config = make_config(few(images, tmp_path, 1, count))
  config.health.images, config.health.split = 100, 'test'
  look = monitors.make_health(make_run(config))
  pixels = np.asarray(look.batch['image'])
  assert len({image.tobytes() for image in pixels}) == len(pixels) == seen


def test_too_few_images_for_health(images, tmp_path, cpus, monkeypatch):
  config = make_config(few(images, tmp_path, 1, 3))
  config.health.split = 'test'
  run = make_run(config)
  with pytest.raises(
    UserError, match=r'There are 6 images .* 8 are needed on 8 devices'
  ):
    monitors.make_health(run)
  (tmp_path / 'test/red/00.png').rename(tmp_path / 'one.png')
  for path in (tmp_path / 'test').rglob('*.png'):
    path.unlink()
  (tmp_path / 'one.png').rename(tmp_path / 'test/one.png')
  one = make_run(config, cpus[:1])
  with pytest.raises(UserError, match=r'There are 1 images .* 2 are'):
    monitors.make_health(one)


def stopping_config():
  config = tiny.get_config()
  config.update_from_flattened_dict(
    {
      'total_steps': 8,
      'batch_size': 16,
      'data.count': 100,
      'model.depth': 2,
      'mask.sampler': 'rasterized',
      'probe.every_steps': 0,
      'health.every_steps': 3,
      'health.images': 16,
      'checkpoint.every_steps': 100,
      'log.tensorboard': False,
    }
  )
  return config


def test_a_look_that_fails_loses_nothing(tmp_path, monkeypatch):
  """The state is saved first; what went wrong is raised as it is."""
  signals = health.Health.__call__

  def fails(self, state):
    if state.step == 6:
      raise KeyError('our own mistake')
    return signals(self, state)

  config = stopping_config()
  monkeypatch.setattr(health.Health, '__call__', fails)
  with pytest.raises(loop.MonitorFailed) as raised:
    pretrain.run(config, tmp_path)
  assert isinstance(raised.value.__cause__, KeyError)
  rows = metrics.read(tmp_path)
  assert [row['step'] for row in rows] == [1, 2, 3, 4, 5, 6]
  with checkpointer.Checkpointer(tmp_path / 'checkpoints') as checkpoints:
    assert checkpoints.steps() == [6]
  monkeypatch.setattr(health.Health, '__call__', signals)
  assert pretrain.run(config, tmp_path).step == 8
  assert 'health/rankme' in metrics.read(tmp_path)[-1]


@pytest.mark.parametrize('seen_by', ['save', 'look'])
def test_a_state_that_is_not_finite_is_not_kept(seen_by, tmp_path, monkeypatch):
  """Of which loss and gradient tell nothing yet: by the step after alone."""
  config = stopping_config()
  if seen_by == 'save':
    config.health.every_steps = 0
  config.checkpoint.every_steps = 3
  compile_steps = compile.compile_steps

  def spoiling(*args):
    def spoilt(step):
      def run(state, batch):
        state, values = step(state, batch)
        with jax.transfer_guard('allow'):
          if state.step == 6:
            scale = state.target['norm']['scale']
            state.target['norm']['scale'] = scale.at[0].set(jnp.nan)
        return state, values

      return run

    return {k: spoilt(step) for k, step in compile_steps(*args).items()}

  def fails(self, state):
    if state.step == 6:
      raise np.linalg.LinAlgError('SVD did not converge')
    return {}

  monkeypatch.setattr(compile, 'compile_steps', spoiling)
  monkeypatch.setattr(health.Health, '__call__', fails)
  with pytest.raises(
    loop.NotFinite, match=r'step 6 .*target/norm/scale; .* is 3.*peak_lr'
  ):
    pretrain.run(config, tmp_path)
  with checkpointer.Checkpointer(tmp_path / 'checkpoints') as checkpoints:
    assert checkpoints.steps() == [3]


def test_the_report_says_what_it_is_of(tmp_path, capsys):
  """As many images as there were, and seconds of this start alone."""

  class Probe:
    train, test = (
      online_probe.LabelledImages(
        np.zeros((n, 1)), np.zeros((n, 1)), {'label': 2}
      )
      for n in (37, 21)
    )

    def chance(self):
      return {'probe/label': 0.5}

    def __call__(self, params=None):
      return {'probe/label': 0.75, 'rankme': 3.0}

    pixels = monitor = __call__

  config = stopping_config()
  config.probe.test_count, config.probe.train_count = 2000, 5000
  run = make_run(config)
  files.atomic_write_text(
    tmp_path / 'metrics.jsonl', '{"step": 400, "loss": 0.5}\n'
  )
  state = types.SimpleNamespace(step=400, params=None, target=None)
  report.report(
    *(run, tmp_path, state, lambda key: state, lambda: 1.0), probe=Probe()
  )
  shown = capsys.readouterr().out
  assert 'on 21 held-out images' in shown
  assert '37 training images; after 400 steps' in shown
  assert 's since the last start:' in shown and '2000' not in shown
  found = json.loads((tmp_path / 'report.json').read_text())
  assert found['held_out_images'] == 21 and found['training_images'] == 37
  assert found['verdict'] == 'bad'  # no better than untrained
  assert found['steps'] == 400 and found['seconds_since_last_start'] > 0


def test_pictures_of_masks_and_tokens(images, tmp_path, cpus):
  """Drawn at most so many times, and shown on TensorBoard too."""
  config = make_config(images, **{'total_steps': 1000, 'model.depth': 1})
  run = make_run(config, cpus[:1])
  _, make_state = compile.abstract_state(run)
  state = make_state(jax.random.key(0))
  with metrics.MetricWriter(tmp_path, tensorboard=True) as writer:
    of_health = [(run.health.every_steps, monitors.make_health(run))]
    ((every, picture),) = monitors.make_pictures(run, of_health, writer)
    assert every == 50
    assert picture(state) == {}
  with PIL.Image.open(tmp_path / 'pictures/tokens.png') as drawn:
    # 96 pixels each: the image, two masks, two ways to color; 6 images.
    assert drawn.size == (5 * 100 - 4, 6 * 100 - 4)
  (events,) = (tmp_path / 'tensorboard').iterdir()
  assert b'tokens' in events.read_bytes()
