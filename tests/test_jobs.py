"""Evaluations from a config to a table: the numbers, and what is refused."""

import functools
import json

import numpy as np
import pytest

from configs.evals import knn as knn_config
from configs.evals import linear as linear_config
from configs.evals import logistic as logistic_config
from ijepa_jax import checkpoint, recipe, sharding
from ijepa_jax.evals import jobs, sweep

RUN = {'knn': jobs.run_knn, 'logistic': jobs.run_logistic, 'linear': sweep.run}
CONFIG = {
  'knn': knn_config,
  'logistic': logistic_config,
  'linear': linear_config,
}


def make_config(job, small_run, images, **changes):
  c = CONFIG[job].get_config()
  c.init_from, c.task, c.data.path = str(small_run), 'folder', str(images)
  c.data.test = 'test'
  c.data.workers, c.batch_size = 0, 16
  if job == 'knn':
    c.knn.ks = (3, 5, 999)
  if job == 'linear':
    c.linear.epochs, c.linear.batch_size, c.linear.lrs = 6, 16, (3.0, 0.3)
  c.update_from_flattened_dict(changes)
  return c


@pytest.mark.parametrize('job', ['knn', 'logistic'])
def test_easy_images(job, small_run, images, tmp_path, capsys):
  config = make_config(job, small_run, images)
  found = RUN[job](config, tmp_path)
  assert found['accuracy'] == {job: 1.0}
  assert '100.0' in capsys.readouterr().out
  assert json.loads(
    (tmp_path / f'folder-{job}.json').read_text()
  ) == json.loads(json.dumps(found))


def test_a_result_is_written_over_its_own_alone(small_run, images, tmp_path):
  def names(**changes):
    jobs.run_knn(make_config('knn', small_run, images, **changes), tmp_path)
    return sorted(p.name for p in tmp_path.glob('*.json'))

  both = ['folder-knn-2.json', 'folder-knn.json']
  assert names() == names(batch_size=8) == ['folder-knn.json']
  assert names(**{'data.test': 'train'}) == names() == both
  config = json.loads((tmp_path / both[0]).read_text())['config']
  assert config['data']['test'] == 'train'


@pytest.mark.parametrize(
  'changes', [{'data.test': 'val'}, {'data.source': 'tfds'}]
)
def test_where_the_images_are_without_a_path(small_run, tmp_path, changes):
  """The task's own would be taken, from splits that nobody asked for."""
  config = make_config('knn', small_run, '', **{'data.test': ''} | changes)
  with pytest.raises(recipe.UserError, match=r'data\.path is empty, so that'):
    jobs.run_knn(config, tmp_path)


@pytest.mark.parametrize('augment', [False, True])
def test_linear_goes_on_where_it_was(
  augment, small_run, images, tmp_path, monkeypatch
):
  """Interrupted in the fourth of six epochs, it ends as if it had not been."""
  config = make_config(
    'linear', small_run, images, **{'linear.augment': augment}
  )
  straight = sweep.run(config, tmp_path / 'straight')
  assert len(straight['heads']) == 8
  assert straight['accuracy']['linear'] == 1.0
  save, saved = checkpoint.Checkpointer.save, []

  def dying(self, step, state):
    if step == 4 and saved == [1, 2, 3]:
      raise KeyboardInterrupt
    saved.append(step)
    save(self, step, state)

  monkeypatch.setattr(checkpoint.Checkpointer, 'save', dying)
  with pytest.raises(KeyboardInterrupt):
    sweep.run(config, tmp_path / 'broken')
  saved.append('again')
  assert sweep.run(config, tmp_path / 'broken') == straight
  assert saved == [1, 2, 3, 'again', 4, 5, 6]


def test_one_device_says_the_same(
  small_run, images, tmp_path, cpus, monkeypatch
):
  config = make_config(
    'logistic',
    small_run,
    images,
    **{'logistic.per_class': 3, 'logistic.l2': (0.01,), 'which': 'untrained'},
  )
  eight = jobs.run_logistic(config, tmp_path / '8')
  one = functools.partial(sharding.make_mesh, devices=cpus[:1])
  monkeypatch.setattr(sharding, 'make_mesh', one)
  assert jobs.run_logistic(config, tmp_path / '1') == eight
  assert eight['training_examples'] == 6


def test_a_list_of_the_labelled(small_run, images, tmp_path):
  """Only these images are looked at."""
  names = tmp_path / 'list.txt'
  names.write_text('red/00.png\nblue/03.png\nred/05.png\nblue/11.png\n')
  config = make_config(
    'logistic',
    small_run,
    images,
    **{'logistic.list_file': str(names), 'logistic.l2': (0.01,)},
  )
  found = jobs.run_logistic(config, tmp_path)
  assert found['training_examples'] == 4
  assert sorted(len(np.load(p)) for p in tmp_path.rglob('last.npy')) == [4, 24]


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'init_from': ''}, 'init_from is empty'),
    ({'init_from': '/nowhere'}, 'nothing at init_from = /nowhere'),
    ({'task': 'imagenett'}, "did you mean 'imagenet'"),
    ({'task': 'cifar10', 'data.path': ''}, 'cifar10.*prepare'),
    ({'data.path': '/nowhere'}, '/nowhere'),
    ({'data.test': 'val'}, "'val'"),
    ({'task': 'cifar100'}, '2 classes.*100'),
    ({'logistic.per_class': 21}, 'has 20 examples'),
    ({'logistic.layers': 'first'}, "'first'"),
    ({'batch_size': 0}, 'batch_size is 0'),
    ({'which': 'best'}, "'best'"),
  ],
)
def test_mistakes_are_told(changes, words, small_run, images, tmp_path):
  config = make_config('logistic', small_run, images, **changes)
  with pytest.raises(recipe.UserError, match=words):
    jobs.run_logistic(config, tmp_path)
  assert not list(tmp_path.glob('*.json'))
