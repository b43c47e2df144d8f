"""What looks at a run: on any labelled images, and which checkpoint is kept."""

import os
import shutil

import jax
import pytest

from configs import tiny
from ijepa_jax import checkpoint, metrics, recipe, train
from ijepa_jax.evals import watch


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
  run, source = recipe.build(config), recipe.make_source(config)
  probe = watch.make_probe(config, run, source)
  _, make_state = recipe.abstract_state(config, run)
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
  train.pretrain(config, tmp_path)
  values = {
    row['step']: row['health/feature_std']
    for row in metrics.read(tmp_path)
    if 'health/feature_std' in row
  }
  assert list(values) == [2, 4, 6, 8]
  best = max(values, key=values.get)
  with checkpoint.Checkpointer(tmp_path / 'checkpoints') as checkpoints:
    assert checkpoints.steps() == sorted({best, 8})


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'probe.split': ''}, 'probe.split is empty'),
    ({'probe.split': 'val'}, "'val'"),
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
  run, source = recipe.build(config), recipe.make_source(config)
  with pytest.raises(recipe.UserError, match=words):
    watch.make_probe(config, run, source)


def test_images_without_labels(images, tmp_path):
  for split in 'train', 'test':
    shutil.copytree(images / split / 'red', tmp_path / split)
  config = make_config(tmp_path)
  run, source = recipe.build(config), recipe.make_source(config)
  with pytest.raises(recipe.UserError, match='no labels'):
    watch.make_probe(config, run, source)


def test_keep_best_of_what_is_not_looked_at(images):
  config = make_config(
    images, **{'checkpoint.keep_best': 'probe/clas', 'health.every_steps': 0}
  )
  run, source = recipe.build(config), recipe.make_source(config)
  probe = watch.make_probe(config, run, source)
  with pytest.raises(recipe.UserError, match='probe/label, knn/label, rankme'):
    watch.make_watchers(config, run, probe)
