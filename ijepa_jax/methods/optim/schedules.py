"""Learning rate, weight decay and EMA momentum as functions of the step.

Each maker returns a function step -> value: float64 for a Python step, float32
inside a compiled step. Steps are counted as the release counts them: from 1 for
the learning rate and the weight decay, from 0 for the momentum.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Schedule = Callable[[int | jax.Array], float | jax.Array]


def _share(step, total: int):
  """`step` / `total`, at most 1, and the module that goes on with it."""
  total = max(total, 1)
  if isinstance(step, jax.Array):  # float32 though JAX_ENABLE_X64 is set
    return jnp.minimum(step.astype(jnp.float32) / total, 1.0), jnp
  return np.minimum(step / total, 1.0), np


def cosine(first: float, last: float, total: int) -> Schedule:
  """Half a cosine from `first` at step 0 to `last` at step `total`."""

  def value(step):
    progress, xp = _share(step, total)
    return last + (first - last) * (1 + xp.cos(np.pi * progress)) / 2

  return value


def linear(first: float, last: float, total: int) -> Schedule:
  """A straight line from `first` at step 0 to `last` at step `total`."""

  def value(step):
    progress, _ = _share(step, total)
    return first + progress * (last - first)

  return value


def warmup_cosine(
  start: float, peak: float, final: float, warmup: int, total: int
) -> Schedule:
  """Linear from `start` to `peak`, then a cosine to `final`."""
  rise = linear(start, peak, warmup)
  fall = cosine(peak, final, total - warmup)

  def value(step):
    xp = jnp if isinstance(step, jax.Array) else np
    return xp.where(
      step < warmup, rise(step), xp.maximum(fall(step - warmup), final)
    )

  return value


BY_NAME = {'cosine': cosine, 'linear': linear}
