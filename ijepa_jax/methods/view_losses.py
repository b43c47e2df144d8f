"""What is asked of embeddings of views: VICReg's three terms, and SIGReg.

Pure functions of z_VBD, V views of B images with D features. Every statistic is
of the whole batch: B is an axis like any other, so that under `jax.jit` a batch
that is split over devices gives what one device gives.

VICReg: Bardes, Ponce and LeCun, ICLR 2022 (arXiv 2105.04906); where its formula
and its algorithm differ, the algorithm. SIGReg: Balestriero and LeCun, LeJEPA,
2025 (arXiv 2511.08544).
"""

import jax
import jax.numpy as jnp
import numpy as np

VARIANCE_EPSILON = 1e-4
KNOTS, LAST_KNOT = 17, 3.0  # of the integral over t; by symmetry from 0 on


def spread(z_VBD: jax.Array) -> jax.Array:
  """The mean squared distance of a view from the mean of its image's views.

  LeJEPA's prediction term.
  """
  return ((z_VBD - z_VBD.mean(0)) ** 2).mean()


def invariance(z_VBD: jax.Array) -> jax.Array:
  """The mean squared difference of two views of an image, over all pairs."""
  v = len(z_VBD)
  return 2 * v / (v - 1) * spread(z_VBD)  # a sum over pairs by their mean


def variance(z_VBD: jax.Array) -> jax.Array:
  """By how much standard deviations fall short of 1; the mean over views."""
  std_VD = jnp.sqrt(z_VBD.var(1, ddof=1) + VARIANCE_EPSILON)
  return jax.nn.relu(1 - std_VD).mean()


def covariance_matrices(z_VBD: jax.Array) -> jax.Array:
  """Of the features of each view, unbiased: [V, D, D]."""
  centered = z_VBD - z_VBD.mean(1, keepdims=True)
  # Full precision: TensorFloat-32 would leave noise off the diagonal.
  product = jnp.einsum('vbd,vbe->vde', centered, centered, precision='highest')
  return product / (z_VBD.shape[1] - 1)


def covariance(z_VBD: jax.Array) -> jax.Array:
  """Squared covariances of two features, summed, by D; of two views the sum.

  Of more views, the mean over all pairs, as the invariance.
  """
  v, _, d = z_VBD.shape
  matrices = covariance_matrices(z_VBD)
  off_diagonal = jnp.where(np.eye(d, dtype=bool), 0, matrices)
  return 2 / v * (off_diagonal**2).sum() / d


def of_contexts(z_BEKD: jax.Array) -> dict[str, jax.Array]:
  """What keeps the features of I-JEPA's contexts apart, as float32 [].

  The variance and the covariance, of the average over the tokens of each of E
  contexts, and the mean over contexts: C-JEPA adds VICReg's terms to I-JEPA
  (Mo and Tong, NeurIPS 2024, arXiv 2410.19560); its invariance is not here.
  """
  x_EBD = z_BEKD.mean(2).swapaxes(0, 1)
  return {
    'variance_term': variance(x_EBD),
    'covariance_term': covariance(x_EBD) / 2,  # of one branch, not of two
  }


def directions(key: jax.Array, width: int, count: int) -> jax.Array:
  """Uniform directions, unit columns: float32 [width, count]."""
  x_DK = jax.random.normal(key, (width, count), jnp.float32)
  return x_DK / jnp.linalg.norm(x_DK, axis=0)


def sigreg(z_VBD: jax.Array, directions_DK: jax.Array) -> jax.Array:
  """How far a view's embeddings are from a standard normal distribution.

  The Epps-Pulley statistic of their projections on each direction: B times the
  squared distance of the empirical characteristic function from exp(-t^2 / 2),
  integrated with the weight exp(-t^2 / 2) by the trapezoidal rule. The mean
  over views and directions.
  """
  t = np.linspace(0, LAST_KNOT, KNOTS)
  normal = np.exp(-(t**2) / 2)
  weight = normal * 2 * (t[1] - t[0])  # t and -t
  weight[[0, -1]] /= 2
  x_VBK = jnp.einsum('vbd,dk->vbk', z_VBD, directions_DK, precision='highest')
  angle = x_VBK[..., None] * t.astype(x_VBK.dtype)
  real, imaginary = jnp.cos(angle).mean(1), jnp.sin(angle).mean(1)
  distance = (real - normal.astype(x_VBK.dtype)) ** 2 + imaginary**2
  statistic = (distance * weight.astype(x_VBK.dtype)).sum(-1)
  return z_VBD.shape[1] * statistic.mean()
