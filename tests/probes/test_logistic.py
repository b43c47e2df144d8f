"""Probes, subsets and RankMe on features whose answers are known."""

import numpy as np
import pytest

from ijepa_jax.errors import UserError
from ijepa_jax.probes import labels, logistic, statistics
from ijepa_jax.runtime import sharding
from ijepa_jax.train import report
from tests.close import close


def features(n=600, d=8, classes=3, noise=0.1):
  r = np.random.default_rng(0)
  y = r.integers(classes, size=n).astype(np.int32)
  centers = r.normal(size=(classes, d))
  x = centers[y] + noise * r.normal(size=(n, d))
  return x.astype(np.float32), y


def evaluate(*data, mesh=None, **kwargs):
  return logistic.evaluate(*data, mesh=mesh or sharding.make_mesh(), **kwargs)


def test_separable_features_are_separated():
  x, y = features()
  score = logistic.quick_probe(x[:400], y[:400], x[400:], y[400:], classes=3)
  assert score == 1


def test_noise_is_chance():
  x, y = features()
  x = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
  score = logistic.quick_probe(x[:400], y[:400], x[400:], y[400:], classes=3)
  assert score < 0.5


def test_fit_is_the_minimum():
  """The gradient of the penalised loss is zero there, for each penalty."""
  x, y = features(n=320, noise=2.0)
  l2_R = np.float32(logistic.L2)
  for l2, w, b in zip(l2_R, *logistic.fit(x, y, l2_R, classes=3), strict=True):
    logits = x @ w + b
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    error = p - np.eye(3)[y]
    # L-BFGS stops near it; the largest entry of a gradient is about 1.
    close(x.T @ error / len(x) + l2 * w, 0, 5e-4, scale=np.abs(x).max())
    close(error.mean(0), 0, 5e-4, scale=1)


@pytest.mark.parametrize('rank', [1, 3, 8])
def test_rankme_of_known_rank(rank):
  """Equal singular values: the effective rank is the rank."""
  q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 8)))
  x = q[:, :rank] @ np.eye(rank, 8)
  close(statistics.rankme(x), rank, 1e-4)  # it adds 1e-7 to each share


def test_majority():
  assert (
    labels.majority_baseline(np.array([2, 2, 0]), np.array([2, 0, 1, 2])) == 0.5
  )


def test_mistakes():
  x, y = features(n=10)
  with pytest.raises(UserError, match='from 0 to 2: 2 classes need 0 to 1'):
    logistic.quick_probe(x, y, x, y, classes=2)
  with pytest.raises(UserError, match='too few'):
    logistic.quick_probe(x[:2], y[:2], x, y, classes=3)


def test_table():
  text = report.format_table(
    {'chance': {'probe/class': 0.1}, 'it': {'probe/class': 0.5, 'rankme': 9.0}}
  )
  assert [line.split() for line in text.splitlines()] == [
    ['class', 'rankme'],
    ['chance', '10.0', '-'],
    ['it', '50.0', '9.0'],
  ]


def split(x, y, n=1000):
  return x[:n], y[:n], x[n:], y[n:]


def test_logistic_equals_scikit_learn(cpus):
  """To .1 point of 3000 examples, from too little penalty to too much."""
  models = pytest.importorskip('sklearn.linear_model')
  x, y = features(n=4000, d=16, classes=5, noise=2.0)
  x = x * np.linspace(0.1, 10, 16, dtype=np.float32) + 3
  train_x, train_y, test_x, test_y = split(x, y)
  mean, std = train_x.mean(0), train_x.std(0)
  for l2 in (1e-5, 1e-2, 1.0):
    judge = models.LogisticRegression(C=1 / (1000 * l2), max_iter=2000)
    judge.fit((train_x - mean) / std, train_y)
    expected = judge.score((test_x - mean) / std, test_y)
    result = evaluate(train_x, train_y, test_x, test_y, classes=5, l2s=(l2,))
    close(result.accuracy, expected, within=1e-3)
    assert result.l2 == l2 and not result.held_out


def test_logistic_on_any_devices(cpus):
  """8 devices, which divide neither part, give the numbers of one.

  On examples sorted by class, as data sets on disk are.
  """
  x, y = features(n=603, noise=2.0)
  train_x, train_y, test_x, test_y = split(x, y, 401)
  order = np.argsort(train_y)
  train_x, train_y = train_x[order], train_y[order]
  results = [
    evaluate(
      *(train_x, train_y, test_x, test_y),
      classes=3,
      mesh=sharding.make_mesh(fsdp=fsdp, devices=cpus[:devices]),
    )
    for devices, fsdp in ((1, 1), (8, 2))
  ]
  one, eight = results
  assert one.accuracy > 0.6
  assert one.held_out.keys() == eight.held_out.keys() == set(logistic.L2)
  # An example may lie on a border to the last digit, and tip the choice.
  close(
    list(one.held_out.values()), list(eight.held_out.values()), within=1.5 / 80
  )
  close(one.accuracy, eight.accuracy, within=4.5 / 202)
  assert one.held_out[one.l2] == max(one.held_out.values())


