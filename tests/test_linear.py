"""Probes and RankMe on features whose answers are known."""

import numpy as np
import pytest

from ijepa_jax.evals import linear, scenes_probe


def features(n=600, d=8, classes=3, noise=0.1):
  r = np.random.default_rng(0)
  y = r.integers(classes, size=n).astype(np.int32)
  centers = r.normal(size=(classes, d))
  x = centers[y] + noise * r.normal(size=(n, d))
  return x.astype(np.float32), y


def test_separable_features_are_separated():
  x, y = features()
  score = linear.probe(x[:400], y[:400], x[400:], y[400:], classes=3)
  assert score == 1


def test_noise_is_chance():
  x, y = features()
  x = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
  score = linear.probe(x[:400], y[:400], x[400:], y[400:], classes=3)
  assert score < 0.5


def test_fit_is_the_minimum():
  """The gradient of the penalised loss is zero there."""
  x, y = features(noise=2.0)
  l2 = np.float32(1e-2)
  w, b = linear.fit(x, y, l2[None], classes=3)
  logits = x @ w[0] + b[0]
  p = np.exp(logits - logits.max(1, keepdims=True))
  p /= p.sum(1, keepdims=True)
  error = p - np.eye(3)[y]
  np.testing.assert_allclose(x.T @ error / len(x) + l2 * w[0], 0, atol=2e-4)
  np.testing.assert_allclose(error.mean(0), 0, atol=2e-4)


@pytest.mark.parametrize('rank', [1, 3, 8])
def test_rankme_of_known_rank(rank):
  """Equal singular values: the effective rank is the rank."""
  q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 8)))
  x = q[:, :rank] @ np.eye(rank, 8)
  assert linear.rankme(x) == pytest.approx(rank, rel=1e-4)


def test_majority():
  assert linear.majority(np.array([2, 2, 0]), np.array([2, 0, 1, 2])) == 0.5


def test_mistakes():
  x, y = features(n=10)
  with pytest.raises(ValueError, match='0 to 1'):
    linear.probe(x, y, x, y, classes=2)
  with pytest.raises(ValueError, match='too few'):
    linear.probe(x[:2], y[:2], x, y, classes=3)


def test_table():
  text = scenes_probe.table(
    {'chance': {'probe/class': 0.1}, 'it': {'probe/class': 0.5, 'rankme': 9.0}}
  )
  assert [line.split() for line in text.splitlines()] == [
    ['class', 'rankme'],
    ['chance', '10.0', '-'],
    ['it', '50.0', '9.0'],
  ]
