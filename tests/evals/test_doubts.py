"""Doubts about a result are said with it."""

import json
import types

from etils import epath

from ijepa_jax.evals import linear, tasks
from ijepa_jax.evals.advice import doubts


def test_a_sweep_that_ends_too_early():
  lrs = 1.0, 0.3, 0.1
  assert doubts.of_rates('linear', lrs, 0.3) == []
  (greatest,) = doubts.of_rates('linear', lrs, 1.0)
  assert 'greatest of the sweep: try 3 too, in linear.lrs' in greatest
  (least,) = doubts.of_rates('attentive', lrs, 0.1)
  assert 'least of the sweep: try 0.033 too, in attentive.lrs' in least
  (alone,) = doubts.of_rates('linear', (0.01,), 0.01)
  assert 'One learning rate was tried' in alone


def test_test_images_of_another_kind():
  held_out = {0.01: 1.0, 0.1: 0.99}
  (sentence,) = doubts.of_held_out(held_out, 0.795, 320)
  assert 'held out 100.0' in sentence and 'test images 79.5' in sentence
  assert doubts.of_held_out(held_out, 0.92, 320) == []
  # Of ten images a difference of a fifth is noise.
  assert doubts.of_held_out(held_out, 0.795, 10) == []
  assert doubts.of_held_out({}, 0.5, 0) == []


def test_heads_of_several_rates_are_as_good():
  """Of a sweep's best; one that has diverged has no accuracy."""
  heads = [
    types.SimpleNamespace(name=f'lr={lr}', lr=lr) for lr in (1.0, 0.3, 0.1)
  ]
  sweep = types.SimpleNamespace(
    kind='linear',
    heads=heads,
    protocol=types.SimpleNamespace(lrs=(1.0, 0.3, 0.1)),
  )

  def doubted(*accuracies):
    scores = dict(zip([h.name for h in heads], accuracies, strict=True))
    report = {'heads': scores, 'best': {'accuracy': 0.9}}
    return doubts.of_sweep(sweep, report)

  assert len(doubted(None, 0.5, 0.9)) == 1
  assert doubted(0.9, 0.9, 0.5) == doubted(0.5, 0.9, 0.5) == []


def result(job, accuracy, which='target', path='photos', **changes):
  return {
    'task': 'folder',
    'job': job,
    'checkpoint': which if which == 'pixels' else f'run, {which} encoder',
    'accuracy': {job: accuracy},
    'config': {'which': which, 'data': {'path': path}} | changes,
  }


def test_a_simpler_result_is_above(tmp_path):
  """Of the same encoder and images, by more than images so few can tell."""
  results = [
    result('knn', 0.642),
    result('finetune', 0.61, 'pixels'),
    result('linear', 0.9, path='other'),
    result('linear', 0.9, 'context'),
    result('logistic', 0.9, logistic={'share': 0.5}),
  ]
  for i, content in enumerate(results):
    (tmp_path / f'{i}.json').write_text(json.dumps(content))
  (tmp_path / 'broken.json').write_text('{')
  folder = epath.Path(tmp_path)
  words = doubts.of_simpler(result('finetune', 0.46), folder, 480)
  assert len(words) == 2
  assert 'finetune is 46.0, below knn of the same encoder (64.2)' in words[0]
  assert 'finetune.epochs' in words[0]
  assert words[1].startswith('Raw pixels give 61.0 by finetune, more than')
  assert doubts.of_simpler(result('finetune', 0.63), folder, 480) == []
  assert doubts.of_simpler(result('knn', 0.1), folder, 480) == []
  few = result('logistic', 0.1, logistic={'share': 0.5})
  assert doubts.of_simpler(few, folder, 480) == []
  assert doubts.of_simpler(few, folder / 'none', 480) == []


def test_few_images_of_a_folder_are_seen_more_often():
  task = tasks.get('folder')
  assert [task.epochs_of(n) for n in (40, 1920, 16_000, 10**6)] == [
    *(100, 100, 40, 28)
  ]
  assert tasks.get('cifar10').epochs_of(40) == 28

  def size(images, devices, limit=None):
    evaluation = types.SimpleNamespace(
      task=task,
      train=range(images),
      mesh=types.SimpleNamespace(size=devices),
    )
    return linear.default_batch_size(evaluation, limit)

  assert [size(1920, 8), size(43, 8), size(43, 1)] == [256, 40, 43]
  assert size(1920, 8, 128) == 128
