"""Draws from a flow: from noise to images along the predicted velocity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax.runtime import sharding

_ROWS = 128  # samples at a time


def sample(clean, noise, steps: int) -> jax.Array:
  """Follows dz/dt = (clean(z, t) - z) / (1 - t) from t = 0 to 1 by Heun.

  No guidance: it would remove the variation that is to be read.

  Args:
    clean: (z [B, ...], t float32 [B]) -> the expected clean image.
    noise: float32 [B, ...], standard normal.
    steps: each asks `clean` twice, the last once.

  Returns:
    float32 [B, ...], the clean image.
  """
  times = jnp.linspace(0, 1, steps + 1, dtype=jnp.float32)

  def velocity(z, t):
    return (clean(z, jnp.full(len(z), t)) - z) / (1 - t)

  def step(z, now_and_next):
    t, u = now_and_next
    v = velocity(z, t)
    w = velocity(z + (u - t) * v, u)
    return z + (u - t) * (v + w) / 2, None

  z, _ = jax.lax.scan(step, noise, (times[:-2], times[1:-1]))
  # At t = 1 the velocity is no number; the last step goes to the clean image.
  return clean(z, jnp.full(len(z), times[-2]))


class Pen:
  """Draws blocks from vectors, by a trained generator.

  Args:
    run: of the generator, see train.make_run.
    params: from train.train.
    steps: of `sample`.
  """

  def __init__(self, run, params, steps: int):
    self._run, self._params = run, params
    pixels = functools.partial(
      jax.jit, out_shardings=sharding.replicated(run.mesh)
    )

    @pixels
    def draw(params, vectors, known, numbers):
      # Noise of each row by itself, so that no batch or device changes it.
      noise = jax.vmap(
        lambda number: jax.random.normal(
          jax.random.fold_in(jax.random.key(run.seed), number),
          run.image_shape,
          jnp.float32,
        )
      )(numbers)

      def clean(z, t):
        return run.method.clean(params, z, t, vectors, known)

      return _uint8(sample(clean, noise, steps))

    @pixels
    def mean(params, vectors):
      return _uint8(run.method.mean(params, vectors, run.image_shape))

    self._draw, self._mean = draw, mean

  @property
  def size(self) -> int:
    """Pixels of a block, in both directions."""
    return self._run.image_shape[0]

  def draw(self, vectors_nD, numbers_n, known: bool = True) -> np.ndarray:
    """Samples a block for each vector: uint8 [n, s, s, C].

    Args:
      vectors_nD: float32.
      numbers_n: int; the same number is the same noise.
      known: False draws without the vector.
    """
    numbers = np.asarray(numbers_n, np.int32)
    return self._in_parts(
      self._draw, vectors_nD, np.full(len(numbers), known), numbers
    )

  def mean(self, vectors_nD) -> np.ndarray:
    """What the regressor gives for each vector: uint8 [n, s, s, C]."""
    return self._in_parts(self._mean, vectors_nD)

  def _in_parts(self, function, *arrays) -> np.ndarray:
    out = []
    for i in range(0, len(arrays[0]), _ROWS):
      parts = [x[i : i + _ROWS] for x in arrays]
      rows = len(parts[0])
      padded = [
        np.pad(x, [(0, _ROWS - rows)] + [(0, 0)] * (x.ndim - 1)) for x in parts
      ]
      on_devices = [
        sharding.shard_rows(x, self._run.mesh, x.dtype) for x in padded
      ]
      out.append(np.asarray(function(self._params, *on_devices))[:rows])
    return np.concatenate(out)


def _uint8(x) -> jax.Array:
  """Pixels of a float image in [-1, 1]."""
  return ((jnp.clip(x, -1, 1) + 1) * 127.5).round().astype(jnp.uint8)
