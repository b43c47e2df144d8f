"""The sweep of linear heads against heads trained one by one, by hand."""

import functools
import itertools
import json

import jax
import numpy as np
import pytest

from ijepa_jax.errors import UserError
from ijepa_jax.probes import head_sweep, linear_heads, train_heads
from ijepa_jax.runtime import sharding
from tests.close import FLOAT64, TRAINED, close, trees_close

CLASSES, BATCH, N = 5, 32, 150
WIDTHS = {'last': 6, 'last4': 24}
# So high that 12 steps show each of them well above the bound.
GRID = {
  'imagenet': {'lrs': (32.0, 16.0), 'weight_decays': (10.0, 0.0)},
  'transfer': {'lrs': (0.8, 0.2), 'weight_decays': (0.1, 0.0)},
  'clevr': {'lrs': (0.8, 0.2), 'weight_decays': (0.1, 0.0)},
}


def data(n=N, seed=0):
  """Features that are neither centred nor scaled, labels that they tell."""
  r = np.random.default_rng(seed)
  labels = r.integers(CLASSES, size=n)
  centers = np.random.default_rng(9)
  features = {
    k: (centers.normal(size=(CLASSES, d))[labels] + r.normal(size=(n, d)))
    * np.linspace(0.2, 2, d)
    + 0.5
    for k, d in WIDTHS.items()
  }
  return {k: x.astype(np.float32) for k, x in features.items()}, labels


def make(protocol='imagenet', **changes):
  options = {'epochs': 3, 'classes': CLASSES, 'examples': N}
  if protocol != 'clevr':
    options['milestones'] = (1, 2)
  options |= {'batch_size': BATCH, **GRID.get(protocol, {}), **changes}
  rates = {k: options.pop(k, None) for k in ('lrs', 'weight_decays')}
  return head_sweep.HeadSweep(
    head_sweep.get_protocol(protocol, **rates),
    options.pop('widths', WIDTHS),
    **options,
  )


# One object for several tests is compiled once.
plain = functools.cache(make)


def one(cpus):
  return sharding.make_mesh(devices=cpus[:1])


def batches(sweep, seed=0):
  """Rows of each step, as `train_heads.train` says: by (seed, epoch)."""
  for epoch in range(sweep.epochs):
    order = np.random.default_rng((seed, epoch)).permutation(N)
    for i in range(sweep.steps_per_epoch):
      yield epoch, order[i * BATCH : (i + 1) * BATCH]


class ByHand:
  """One head in float64, after the papers; nothing of probes/linear_heads.py
  or optax."""

  def __init__(self, optimizer, head, kernel):
    self.optimizer, self.head = optimizer, head
    self.w = np.asarray(kernel, np.float64)
    self.b = np.zeros(CLASSES)
    self.momentum = [0.0, 0.0]
    self.mean, self.var = np.zeros(len(self.w)), np.ones(len(self.w))

  def step(self, x, y, lr):
    if self.head.batch_norm:
      mean, var = x.mean(0), x.var(0, ddof=1)
      self.mean = 0.9 * self.mean + 0.1 * mean
      self.var = 0.9 * self.var + 0.1 * var
      x = (x - mean) / np.sqrt(x.var(0) + 1e-5)
    p = np.exp(x @ self.w + self.b)
    error = (p / p.sum(1, keepdims=True) - np.eye(CLASSES)[y]) / len(y)
    moves = self.lars if self.optimizer == 'lars' else self.nesterov
    moves(x.T @ error, error.sum(0), lr, self.head.weight_decay)

  def lars(self, dw, db, lr, decay):
    """You et al., algorithm 1: momentum of steps that are already scaled."""
    dw = dw + decay * self.w
    rate = 0.001 * np.linalg.norm(self.w) / np.linalg.norm(dw)
    self.momentum = [
      0.9 * self.momentum[0] + lr * rate * dw,
      0.9 * self.momentum[1] + lr * db,
    ]
    self.w = self.w - self.momentum[0]
    self.b = self.b - self.momentum[1]

  def nesterov(self, dw, db, lr, decay):
    """As PyTorch's SGD does it."""
    grads = dw + decay * self.w, db + decay * self.b
    self.momentum = [
      0.9 * m + g for m, g in zip(self.momentum, grads, strict=True)
    ]
    dw, db = (g + 0.9 * m for g, m in zip(grads, self.momentum, strict=True))
    self.w, self.b = self.w - lr * dw, self.b - lr * db

  def right(self, x, y):
    if self.head.batch_norm:
      x = (x - self.mean) / np.sqrt(self.var + 1e-5)
    return ((x @ self.w + self.b).argmax(1) == y).sum()