def test_the_note_says_where_penalties_are_equally_good():
  note = logistic.Result(0.8, 0.1, {0.01: 0.9, 0.1: 0.9, 1.0: 0.5})
  assert 'greatest of 2 that are equally good' in note.selection_note
  note = logistic.Result(0.8, 0.1, {0.01: 0.8, 0.1: 0.9, 1.0: 0.5})
  assert '0.1, is the best of 3' in note.selection_note


def test_penalty_is_chosen_on_held_out_examples():
  """More features than examples: no penalty is worse; the test is not seen."""
  x, y = features(n=260, d=100, noise=4.0)
  train_x, train_y, test_x, test_y = split(x, y, 60)
  result = evaluate(
    train_x, train_y, test_x, test_y, classes=3, l2s=(1e-6, 1.0, 1e4)
  )
  other = evaluate(
    train_x, train_y, test_x, test_y[::-1], classes=3, l2s=(1e-6, 1.0, 1e4)
  )
  assert result.held_out == other.held_out and result.l2 == other.l2
  held = logistic._hold_out(train_y, 0)
  counts = np.bincount(train_y)
  np.testing.assert_array_equal(
    np.bincount(train_y[held]), [round(0.2 * n) for n in counts]
  )


def test_logistic_mistakes():
  x, y = features(n=60)
  train_x, train_y, test_x, test_y = split(x, y, 40)
  for match, wrong in {
    'training labels run from 0 to 2: 2 classes': dict(classes=2),
    'The 40 training examples have fewer than two': dict(train_y=0 * train_y),
    'The 20 test examples have fewer than two': dict(test_y=0 * test_y),
    'training features are not finite': dict(train_ND=train_x + np.inf),
    r'features are \(40, 8\) and their labels \(20,\)': dict(train_y=test_y),
    r'l2s are \(\): take one or more': dict(l2s=()),
    r'l2s are \(-1,\)': dict(l2s=(-1,)),
  }.items():
    right = dict(train_ND=train_x, train_y=train_y, test_ND=test_x)
    with pytest.raises(UserError, match=match):
      evaluate(**(right | dict(test_y=test_y, classes=3) | wrong))


def test_one_example_a_class():
  """Nothing can be held out of it, so the penalty has to be given."""
  x, y = features(n=60)
  few = labels.few_shot_subset(y, per_class=1)
  few = x[few], y[few]
  with pytest.raises(UserError, match='give one'):
    evaluate(*few, x, y, classes=3)
  assert evaluate(*few, x, y, classes=3, l2s=(1e-3,)).accuracy > 0.9


def test_subset():
  y = np.repeat([3, 0, 7], [50, 30, 10])
  np.random.default_rng(0).shuffle(y)
  for k in (1, 4, 10):
    part = labels.few_shot_subset(y, per_class=k)
    np.testing.assert_array_equal(
      np.unique(y[part], return_counts=True), [[0, 3, 7], [k] * 3]
    )
    assert (np.diff(part) > 0).all()
    assert set(labels.few_shot_subset(y, per_class=1)) <= set(part)
  part = labels.few_shot_subset(y, share=0.04, seed=1)
  np.testing.assert_array_equal(
    np.unique(y[part], return_counts=True)[1], [1, 2, 1]
  )
  np.testing.assert_array_equal(
    part, labels.few_shot_subset(y, share=0.04, seed=1)
  )
  assert not np.array_equal(part, labels.few_shot_subset(y, share=0.04, seed=2))
  np.testing.assert_array_equal(
    labels.few_shot_subset(y, share=1.0), np.arange(90)
  )
  with pytest.raises(UserError, match='class 7 has 10 examples: take up to'):
    labels.few_shot_subset(y, per_class=11)
  for wrong in ({}, {'per_class': 1, 'share': 0.1}, {'share': 1.1}):
    with pytest.raises(UserError, match='take 1 or more for the one, or'):
      labels.few_shot_subset(y, **wrong)
  for wrong, words in ((y[:0], '0 training examples'), (y - 1, 'run from -1')):
    with pytest.raises(UserError, match=words):
      labels.few_shot_subset(wrong, per_class=1)
