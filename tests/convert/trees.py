"""Trees of arrays for the tests of convert/."""

import jax
import numpy as np


def assert_equal(a, b):
  """Structure, shapes, values."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def random_like(tree, seed=0):
  # Repeated, so that it costs little; nothing has this prime's length.
  noise = np.random.default_rng(seed).standard_normal(65_537, np.float32)
  return jax.tree.map(lambda x: np.resize(noise, x.shape), tree)
