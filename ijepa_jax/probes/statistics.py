"""Statistics of features: effective rank and mean cosine."""

import jax
import jax.numpy as jnp
import numpy as np


def rankme(x_BD: jax.Array) -> jax.Array:
  """exp of the entropy of the normalised singular values."""
  s = jnp.linalg.svd(x_BD.astype(jnp.float32), compute_uv=False)
  p = s / jnp.maximum(s.sum(), 1e-12) + 1e-7
  return jnp.exp(-(p * jnp.log(p)).sum())


def mean_cosine(x_BND: jax.Array) -> jax.Array:
  """Mean cosine between two different rows of N: float32 [B]."""
  n = x_BND.shape[1]
  length = jnp.linalg.norm(x_BND, axis=-1, keepdims=True)
  total = (x_BND / jnp.maximum(length, 1e-12)).sum(1)
  return ((total**2).sum(-1) - n) / (n * (n - 1))


def host_rankme(x_ND) -> float:
  """The effective rank of features (Garrido et al., ICML 2023).

  exp of the entropy of the normalised singular values of the matrix: from 1,
  all on one line, to min(N, D).
  """
  s = np.linalg.svd(np.asarray(x_ND, np.float64), compute_uv=False)
  p = s / max(s.sum(), 1e-12) + 1e-7
  return float(np.exp(-(p * np.log(p)).sum()))
