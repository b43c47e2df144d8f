"""Evaluations from a config to a table: the numbers, and what is refused."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from configs.evals import knn as knn_config
from configs.evals import linear as linear_config
from configs.evals import logistic as logistic_config
from ijepa_jax.errors import UserError
from ijepa_jax.evals import evaluation, knn, linear, logistic, tasks
from ijepa_jax.probes import knn as probes_knn
from ijepa_jax.probes import train_heads
from ijepa_jax.runtime.checkpoint import checkpointer

ROOT = pathlib.Path(__file__).parents[2]
RUN = {'knn': knn.run, 'logistic': logistic.run, 'linear': linear.run}
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
  actual = RUN[job](config, tmp_path)
  assert actual['accuracy'] == {job: 1.0}
  shown = capsys.readouterr().out
  assert '100.0' in shown
  how = {'knn': 'chosen on the test images', 'logistic': 'on held-out training'}
  assert how[job] in shown and how[job] in actual['chosen']
  assert json.loads(
    (tmp_path / f'folder-{job}.json').read_text()
  ) == json.loads(json.dumps(actual))


def test_a_result_is_written_over_its_own_alone(small_run, images, tmp_path):
  def names(**changes):
    knn.run(make_config('knn', small_run, images, **changes), tmp_path)
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
  with pytest.raises(UserError, match=r'data\.path is empty, so that'):
    knn.run(config, tmp_path)


@pytest.mark.usefixtures('one_device')
@pytest.mark.parametrize('augment', [False, True])
def test_linear_goes_on_where_it_was(
  augment, small_run, images, tmp_path, monkeypatch
):
  """Interrupted in the fourth of six epochs, it ends as if it had not been."""
  config = make_config(
    'linear', small_run, images, **{'linear.augment': augment}
  )
  straight = linear.run(config, tmp_path / 'straight')
  assert len(straight['heads']) == 8
  assert straight['chosen'].startswith(
    'linear is the best of 8 heads, linear_last is the best of 4 heads, '
  )
  assert straight['accuracy']['linear'] == 1.0
  save, saved = checkpointer.Checkpointer.save, []
  monkeypatch.setattr(linear, '_SAVE_SECONDS', 0.0)

  def dying(self, step, state):
    if step == 4 and saved == [1, 2, 3]:
      raise KeyboardInterrupt
    saved.append(step)
    save(self, step, state)

  monkeypatch.setattr(checkpointer.Checkpointer, 'save', dying)
  with pytest.raises(KeyboardInterrupt):
    linear.run(config, tmp_path / 'broken')
  saved.append('again')
  assert linear.run(config, tmp_path / 'broken') == straight
  assert saved == [1, 2, 3, 'again', 4, 5, 6]


def test_one_device_says_the_same(small_run, images, tmp_path, on_one_device):
  config = make_config(
    'logistic',
    small_run,
    images,
    **{'logistic.per_class': 3, 'logistic.l2': (0.01,), 'which': 'untrained'},
  )
  eight = logistic.run(config, tmp_path / '8')
  with on_one_device():
    assert logistic.run(config, tmp_path / '1') == eight
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
  actual = logistic.run(config, tmp_path)
  assert actual['training_examples'] == 4
  assert sorted(len(np.load(p)) for p in tmp_path.rglob('last.npy')) == [4, 24]


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'init_from': ''}, 'init_from is empty'),
    ({'init_from': '/nowhere'}, 'nothing at init_from = /nowhere'),
    ({'task': 'imagenett'}, "did you mean 'imagenet'"),
    (
      {'task': 'cifar10', 'data.path': '', 'data.test': ''},
      'cifar10.*prepare',
    ),
    ({'data.path': '/nowhere'}, '/nowhere'),
    ({'data.test': 'val'}, "'val'"),
    ({'task': 'cifar100'}, '2 classes.*100'),
    ({'logistic.per_class': 21}, 'has 20 examples'),
    ({'logistic.layers': 'first'}, "'first'"),
    ({'batch_size': 0}, 'batch_size is 0'),
    ({'logistic.per_class': 1}, r'per_class is 1.*give one, such as'),
    ({'logistic.l2': (float('nan'),)}, 'l2 is nan: take a finite'),
    ({'which': 'best'}, "'best'"),
  ],
)
def test_mistakes_are_told(changes, words, small_run, images, tmp_path):
  config = make_config('logistic', small_run, images, **changes)
  with pytest.raises(UserError, match=words):
    logistic.run(config, tmp_path)
  assert not list(tmp_path.glob('*.json'))


def test_another_label_has_heads_of_its_own(small_run, tmp_path, monkeypatch):
  """In one workdir, of the same test images; and with augmentation others."""
  made = {'kind': 'scenes', 'flavour': 'scenes'}
  for label in 'class', 'hue':
    task = tasks.Task(
      train=made | {'seed': 0, 'count': 48},
      test=made | {'seed': 1, 'count': 16},
      label=label,
      stretch=True,
      flip=False,
    )
    monkeypatch.setitem(tasks.TASKS, f'small_{label}', task)
  for label, augment in (('class', False), ('hue', False), ('hue', True)):
    config = make_config('linear', small_run, '')
    config.task, config.data.test = f'small_{label}', ''
    config.linear.augment, config.linear.epochs = augment, 1
    linear.run(config, tmp_path)
  assert len(list((tmp_path / 'heads').iterdir())) == 3


def test_two_evaluations_at_once(small_run, images, tmp_path):
  """They want the same features at the same time, in processes of their own."""
  line = [
    *(sys.executable, str(ROOT / 'main.py')),
    f'--config={ROOT}/configs/evals/knn.py',
    *('--config.task=folder', '--config.data.test=test'),
    *(f'--config.init_from={small_run}', f'--config.data.path={images}'),
    *('--config.data.workers=0', '--config.batch_size=8'),
    *('--config.knn.ks=(3,)', f'--workdir={tmp_path}'),
  ]
  both = [
    subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for _ in range(2)
  ]
  for process in both:
    words = process.communicate()[1]
    assert process.returncode == 0, words
  for path in tmp_path.rglob('last.npy'):
    assert np.abs(np.load(path)).sum(1).all()
  (actual,) = tmp_path.glob('*.json')
  assert json.loads(actual.read_text())['accuracy'] == {'knn': 1.0}


def test_where_results_go(small_run, images, tmp_path, monkeypatch):
  """~ is the home folder for every path, and a file has its results beside."""
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'images').symlink_to(images)
  (tmp_path / 'run').symlink_to(small_run)
  config = make_config('knn', '~/run', '~/images', cache_dir='~/kept')
  knn.run(config, '~/x')
  assert (tmp_path / 'x' / 'folder-knn.json').exists()
  assert len(list((tmp_path / 'kept').rglob('last.npy'))) == 2
  opened = evaluation.Evaluation.from_config(config, '')
  assert opened.workdir == epath.Path(tmp_path / 'run' / 'evals')


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'linear.batch_size': 48}, 'is 48: take one from 2 to the 40 training'),
    ({'linear.batch_size': 12}, 'is 12: take a multiple of the 8 devices'),
    ({'linear.lrs': (float('inf'),)}, 'lrs is inf: take a finite'),
    ({'linear.protocol': 'lars'}, "protocol is 'lars'"),
  ],
)
def test_linear_mistakes_are_told_first(
  changes, words, small_run, images, tmp_path
):
  """Before an image has gone through the encoder."""
  config = make_config('linear', small_run, images, **changes)
  with pytest.raises(UserError, match=words):
    linear.run(config, tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('augment', [False, True])
def test_heads_that_diverge_are_never_best(
  augment, small_run, images, tmp_path, caplog
):
  """The others are trained, saved and reported; one alone is refused."""
  changes = {'linear.augment': augment, 'linear.epochs': 2}
  config = make_config(
    'linear', small_run, images, **changes, **{'linear.lrs': (1e30, 0.3)}
  )
  actual = linear.run(config, tmp_path)
  lost = {k for k, v in actual['heads'].items() if v is None}
  assert lost == {name for name in actual['heads'] if 'lr=1e+30' in name}
  assert 'lr=0.3' in actual['best']['head']
  assert 'linear is the best of 4 heads, linear_last' in actual['chosen']
  assert caplog.text.count('lr=1e+30 wd=0.0005 has diverged') == 4
  config.linear.lrs = (1e30,)
  with pytest.raises(UserError, match=r'All of the 4 .* have diverged'):
    linear.run(config, tmp_path / 'again')


# Functions in the middle of what each job computes.
INSIDE = {
  'knn': (probes_knn, '_normalize'),
  'linear': (train_heads, '_one_epoch'),
}


@pytest.mark.parametrize('error', [ValueError, OSError])
@pytest.mark.parametrize('job', INSIDE)
def test_a_bug_of_ours_is_no_mistake_of_the_user(
  job, error, small_run, images, tmp_path, monkeypatch
):
  """The very error that was raised comes out of the job."""
  bug = error('planted')

  def broken(*_):
    raise bug

  monkeypatch.setattr(*INSIDE[job], broken)
  changes = {'linear.augment': False} if job == 'linear' else {}
  config = make_config(job, small_run, images, **changes)
  with pytest.raises(error) as info:
    RUN[job](config, tmp_path)
  assert info.value is bug


@pytest.mark.parametrize(
  ('job', 'error'), [('knn', 'ValueError'), ('linear', 'OSError')]
)
def test_a_bug_of_ours_has_its_traceback(
  job, error, small_run, images, tmp_path
):
  module, function = INSIDE[job]
  arguments = [
    *('main.py', f'--config=configs/evals/{job}.py', f'--workdir={tmp_path}'),
    *(f'--config.init_from={small_run}', f'--config.data.path={images}'),
    *('--config.task=folder', '--config.data.test=test'),
    *('--config.data.workers=0', '--config.batch_size=16'),
  ]
  if job == 'linear':
    arguments += ['--config.linear.augment=False']
    arguments += ['--config.linear.batch_size=16']
  code = f"""
import runpy, sys
import {module.__name__} as module
def broken(*_):
  raise {error}('planted')
module.{function} = broken
sys.argv = {arguments}
runpy.run_path('main.py', run_name='__main__')
"""
  process = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert process.returncode == 1
  assert 'Traceback' in process.stderr
  assert f'{error}: planted' in process.stderr
