"""A pixel transformer that denoises images, given one vector (DiT, JiT).

Plain ViT blocks on patches of the noisy image, modulated by time and vector
(adaptive LayerNorm whose effect begins at zero: Peebles and Xie, ICCV 2023). It
predicts the clean image, which stays easy where a patch has more pixels than
the network has width (JiT: Li and He, 2025).

Shapes in names: B images, H x W pixels, C channels, T tokens, D features.
"""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from ijepa_jax.models import functions, positions, transformer, vit

_MAX_PERIOD = 10_000.0  # of the sinusoids of time
_SEAM_CHANNELS = 32


class DiT(nn.Module):
  """Attributes:
  patch_size: in pixels, of the image that is denoised.
  width, depth, heads: of the blocks; their MLP is four times as wide.
  dtype: of the computation; parameters are float32.
  product_dtype: of its linear layers, functions.product_dtype.
  """

  patch_size: int
  width: int
  depth: int
  heads: int
  dtype: Any = jnp.float32
  kernel_init: Any = nn.initializers.xavier_uniform()
  product_dtype: Any = None

  @nn.compact
  def __call__(self, noisy_BHWC, time_B, vector_BD, known_B):
    """Predicts clean images.

    Args:
      noisy_BHWC: float32, time * clean + (1 - time) * noise.
      time_B: float32 in [0, 1]; 1 is clean.
      vector_BD: float32, all that is known of the image.
      known_B: bool; where False the vector is not looked at.

    Returns:
      float32 [B, H, W, C].
    """
    b, h, w, c = noisy_BHWC.shape
    p, d = self.patch_size, self.width
    rows, columns = h // p, w // p
    condition = transformer.dense('vector', d, self)(vector_BD)
    unknown = self.param('unknown', nn.initializers.normal(0.02), (d,))
    condition = jnp.where(known_B[:, None], condition, unknown)
    time = nn.silu(transformer.dense('time1', d, self)(_sinusoids(time_B, d)))
    condition = condition + transformer.dense('time2', d, self)(time)
    # One modulation for all blocks, and an offset for each: a third of the
    # parameters of one for each.
    shared_BF = _zeros('modulation', 6 * d, self)(nn.silu(condition))
    offsets_LF = self.param(
      'offsets', nn.initializers.zeros, (self.depth, 6 * d)
    )
    x = transformer.dense('patch_embed', d, self)(vit.patchify(noisy_BHWC, p))
    x = x + jnp.asarray(positions.sincos_table((rows, columns), d), x.dtype)
    for block, offset_F in enumerate(offsets_LF):
      parts = jnp.split((shared_BF + offset_F)[:, None], 6, axis=-1)
      x = _Block(
        self.heads,
        self.dtype,
        self.kernel_init,
        self.product_dtype,
        name=f'block{block}',
      )(x, *parts)
    shift, scale = jnp.split(
      _zeros('last_modulation', 2 * d, self)(nn.silu(condition))[:, None], 2, -1
    )
    x = _norm(self.dtype)(x) * (1 + scale) + shift
    x = _zeros('last', p * p * c, self)(x).astype(jnp.float32)
    x = x.reshape(b, rows, columns, p, p, c).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(b, h, w, c)
    # Patches know of each other's edges by attention alone: without this a
    # small network leaves their grid.
    y = jnp.concatenate([x, noisy_BHWC], -1).astype(self.dtype)
    y = nn.gelu(
      nn.Conv(_SEAM_CHANNELS, (3, 3), dtype=self.dtype, name='seam')(y)
    )
    y = nn.Conv(
      c,
      (3, 3),
      dtype=self.dtype,
      kernel_init=nn.initializers.zeros,
      name='last_seam',
    )(y)
    return x + y.astype(jnp.float32)


class _Block(nn.Module):
  heads: int
  dtype: Any
  kernel_init: Any
  product_dtype: Any

  @nn.compact
  def __call__(self, x_BTD, shift1, scale1, gate1, shift2, scale2, gate2):
    d = x_BTD.shape[-1]
    y = _norm(self.dtype)(x_BTD) * (1 + scale1) + shift1
    qkv = transformer.dense('qkv', 3 * d, self)(y)
    y = functions.attention(qkv, self.heads, 'xla')
    x_BTD = x_BTD + gate1 * transformer.dense('proj', d, self)(y)
    y = _norm(self.dtype)(x_BTD) * (1 + scale2) + shift2
    y = nn.gelu(transformer.dense('fc1', 4 * d, self)(y))
    return x_BTD + gate2 * transformer.dense('fc2', d, self)(y)


def _norm(dtype) -> nn.LayerNorm:
  return nn.LayerNorm(
    1e-6, dtype=dtype, use_scale=False, use_bias=False, use_fast_variance=False
  )


def _zeros(name: str, features: int, module: DiT) -> nn.Dense:
  return nn.Dense(
    features,
    dtype=module.dtype,
    kernel_init=nn.initializers.zeros,
    dot_general=functions.dense_product,
    name=name,
  )


def _sinusoids(time_B, width: int):
  """float32 [B, width] of a time in [0, 1]."""
  half = width // 2
  rates = jnp.exp(-math.log(_MAX_PERIOD) * jnp.arange(half) / half)
  angles = 1000 * time_B[:, None] * rates
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