@pytest.mark.parametrize('protocol', ['imagenet', 'transfer', 'clevr'])
def test_each_head_equals_one_trained_alone(cpus, protocol, monkeypatch):
  """All 16, through all steps, and what they answer; LARS and SGD by hand."""
  sweep = plain(protocol)
  assert len(sweep.heads) == 16
  features, labels = data()
  state = train_heads.train(sweep, features, labels, mesh=one(cpus))
  test_x, test_y = data(70, seed=1)
  # In blocks that don't divide the examples.
  monkeypatch.setattr(train_heads, '_BLOCK', 24)
  actual = train_heads.accuracies(sweep, state, test_x, test_y, mesh=one(cpus))
  start = linear_heads.init(sweep, jax.random.key(0))
  ends = []
  for i, head in enumerate(sweep.heads):
    group, run = head.input + '_bn' * head.batch_norm, i % 4
    first, last = (s['heads'][group]['params'] for s in (start, state))
    alone = ByHand(sweep.protocol.optimizer, head, first['kernel'][run])
    for step, (epoch, rows) in enumerate(batches(sweep)):
      factor = 0.1**epoch
      if protocol == 'clevr':
        share = step / (sweep.epochs * sweep.steps_per_epoch)
        factor = 0.01 + 0.99 * (1 + np.cos(np.pi * share)) / 2
      lr = head.lr * BATCH / 256 * factor
      x = features[head.input][rows].astype(np.float64)
      alone.step(x, labels[rows], lr)
    ends.append(alone.w)
    moved = alone.w - first['kernel'][run]
    assert np.abs(moved).max() > 5e-4
    close(last['kernel'][run] - first['kernel'][run], moved, TRAINED)
    close(last['bias'][run], alone.b, TRAINED)
    right = alone.right(test_x[head.input], test_y)
    # One answer may hang on the last digits of two logits.
    close(actual[i], right / len(test_y), within=1.5 / 70, name=head.name)
    if head.batch_norm:
      norm = state['norms'][head.input]
      close(norm['mean'], alone.mean)
      close(norm['var'], alone.var)
  for pair in itertools.combinations(ends, 2):
    if pair[0].shape == pair[1].shape:
      assert np.abs(pair[0] - pair[1]).max() > 1e-4
  if protocol != 'imagenet':  # LARS needs more than 12 steps
    assert max(actual) > 0.6


def test_evaluation_normalizes_by_running_statistics(cpus):
  """An answer does not depend on which examples it is asked with."""
  sweep = plain('transfer')
  features, labels = data()
  state = train_heads.train(sweep, features, labels, mesh=one(cpus))
  judge = jax.jit(functools.partial(linear_heads.count_correct, sweep))
  together = judge(state, features, labels)
  alone = sum(
    judge(state, {k: x[[i]] for k, x in features.items()}, labels[[i]])
    for i in range(N)
  )
  close(together, alone, within=1)  # one may hang on the last digits
  # Those labelled -1 count as nothing.
  assert not judge(state, features, np.full(N, -1)).any()


def test_any_devices_give_the_numbers_of_one(cpus, monkeypatch):
  """8 devices, which do not divide the test examples either."""
  features, labels = data()
  test_x, test_y = data(70, seed=1)
  monkeypatch.setattr(train_heads, '_BLOCK', 24)
  results = []
  for mesh in one(cpus), sharding.make_mesh(fsdp=2, devices=cpus):
    sweep = plain('imagenet')
    state = train_heads.train(sweep, features, labels, mesh=mesh)
    actual = train_heads.accuracies(sweep, state, test_x, test_y, mesh=mesh)
    results.append((jax.device_get(state), actual))
  (state, actual), (state_8, found_8) = results
  trees_close(state_8, state, TRAINED)
  close(found_8, actual, within=1.5 / 70)


def test_stopped_and_gone_on_equals_straight(cpus):
  """Bit for bit, from arrays as a checkpoint gives them."""
  sweep = plain('transfer')
  features, labels = data()
  kept, seen = {}, []

  def keep(epoch, state, metrics):
    kept[epoch] = jax.device_get(state)
    seen.append(metrics)

  mesh = one(cpus)
  run = functools.partial(train_heads.train, sweep, features, labels, mesh=mesh)
  straight = jax.device_get(run(on_epoch=keep))
  assert list(kept) == [1, 2, 3]
  gone_on = jax.device_get(run(state=kept[1], start=1))
  jax.tree.map(np.testing.assert_array_equal, straight, gone_on)
  assert seen[0]['loss'].shape == seen[0]['accuracy'].shape == (16,)
  assert (seen[2]['loss'] < seen[0]['loss']).all()
  other = jax.device_get(run(seed=1))
  last, theirs = (s['heads']['last']['params'] for s in (other, straight))
  assert np.abs(last['kernel'] - theirs['kernel']).max() > 1e-3


def test_streamed_features(cpus):
  """`update` inside a step that makes the features, as with augmented images,
  does what `train` does with the same ones.
  """
  sweep = plain('transfer')
  features, labels = data()

  @jax.jit
  def step(state, raw, labels, k):
    return linear_heads.update_heads(
      sweep, state, {k: x / 2 for k, x in raw.items()}, labels, k
    )

  state = linear_heads.init(sweep, jax.random.key(0))
  for k, (_, rows) in enumerate(batches(sweep)):
    raw = {k: 2 * x[rows] for k, x in features.items()}
    state, metrics = step(state, raw, labels[rows], k)
  expected = train_heads.train(sweep, features, labels, mesh=one(cpus))
  trees_close(state, expected, TRAINED)
  assert metrics['loss'].shape == (16,)


