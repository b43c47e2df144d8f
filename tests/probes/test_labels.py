"""Labels that are none: every consumer refuses them in one sentence, and on a
device no label is ever taken for another.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.evals import finetune_full
from configs.evals import knn as knn_config
from configs.evals import linear as linear_config
from configs.evals import logistic as logistic_config
from ijepa_jax.data import sources
from ijepa_jax.data.sources import huggingface, subset
from ijepa_jax.data.sources.folder import Folder
from ijepa_jax.errors import UserError
from ijepa_jax.evals import finetune, linear
from ijepa_jax.evals import knn as evals_knn
from ijepa_jax.evals import logistic as evals_logistic
from ijepa_jax.probes import (
  head_sweep,
  knn,
  labels,
  linear_heads,
  logistic,
  train_heads,
)
from ijepa_jax.runtime import sharding
from ijepa_jax.train import online_probe

N, D = 40, 6
GOOD = np.arange(N) % 3
WRONG = {
  'unknown': (np.where(GOOD == 1, -1, GOOD), 'run from -1 to 2.* not known'),
  'beyond': (np.where(GOOD == 1, 3, GOOD), 'run from 0 to 3: 3 classes'),
  'float': (GOOD + 0.5, 'labels are float64.*whole number'),
  'nan': (np.full(N, np.nan), 'labels are float64.*whole number'),
  'none': (GOOD[:0], '0 (training|test) examples have fewer than two'),
  'one': (0 * GOOD, '40 (training|test) examples have fewer than two'),
}


def features(n):
  return np.random.default_rng(0).normal(size=(n, D)).astype(np.float32)


def make_sweep(n=N):
  return head_sweep.HeadSweep(
    head_sweep.get_protocol('transfer'),
    {'last': D},
    classes=3,
    examples=n,
    batch_size=8,
    epochs=1,
  )


def judge_heads(state, y):
  return train_heads.accuracies(
    make_sweep(),
    state,
    {'last': features(len(y))},
    y,
    mesh=sharding.make_mesh(),
  )


def images(y):
  pixels = np.zeros((len(y), 8, 8, 3), np.uint8)
  return online_probe.LabelledImages(pixels, y[:, None], {'label': 3})


# Each takes labels to train on and labels to be judged by.
CONSUMERS = {
  'probe': lambda y, z: logistic.quick_probe(
    features(len(y)), y, features(len(z)), z, classes=3
  ),
  'logistic': lambda y, z: logistic.evaluate(
    features(len(y)),
    y,
    features(len(z)),
    z,
    classes=3,
    mesh=sharding.make_mesh(),
  ),
  'knn': lambda y, z: knn.knn(
    *(features(len(y)), y, features(len(z)), z),
    classes=3,
    mesh=sharding.make_mesh(),
    ks=(3,),
  ),
  'heads': lambda y, z: (
    judge_heads({}, z)
    if y is GOOD
    else train_heads.train(
      make_sweep(), {'last': features(len(y))}, y, mesh=sharding.make_mesh()
    )
  ),
  'online': lambda y, z: online_probe.Probe(None, None, images(y), images(z)),
}


@pytest.mark.parametrize('wrong', WRONG)
@pytest.mark.parametrize('consumer', CONSUMERS)
def test_every_consumer_refuses(consumer, wrong):
  y, words = WRONG[wrong]
  with pytest.raises(UserError, match=f'training.*{words}|{words}'):
    CONSUMERS[consumer](y, GOOD)
  with pytest.raises(UserError, match=f'test.*{words}|{words}'):
    CONSUMERS[consumer](GOOD, y)


def test_those_that_know_no_number_of_classes():
  for wrong in set(WRONG) - {'beyond'}:
    y, words = WRONG[wrong]
    words = words.replace(' to 2', ' to 2: classes are numbered')
    with pytest.raises(UserError, match=words):
      labels.few_shot_subset(y, per_class=1)
  with pytest.raises(UserError, match='training labels run from -1'):
    labels.majority_baseline(GOOD - 1, GOOD)
  with pytest.raises(UserError, match='test labels run from -1'):
    labels.majority_baseline(GOOD, GOOD - 1)


def test_on_a_device_nothing_is_taken_for_another():
  y = jnp.array([0, -1, 2, 3])
  hot = labels.soft_labels(y, 3, 0.1)
  np.testing.assert_array_equal(np.isnan(hot).all(1), [0, 1, 0, 1])
  one = make_sweep()
  state = linear_heads.init(one, jax.random.key(0))
  for label in -1, 3:
    batch = jnp.array([0, 1, 2, label])
    _, actual = linear_heads.update_heads(
      one, state, {'last': features(4)}, batch, 0
    )
    assert np.isnan(actual['loss']).all()
  logits = jnp.full((2, 3), jnp.nan)
  assert not labels.is_correct(logits, jnp.array([0, 1])).any()


class Partly(Folder):
  """Of every third image the label is not known, as the source says."""

  def every_label(self):
    every = super().every_label().copy()
    every[::3] = -1
    return every

  def __getitem__(self, index):
    label = Partly.every_label(self)[index]
    return super().__getitem__(index) | {'label': label}


class Later(Partly):
  """The same, and nobody knows before the images are read."""

  def every_label(self):
    return None


JOBS = {
  'linear': (linear_config, linear.run, {'linear.augment': True}),
  'cached': (linear_config, linear.run, {'linear.augment': False}),
  'logistic': (logistic_config, evals_logistic.run, {}),
  'few': (logistic_config, evals_logistic.run, {'logistic.per_class': 2}),
  'knn': (knn_config, evals_knn.run, {}),
  'finetune': (finetune_full, finetune.run, {'finetune.batch_size': 8}),
}


@pytest.mark.parametrize('kind', [Partly, Later])
@pytest.mark.parametrize('job', JOBS)
def test_every_job_refuses(job, kind, small_run, images, tmp_path, monkeypatch):
  """Nothing is trained on images of which some have no label."""
  module, run, changes = JOBS[job]
  c = module.get_config()
  c.init_from, c.task, c.data.path = str(small_run), 'folder', str(images)
  c.data.test, c.data.workers, c.batch_size = 'test', 0, 16
  if job in ('linear', 'cached'):
    c.linear.batch_size, c.linear.epochs = 16, 1
  if job == 'finetune':
    c.finetune.epochs, c.finetune.warmup_epochs = 1, 0
  c.update_from_flattened_dict(changes)

  def folder(path, split):
    known = Folder if split == 'test' else kind
    return known(path, split)

  monkeypatch.setitem(sources._OF_FILES, 'folder', folder)
  with pytest.raises(
    UserError, match='training labels run from -1 to 1: 2 classes'
  ):
    run(c, tmp_path)
  assert not list(tmp_path.glob('*.json'))
  assert not list(tmp_path.rglob('checkpoints/*'))
  assert kind is Later or not list(tmp_path.iterdir())


def test_a_test_set_without_labels_is_seen_before_training(
  small_run, images, tmp_path, monkeypatch
):
  """As ImageNet's own: it would be read after all epochs."""
  c = finetune_full.get_config()
  c.init_from, c.task, c.data.path = str(small_run), 'folder', str(images)
  c.data.test, c.data.workers, c.finetune.batch_size = 'test', 0, 8

  def folder(path, split):
    return (Later if split == 'test' else Folder)(path, split)

  monkeypatch.setitem(sources._OF_FILES, 'folder', folder)
  with pytest.raises(UserError, match='test labels run from -1 to 1'):
    finetune.run(c, tmp_path)
  assert not list(tmp_path.iterdir())


