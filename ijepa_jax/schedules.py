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


def _numpy(step):
  return jnp if isinstance(step, jax.Array) else np


def cosine(first: float, last: float, total: int) -> Schedule:
  """Half a cosine from `first` at step 0 to `last` at step `total`."""

  def value(step):
    xp = _numpy(step)
    progress = xp.minimum(step / max(total, 1), 1.0)
    return last + (first - last) * (1 + xp.cos(np.pi * progress)) / 2

  return value


def linear(first: float, last: float, total: int) -> Schedule:
  """A straight line from `first` at step 0 to `last` at step `total`."""

  def value(step):
    progress = _numpy(step).minimum(step / max(total, 1), 1.0)
    return first + progress * (last - first)

  return value


def warmup_cosine(
  start: float, peak: float, final: float, warmup: int, total: int
) -> Schedule:
  """Linear from `start` to `peak`, then a cosine to `final`."""
  rise = linear(start, peak, warmup)
  fall = cosine(peak, final, total - warmup)

  def value(step):
    xp = _numpy(step)
    return xp.where(
      step < warmup, rise(step), xp.maximum(fall(step - warmup), final)
    )

  return value


BY_NAME = {'cosine': cosine, 'linear': linear}
