"""The comparison of the methods: what it costs, and that it goes on."""

import dataclasses
import json

import pytest

from benchmarks import compare, comparison_figure, judges, method_costs
from benchmarks.judges import POOLED
from configs import tiny
from ijepa_jax.errors import UserError
from ijepa_jax.evals import tasks
from ijepa_jax.methods import from_config

COSTS = {
  name: {'seconds': seconds, 'flops': flops}
  for name, seconds, flops in (
    ('ijepa', 0.1, 4e9),
    ('pixels', 0.05, 2e9),
    ('mae', 0.2, 4e9),
    ('vicreg', 0.4, 8e9),
  )
}


@pytest.fixture
def fakes(monkeypatch):
  """Trainings and judgements without any: what was asked for."""
  asked = []

  def run(config, workdir):
    asked.append((config.method, config.seed, config.total_steps))
    workdir.mkdir(parents=True, exist_ok=True)

  def judge(run, tasks, *, path, which='target', step=None, names=POOLED):
    asked.append((run.parent.name, run.name, which, step))
    score = {'pixels': 0.2, 'untrained': 0.3}.get(which, 0.5)
    score += (run.name == '1' and which == 'target') / 9
    found = {f'{task} {name}': score for task in tasks for name in names}
    return found | {f'{task} {judges.HELD_OUT}': 0.1 for task in tasks}

  monkeypatch.setattr(compare.pretrain, 'run', run)
  monkeypatch.setattr(judges, 'judge', judge)
  monkeypatch.setattr(method_costs, 'measure', lambda configs: COSTS)
  monkeypatch.setattr(
    method_costs, 'seconds', lambda configs: dict.fromkeys(configs, 0.2)
  )
  return asked


def test_equal_cost():
  by_seconds = compare.Comparison('scenes', None, budget=40.0)
  assert by_seconds.steps(COSTS) == {
    **{'ijepa': 400, 'pixels': 800},
    **{'mae': 200, 'vicreg': 100},
  }
  by_flops = dataclasses.replace(by_seconds, equal='flops')
  assert by_flops.steps(COSTS) == {
    **{'ijepa': 400, 'pixels': 800},
    **{'mae': 400, 'vicreg': 200},
  }
  less = dataclasses.replace(by_seconds, budget=10.0)
  assert less.steps(COSTS)['mae'] == 48  # of 50: a multiple of 4


@pytest.mark.parametrize('data', compare.DATA)
def test_all_methods_are_there(data):
  """With the same number of trials each, and configs that can be trained."""
  assert set(compare.METHODS) == set(from_config.METHODS)
  assert len({len(trials) for trials in compare.TRIALS.values()}) == 1
  comparison = compare.Comparison(data, None, path='images')
  assert set(comparison.tasks.values()) <= tasks.TASKS.keys()
  for method in compare.METHODS:
    changes = compare.SETTINGS[data][method]
    config = comparison.config(method, changes, steps=200, seed=1)
    assert from_config.make_method(config).name == method
    assert config.checkpoint.every_steps == config.checkpoint.keep_every == 50
    # A trial that is the recipe itself would leave the method one less.
    recipe = comparison.recipe()
    trials = [
      comparison.config(method, compare.changes_of(trial, recipe)).to_json()
      for trial in compare.TRIALS[method]
    ]
    assert len(set(trials)) == len(trials)