def test_what_sources_know(images):
  folder = Folder(str(images), 'train')
  some = subset.Subset(folder, [1, 30])
  for source in folder, some, sources.make_source('scenes', count=20):
    every = source.every_label()
    expected = [source[i]['label'] for i in range(len(source))]
    np.testing.assert_array_equal(every, expected)
  assert Folder(str(images / 'train/red')).every_label().shape == (
    20,
    0,
  )
  later = subset.Subset(Later(str(images), 'train'), [3, 4])
  assert later.every_label() is None
  np.testing.assert_array_equal(labels.read(later, 0), [-1, 0])


def test_what_a_hugging_face_data_set_knows(images, tmp_path):
  datasets = pytest.importorskip('datasets')
  features = datasets.Features(
    {
      'image': datasets.Image(),
      'kind': datasets.ClassLabel(names=['a', 'b']),
      'hue': datasets.ClassLabel(names=['c', 'd', 'e']),
    }
  )
  image = {'bytes': (images / 'train/red/00.png').read_bytes(), 'path': None}
  rows = {'image': [image] * 3, 'kind': [1, None, 0], 'hue': [2, 0, 1]}
  datasets.Dataset.from_dict(rows, features).save_to_disk(str(tmp_path))
  source = huggingface.HuggingFace(str(tmp_path))
  assert source.every_label().tolist() == [[1, 2], [-1, 0], [0, 1]]
  with pytest.raises(UserError, match='run from -1 to 1: 2 classes'):
    labels.check(labels.known(source, 0), 'training', 2)
