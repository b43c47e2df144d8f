"""Statistics of features: effective rank and mean cosine."""

import jax
import jax.numpy as jnp
import numpy as np


def rankme(x_ND):
  """The effective rank of features (RankMe; Garrido et al., ICML 2023).

  exp of the entropy of the normalized singular values: from 1, where all rows
  are on one line, to min(N, D).

  Args:
    x_ND: a NumPy array, computed in float64, or a JAX array, in float32.

  Returns:
    A scalar of the same library.
  """
  host = isinstance(x_ND, np.ndarray)
  xp, dtype = (np, np.float64) if host else (jnp, jnp.float32)
  s = xp.linalg.svd(x_ND.astype(dtype), compute_uv=False)
  p = s / xp.maximum(s.sum(), 1e-12) + 1e-7
  return xp.exp(-(p * xp.log(p)).sum())


def mean_cosine(x_BND: jax.Array) -> jax.Array:
  """Mean cosine between two different rows of N: float32 [B]."""
  n = x_BND.shape[1]
  length = jnp.linalg.norm(x_BND, axis=-1, keepdims=True)
  total = (x_BND / jnp.maximum(length, 1e-12)).sum(1)
  return ((total**2).sum(-1) - n) / (n * (n - 1))
