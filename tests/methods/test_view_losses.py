"""VICReg's terms and SIGReg: their formulas, on one device and on eight."""

import itertools

import jax
import numpy as np
import pytest

from ijepa_jax.methods import view_losses
from ijepa_jax.runtime import sharding
from tests.close import close

V, B, D, K = 3, 8, 5, 7
DIRECTIONS = np.random.default_rng(1).normal(size=(D, K))
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=0)


def embeddings(shape=(V, B, D)):
  """Float64, of standard deviations below and above 1, correlated."""
  r = np.random.default_rng(0)
  z = r.normal(size=shape) @ r.normal(size=(shape[-1],) * 2)
  return 0.3 * z * np.linspace(0.5, 2.5, shape[-1]) + r.normal(size=shape[-1])


# ---- The formulas again, an element at a time ----


def invariance(z):
  pairs = list(itertools.combinations(z, 2))
  return sum(((a - b) ** 2).mean() for a, b in pairs) / len(pairs)


def spread(z):
  return sum(((a - sum(z) / len(z)) ** 2).mean() for a in z) / len(z)


def variance(z):
  total = 0.0
  for view in z:
    for x in view.T:
      total += max(0, 1 - np.sqrt(np.var(x, ddof=1) + 1e-4)) / len(view.T)
  return total / len(z)


def covariance(z):
  total = 0.0
  for view in z:
    c = np.cov(view.T)
    total += ((c**2).sum() - (np.diag(c) ** 2).sum()) / len(c)
  return 2 * total / len(z)


def sigreg(z):
  t = np.linspace(-3, 3, 33)  # the whole axis
  total = 0.0
  for view in z:
    for a in DIRECTIONS.T:
      empirical = np.exp(1j * np.outer(view @ a, t)).mean(0)
      distance = np.abs(empirical - np.exp(-(t**2) / 2)) ** 2
      y = distance * np.exp(-(t**2) / 2)
      total += len(view) * ((y[1:] + y[:-1]) / 2 * np.diff(t)).sum()
  return total / len(z) / K


TERMS = {
  'spread': spread,
  'invariance': invariance,
  'variance': variance,
  'covariance': covariance,
  'sigreg': sigreg,
}


def term(name, directions=DIRECTIONS):
  if name == 'sigreg':
    return lambda z: view_losses.sigreg(z, directions)
  return getattr(view_losses, name)


@pytest.mark.parametrize('name', TERMS)
@pytest.mark.parametrize('views', [2, 3])
def test_each_term_and_its_gradient(name, views):
  """In float64, against the formula and its differences."""
  z, formula, step = embeddings((views, B, D)), TERMS[name], 1e-6
  with jax.enable_x64(True):
    value, grad = jax.jit(jax.value_and_grad(term(name)))(z)
  close(value, formula(z), 1e-9)
  expected = np.zeros_like(z)
  for i in np.ndindex(z.shape):
    high, low = z.copy(), z.copy()
    high[i] += step
    low[i] -= step
    expected[i] = (formula(high) - formula(low)) / (2 * step)
  close(grad, expected, 1e-6)


def test_two_views_are_the_published_loss():
  """25 x mean squared error + 25 x mean of both hinges + both covariances."""
  a, b = z = embeddings((2, B, D)).astype(np.float32)

  def hinge(x):
    return np.maximum(0, 1 - np.sqrt(x.var(0, ddof=1) + 1e-4)).mean()

  def off_diagonal(x):
    c = np.cov(x.T)
    return (c**2)[~np.eye(D, dtype=bool)].sum() / D

  close(view_losses.invariance(z), ((a - b) ** 2).mean())
  close(view_losses.variance(z), (hinge(a) + hinge(b)) / 2)
  close(view_losses.covariance(z), off_diagonal(a) + off_diagonal(b))


def test_what_has_no_loss():
  """Equal views, spread and uncorrelated features, a normal distribution."""
  hadamard = np.array([[1]])
  for _ in range(3):
    hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
  z = np.float32(np.stack([hadamard[:, 1:]] * 2))
  for name in 'invariance', 'variance', 'covariance':
    close(term(name)(z), 0, scale=1)
  r = np.random.default_rng(0)
  normal = r.normal(size=(1, 4000, D)).astype(np.float32)
  directions = view_losses.directions(jax.random.key(0), D, 64)
  close(np.linalg.norm(directions, axis=0), 1)
  # B times a mean of squares that falls as 1 / B: of no order but 1.
  assert view_losses.sigreg(normal, directions) < 2
  for other in 2 * normal, normal + 1, abs(normal), 0 * normal:
    assert view_losses.sigreg(other, directions) > 50


@pytest.mark.parametrize('name', TERMS)
def test_eight_devices_equal_one(name, cpus):
  """Statistics are of the whole batch, not of a device's part of it."""
  z = embeddings((2, 16, D)).astype(np.float32)
  function = term(name, DIRECTIONS.astype(np.float32))

  def loss(z_BVD):
    return function(z_BVD.swapaxes(0, 1))

  results = []
  for devices in cpus[:1], cpus:
    mesh = sharding.make_mesh(devices=devices)
    x = sharding.shard_rows(z.swapaxes(0, 1), mesh, np.float32)
    assert len(x.addressable_shards) == len(devices)
    results.append(jax.device_get(jax.jit(jax.value_and_grad(loss))(x)))
  (value, grad), (expected, expected_grad) = results
  close(value, expected, 1e-5)
  close(grad, expected_grad, 1e-5)
  parts = [function(z[:, i : i + 2]) for i in range(0, 16, 2)]
  if name not in ('spread', 'invariance'):  # which are means of the images'
    assert abs(np.mean(parts) - value) > 0.1 * value
