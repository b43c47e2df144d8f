"""The task that is meant where none is named."""

import json
import shutil
import types

import pytest

from configs.evals import knn as knn_config
from configs.evals import logistic as logistic_config
from ijepa_jax.data import sources
from ijepa_jax.errors import UserError
from ijepa_jax.evals import tasks
from ijepa_jax.evals.advice import default_task


def config_of(run, tmp_path, module=knn_config, **changes):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run/config.json').write_text(json.dumps(run))
  config = module.get_config()
  config.init_from = str(tmp_path / 'run')
  config.update_from_flattened_dict(changes)
  return config


def test_images_of_the_run(images, tmp_path):
  """Of its own folder, and the split that its probe had or that is there."""
  shutil.copytree(images / 'train', tmp_path / 'photos/train')
  shutil.copytree(images / 'test', tmp_path / 'photos/test')
  data = {'source': 'folder', 'path': f'{tmp_path}/photos', 'split': 'train'}
  config = config_of({'data': data, 'probe': {'split': ''}}, tmp_path)
  named = default_task.complete(config)
  assert config.task == config.data.path == ''  # the caller's is left alone
  assert named.task == 'folder' and named.data.path == data['path']
  assert (named.data.train, named.data.test) == ('train', 'test')
  task = tasks.get(named.task).read_from(
    *(named.data.source, named.data.path, named.data.train, named.data.test)
  )
  assert task.open()[-1] == 2
  shutil.rmtree(tmp_path / 'photos/test')
  with pytest.raises(UserError, match=r'no folder val or test to test on'):
    default_task.complete(config)


@pytest.mark.parametrize(
  ('data', 'task'),
  [
    ({'source': 'scenes', 'flavour': 'crowd'}, 'crowd_count'),
    ({'source': 'scenes', 'flavour': 'scenes'}, 'scenes_class'),
    ({'source': 'tfds', 'path': 'cifar10'}, 'cifar10'),
    ({'source': 'tfds', 'path': 'imagenet2012'}, 'imagenet'),
    (None, 'imagenet'),  # an export, or anybody's weights
  ],
)
def test_other_images(data, task, tmp_path):
  config = config_of({'data': data} if data else {}, tmp_path)
  assert default_task.complete(config).task == task


def test_a_thousand_classes_are_imagenet(images, tmp_path, monkeypatch):
  source = types.SimpleNamespace(labels={'label': 1000})
  monkeypatch.setattr(sources, 'make_source', lambda *_, **__: source)
  config = config_of(
    {}, tmp_path, logistic_config, **{'data.path': str(images)}
  )
  assert default_task.complete(config).task == 'imagenet_1pct'
  config.task = 'folder'
  assert default_task.complete(config) is config


def test_no_task_for_these_images(tmp_path):
  data = {'source': 'tfds', 'path': 'mnist'}
  with pytest.raises(UserError, match='mnist of TFDS, of which there is no'):
    default_task.complete(config_of({'data': data}, tmp_path))