def test_it_goes_on(tmp_path, fakes, monkeypatch):
  comparison = compare.Comparison('crowd', tmp_path, budget=40.0)
  real = comparison_figure.draw

  def stopped(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(comparison_figure, 'draw', stopped)
  with pytest.raises(KeyboardInterrupt):
    comparison.run(2)
  assert len(fakes) == 4 * (1 + 4) + 2  # trainings, checkpoints; the levels
  fakes.clear()
  monkeypatch.setattr(comparison_figure, 'draw', real)
  text = comparison.run(2)
  assert len(fakes) == 4 * (1 + 4) + 1  # of the other seed alone
  assert ('vicreg', 1, 100) in fakes
  assert '| raw pixels | 1 | 20.0 | 20.0 | 20.0 |' in text
  assert '| untrained | 2 | 30.0 ± 0.0 |' in text
  assert '| mae | 2 | 55.6 ± 7.9 |' in text
  assert text.splitlines()[-2].endswith('| 200 | 40 | 0.8 |')
  assert judges.HELD_OUT not in text
  assert (tmp_path / 'figure.png').stat().st_size > 10_000
  fakes.clear()
  assert comparison.run(2) == text
  assert not fakes
  other = dataclasses.replace(comparison, budget=50.0)
  with pytest.raises(UserError, match=r'of another --budget: take another'):
    other.run(2)
  settings = compare.SETTINGS['crowd'] | {'mae': {'optim.peak_lr': 1e-4}}
  monkeypatch.setitem(compare.SETTINGS, 'crowd', settings)
  with pytest.raises(UserError, match=r'of another mae: take another'):
    comparison.run(2)


def test_search(tmp_path, fakes):
  """Equally many trials of each method, chosen by no test image."""
  comparison = compare.Comparison('scenes', tmp_path, budget=40.0)
  text = comparison.search(0.25)
  assert len(fakes) == 2 * sum(map(len, compare.TRIALS.values()))
  assert ('mae', 1000, 50) in fakes
  row = '| ijepa | optim.peak_lr=0.003,batch_size=128 | 10.0 | 10.0 |'
  assert row in text
  fakes.clear()
  assert comparison.search(0.25) == text
  alone = dataclasses.replace(comparison, methods=('mae',))
  assert alone.search(0.25).count('| mae |') == len(compare.TRIALS['mae'])
  assert not fakes and '| ijepa |' not in alone.search(0.25)


def test_methods_alone(tmp_path, fakes):
  """Two processes share the methods; the whole command reads all of them."""
  comparison = compare.Comparison('crowd', tmp_path, budget=40.0)
  alone = dataclasses.replace(comparison, methods=('mae',))
  with pytest.raises(UserError, match='is not measured yet'):
    alone.run(1)
  for methods in (), ('ijepa', 'mae'), ('pixels', 'vicreg'):
    assert not dataclasses.replace(comparison, methods=methods).run(1)
  assert len(fakes) == 4 * (1 + 4)
  fakes.clear()
  assert '| vicreg | 1 |' in comparison.run(1)
  assert len(fakes) == 2  # the levels


def test_costs():
  """A block more costs the operations of a block more: no loop is missed."""

  def flops(depth):
    config = tiny.get_config()
    config.method, config.batch_size, config.model.depth = 'vicreg', 8, depth
    config.model.mlp_dim, config.vicreg.projector = 256, (8,)
    return method_costs.flops(config)

  # 2 views of 36 tokens, forward and backward, which is two forwards; kernels
  # of 12 width^2 a block, and attention; besides, what is done by element.
  tokens, width = 36, 64
  forward = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
  expected = 8 * 2 * 3 * forward
  assert expected < flops(2) - flops(1) < 1.5 * expected


@pytest.mark.slow
def test_it_trains(tmp_path, monkeypatch):
  """I-JEPA alone, for two steps, judged after each by both probes."""
  changes = {'batch_size': 16, 'data.count': 64, 'model.depth': 1}
  data = dataclasses.replace(
    compare.DATA['scenes'], changes=changes, tasks={'hue': 'scenes_hue'}
  )
  monkeypatch.setitem(compare.DATA, 'scenes', data)
  monkeypatch.setattr(compare, 'METHODS', ('ijepa',))
  task = tasks.TASKS['scenes_hue']
  small = dataclasses.replace(
    task,
    train=task.train | {'count': 120},
    test=task.test | {'count': 60},
  )
  monkeypatch.setitem(tasks.TASKS, 'scenes_hue', small)
  turns = ('turns', 1), ('count', 1)
  comparison = compare.Comparison(
    'scenes', tmp_path, budget=1e-6, points=2, attentive=False, turns=turns
  )
  text = comparison.run(1)
  costs = json.loads((tmp_path / 'costs.json').read_text())['costs']['ijepa']
  assert costs['seconds'] > 0 and costs['flops'] > 1e6
  found = json.loads((tmp_path / 'ijepa/0/accuracies.json').read_text())
  assert found.keys() == {'1', '2'}
  names = {'hue linear', 'hue kNN', 'hue held out'}
  for accuracies in found.values():
    assert accuracies.keys() == names
    assert all(0 <= x <= 1 for x in accuracies.values())
  assert '| ijepa | 1 | ' in text and '| raw pixels | 1 | ' in text
  monkeypatch.setattr(compare.pretrain, 'run', None)
  monkeypatch.setattr(judges, 'judge', None)
  assert comparison.run(1) == text