@pytest.mark.parametrize(
  ('protocol', 'epochs', 'milestones', 'values'),
  [
    # At the start of epochs, and in the step before.
    ('imagenet', 50, (15, 30, 45), {0: 1, 15: 0.1, 30: 0.01, 45: 0.001}),
    ('transfer', 28, (8, 16, 24), {0: 1, 8: 0.1, 16: 0.01, 24: 0.001}),
    ('transfer', 2, (), {0: 1, 1: 1}),
    ('clevr', 50, (), {0: 1, 25: 0.505, 50: 0.01}),
  ],
)
def test_schedules(protocol, epochs, milestones, values):
  sweep = make(protocol, epochs=epochs, milestones=milestones)
  steps = sweep.steps_per_epoch
  assert steps == 4
  for epoch, value in values.items():
    close(sweep.schedule(epoch * steps), value, FLOAT64)
    if epoch in milestones:
      close(sweep.schedule(epoch * steps - 1), 10 * value, FLOAT64)
    traced = jax.jit(sweep.schedule)(epoch * steps)
    close(traced, value)


def test_heads_of_the_protocols():
  """The paper's: 16 on ImageNet, and one rate for the transfers."""
  unset = {'lrs': None, 'weight_decays': None}
  on_imagenet = make('imagenet', **unset).heads
  assert len(set(on_imagenet)) == 16
  assert set(on_imagenet) == {
    head_sweep.Head(*values)
    for values in itertools.product(
      WIDTHS, (True, False), (0.1, 0.01), (5e-4, 0.0)
    )
  }
  for protocol in 'transfer', 'clevr':
    actual = make(protocol, **unset).heads
    assert [(h.lr, h.weight_decay) for h in actual] == [(0.01, 5e-4)] * 4


def test_report():
  sweep = make('imagenet')
  scores = np.linspace(0.1, 0.4, 16)
  scores[[5, 6, 13]] = 0.5, 0.5, 0.7
  report = json.loads(json.dumps(head_sweep.report(sweep, scores)))
  assert report['heads'] == {
    h.name: s for h, s in zip(sweep.heads, scores, strict=True)
  }
  best = {'head': 'last4 lr=32 wd=0', 'accuracy': 0.7}
  assert report['best'] == report['best_last4'] == best
  first = {'head': 'last lr=32 wd=0', 'accuracy': 0.5}
  assert report['best_last'] == first
  narrow = make('imagenet', widths={'last': 6})
  assert 'best_last4' not in head_sweep.report(narrow, scores[:8])


def test_diverged_heads_are_named(cpus, caplog):
  sweep = make(
    'transfer', widths={'last': 6}, lrs=(1e30, 0.1), weight_decays=(0.1,)
  )
  features, labels = data()
  state = train_heads.train(sweep, features, labels, mesh=one(cpus))
  named = [r.getMessage() for r in caplog.records]
  assert len(named) == 2 and all('lr=1e+30' in text for text in named)
  actual = train_heads.accuracies(
    sweep, state, features, labels, mesh=one(cpus)
  )
  assert np.isnan(actual[0]) and actual[1] > 0.3
  report = head_sweep.report(sweep, actual)
  assert report['best']['head'] == report['best_last']['head']
  assert 'lr=0.1' in report['best']['head']
  assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_mistakes(cpus):
  for match, wrong in {
    "protocol is 'lars': take one of imagenet, transfer": {'protocol': 'lars'},
    r'lrs are \(\): take one or more different': {'lrs': ()},
    r'lrs are \(0.1, 0.1\): take one or more dif': {'lrs': (0.1, 0.1)},
    'take lrs above 0': {'lrs': (0.0,)},
    'epochs is 0: take 1 or more': {'epochs': 0},
    'batch_size is 512: take one from 2 to the 150': {'batch_size': 512},
    'batch_size is 1: take one from 2': {'batch_size': 1},
    'clevr has a cosine and none': {'protocol': 'clevr', 'milestones': (3,)},
  }.items():
    with pytest.raises(UserError, match=match):
      make(**wrong)
  features, labels = data()
  right = {'features': features, 'labels_N': labels}
  for match, wrong in {
    'labels run from 0 to 5: 5 classes': {'labels_N': labels + (labels > 3)},
    'fewer than two classes': {'labels_N': 0 * labels},
    "needs 'last4' as .N, 24.": {'features': {'last': features['last']}},
    'make it with examples=90': {
      'features': {k: x[:90] for k, x in features.items()},
      'labels_N': labels[:90],
    },
  }.items():
    with pytest.raises(UserError, match=match):
      train_heads.train(make(), **(right | wrong), mesh=one(cpus))
