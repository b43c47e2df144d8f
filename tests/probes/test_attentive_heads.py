"""The attentive probes against a re-statement in float64, and as a sweep."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ijepa_jax.errors import UserError
from ijepa_jax.probes import (
  attentive_heads,
  head_sweep,
  labels,
  train_heads,
)
from ijepa_jax.runtime import sharding
from tests.close import TRAINED, close, trees_close

CLASSES, BATCH, N, T, D = 3, 16, 48, 5, 8
RATES = dict(lrs=(3e-2, 3e-3), weight_decays=(0.0, 3.0))


def make(**changes):
  rates = {k: changes.pop(k, v) for k, v in RATES.items()}
  protocol = head_sweep.Protocol('attentive', 'adamw', **rates, final=0.0)
  options = dict(classes=CLASSES, examples=N, batch_size=BATCH, epochs=4)
  options |= dict(widths={'tokens': D}, attention_heads=2) | changes
  return head_sweep.AttentiveSweep(protocol, **options)


# One object for several tests is compiled once.
plain = functools.cache(make)


def data(n=N, seed=0, width=D):
  """One token of each image tells the label, wherever it is."""
  r = np.random.default_rng(seed)
  y = r.integers(CLASSES, size=n)
  x = r.normal(size=(n, T, width))
  x[:, :, 0] += 2.0
  x[np.arange(n), r.integers(T, size=n), 1 + y] += 8.0
  return {'tokens': x.astype(np.float32)}, y


def begin(sweep):
  init = jax.jit(functools.partial(attentive_heads.init, sweep))
  return jax.device_get(init(jax.random.key(0)))


def one(cpus):
  return sharding.make_mesh(devices=cpus[:1])


@pytest.fixture
def float64():
  jax.config.update('jax_enable_x64', True)
  yield
  jax.config.update('jax_enable_x64', False)


def layer_norm(x, scale=1.0, bias=0.0):
  mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  return (x - mean) / np.sqrt(var + 1e-6) * scale + bias


def restated(p, tokens, y, heads):
  """The loss in NumPy: each key and value is made, a token and head a time."""
  x = layer_norm(tokens)
  keys = x @ p['key']['kernel']
  values = x @ p['value']['kernel'] + p['value']['bias']
  z = []
  for keys_TD, values_TD in zip(keys, values, strict=True):
    parts = []
    for q, k, v in zip(
      np.split(p['query'], heads),
      np.split(keys_TD, heads, 1),
      np.split(values_TD, heads, 1),
      strict=True,
    ):
      weights = np.exp(k @ q / np.sqrt(len(q)))
      parts.append(weights / weights.sum() @ v)
    z.append(p['query'] + np.concatenate(parts))
  z = np.stack(z)
  hidden = layer_norm(z, **p['norm1']) @ p['fc1']['kernel'] + p['fc1']['bias']
  hidden *= 0.5 * (1 + np.vectorize(math.erf)(hidden / np.sqrt(2)))
  z = z + hidden @ p['fc2']['kernel'] + p['fc2']['bias']
  scores = layer_norm(z, **p['norm2']) @ p['classifier']['kernel']
  scores = scores + p['classifier']['bias']
  logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
  return -logs[np.arange(len(y)), y].mean()


def test_loss_and_gradient_equal_a_restatement(float64):
  """In float64, every parameter by central differences of the re-statement."""
  sweep = make(widths={'tokens': 4})
  state = begin(sweep)
  r = np.random.default_rng(1)
  # Larger than at the start, where attention is nearly even and biases are 0.
  params = jax.tree.map(
    lambda x: x[0].astype(np.float64) + 0.5 * r.normal(size=x[0].shape),
    state['params'],
  )
  features, y = data(3, width=4)
  tokens = np.asarray(features['tokens'], np.float64)

  @jax.jit
  @jax.value_and_grad
  def loss(params):
    x = attentive_heads.standardize(jnp.asarray(tokens))
    logits = attentive_heads.logits(params, x, sweep.attention_heads)
    return labels.cross_entropy(logits, jnp.asarray(y))[0]

  value, grad = loss(jax.tree.map(jnp.asarray, params))
  assert value.dtype == jnp.float64
  close(value, restated(params, tokens, y, 2), 1e-6)
  step, leaves = 1e-5, jax.tree.leaves(params)
  for leaf, actual in zip(leaves, jax.tree.leaves(grad), strict=True):
    expected = np.zeros_like(leaf)
    for index in np.ndindex(leaf.shape):
      kept, sides = leaf[index], []
      for sign in 1, -1:
        leaf[index] = kept + sign * step
        sides.append(restated(params, tokens, y, 2))
      leaf[index] = kept
      expected[index] = (sides[0] - sides[1]) / (2 * step)
    assert np.abs(expected).max() > 1e-3
    close(actual, expected, 1e-6)


def adamw(params, grad, moments, step, lr, decay):
  """One step in NumPy (Loshchilov and Hutter, 2019), counted from 1."""
  first, second = moments
  for path, g in grad.items():
    first[path] = 0.9 * first[path] + 0.1 * g
    second[path] = 0.999 * second[path] + 0.001 * g**2
    move = first[path] / (1 - 0.9**step)
    move /= np.sqrt(second[path] / (1 - 0.999**step)) + 1e-8
    if path[-1] == 'kernel':
      move += decay * params[path]
    params[path] = params[path] - lr * move


def flat(tree):
  pairs = jax.tree_util.tree_leaves_with_path(tree)
  return {tuple(k.key for k in p): np.asarray(x, np.float64) for p, x in pairs}


def test_each_probe_equals_one_trained_alone(cpus):
  """All four, through all steps: AdamW and the cosine by hand."""
  sweep = plain()
  features, y = data()
  state = train_heads.train(sweep, features, y, mesh=one(cpus))
  state = jax.device_get(state)
  start = begin(sweep)
  structure = jax.tree.structure(start['params'])

  @jax.grad
  def loss(params, tokens, y):
    x = attentive_heads.standardize(tokens)
    scores = attentive_heads.logits(params, x, sweep.attention_heads)
    every = optax.losses.softmax_cross_entropy_with_integer_labels(scores, y)
    return every.mean()

  loss = jax.jit(loss)
  steps = sweep.epochs * (N // BATCH)
  ends = []
  for run, (lr, decay) in enumerate(itertools.product(*RATES.values())):
    params = flat(jax.tree.map(lambda x, i=run: x[i], start['params']))
    moments = [{k: np.zeros_like(x) for k, x in params.items()} for _ in 'mv']
    for step in range(steps):
      epoch, part = divmod(step, N // BATCH)
      order = np.random.default_rng((0, epoch)).permutation(N)
      rows = order[part * BATCH : (part + 1) * BATCH]
      tree = jax.tree.unflatten(
        structure, [np.float32(x) for x in params.values()]
      )
      grad = loss(tree, features['tokens'][rows], y[rows])
      factor = (1 + np.cos(np.pi * step / steps)) / 2
      adamw(params, flat(grad), moments, step + 1, lr * factor, decay)
    last = flat(jax.tree.map(lambda x, i=run: x[i], state['params']))
    for path, x in params.items():
      # AdamW's first steps are as long where the gradient is but rounding.
      close(last[path], x, 20 * TRAINED, scale=max(lr, np.abs(x).max()))
    ends.append(params['classifier', 'kernel'])
  for pair in itertools.combinations(ends, 2):
    assert np.abs(pair[0] - pair[1]).max() > 1e-3


def test_it_finds_the_token_that_tells(cpus):
  """Of images not trained on; a linear head on the average finds less."""
  (train, y), (test, test_y) = data(960), data(240, seed=1)
  mesh = one(cpus)
  sweep = make(examples=960, batch_size=32, weight_decays=(0.0,))
  state = train_heads.train(sweep, train, y, mesh=mesh)
  scores = train_heads.accuracies(sweep, state, test, test_y, mesh=mesh)
  report = head_sweep.report(sweep, scores)
  assert report['best']['accuracy'] > 0.9
  assert set(report) == {'chosen', 'heads', 'best'}
  assert list(report['heads']) == [
    'attentive lr=0.03 wd=0',
    'attentive lr=0.003 wd=0',
  ]
  assert report['chosen'] == (
    'attentive is the best of 2 heads: chosen on the test images.'
  )


def test_any_devices_give_the_numbers_of_one(cpus, monkeypatch):
  """8 devices, which do not divide the test examples either."""
  features, y = data()
  test_x, test_y = data(30, seed=1)
  monkeypatch.setattr(train_heads, '_BLOCK', 24)
  results = []
  for mesh in one(cpus), sharding.make_mesh(fsdp=2, devices=cpus):
    seen = []
    state = train_heads.train(
      plain(), features, y, mesh=mesh, on_epoch=lambda *x, s=seen: s.append(x)
    )
    scores = train_heads.accuracies(plain(), state, test_x, test_y, mesh=mesh)
    losses = [means['loss'] for *_, means in seen]
    results.append((jax.device_get(state), losses, scores))
  (state, losses, scores), (state_8, losses_8, scores_8) = results
  trees_close(losses_8, losses, TRAINED)
  for a, b in zip(
    jax.tree.leaves(state_8['params']),
    jax.tree.leaves(state['params']),
    strict=True,
  ):
    close(a, b, 20 * TRAINED, scale=max(1e-2, np.abs(b).max()))
  close(scores_8, scores, within=1.5 / 30)


def test_stopped_and_gone_on_equals_straight(cpus):
  """Bit for bit, from arrays as a checkpoint gives them."""
  features, y = data()
  kept = {}

  def keep(epoch, state, metrics):
    kept[epoch] = jax.device_get(state)
    assert metrics['loss'].shape == metrics['accuracy'].shape == (4,)

  run = functools.partial(
    train_heads.train, plain(), features, y, mesh=one(cpus)
  )
  straight = jax.device_get(run(on_epoch=keep))
  assert list(kept) == [1, 2, 3, 4]
  gone_on = jax.device_get(run(state=kept[2], start=2))
  jax.tree.map(np.testing.assert_array_equal, straight, gone_on)


def test_a_probe_that_diverges_is_none(cpus, caplog):
  features, y = data()
  sweep = make(lrs=(1e30, 0.03), weight_decays=(0.1,))
  state = train_heads.train(sweep, features, y, mesh=one(cpus))
  assert attentive_heads.diverged(sweep, state).tolist() == [True, False]
  assert 'attentive lr=1e+30 wd=0.1 has diverged' in caplog.text
  scores = train_heads.accuracies(sweep, state, features, y, mesh=one(cpus))
  report = head_sweep.report(sweep, scores)
  assert report['heads']['attentive lr=1e+30 wd=0.1'] is None
  assert report['best']['head'] == 'attentive lr=0.03 wd=0.1'
  with pytest.raises(UserError, match='All of the 2 attentive heads have div'):
    head_sweep.report(sweep, [np.nan, np.nan])


def test_mistakes(cpus):
  for match, wrong in {
    r'attentive.heads is 3: take a divisor of the 8': {'attention_heads': 3},
    r'lrs are \(\): take one or more different': {'lrs': ()},
    'attentive.batch_size is 64: take one from 2 to the 48': {'batch_size': 64},
    'epochs is 0: take 1 or more': {'epochs': 0},
  }.items():
    with pytest.raises(UserError, match=match):
      make(**wrong)
  features, y = data()
  right = {'features': features, 'labels_N': y}
  for match, wrong in {
    'labels run from 0 to 3: 3 classes': {'labels_N': y + (y > 1)},
    r"needs 'tokens' as \[N, T, 8\]": {
      'features': {'tokens': features['tokens'][:, 0]}
    },
    'are not finite': {'features': {'tokens': features['tokens'] * np.nan}},
  }.items():
    with pytest.raises(UserError, match=match):
      train_heads.train(plain(), **(right | wrong), mesh=one(cpus))
