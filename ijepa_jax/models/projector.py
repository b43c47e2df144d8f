"""The projector of methods of invariance: an MLP that is thrown away later."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ijepa_jax.models import transformer


class Projector(nn.Module):
  """Linear layers, with BatchNorm and ReLU between them (VICReg's expander).

  BatchNorm is of the batch at hand and keeps no averages, since nothing is
  projected after the training. No layer has a bias, which BatchNorm would take
  away. Kernels are scaled by their fan-in whatever the encoder's are.

  Attributes:
    widths: of the layers; the last is that of the embeddings.
    dtype: of the products; statistics and embeddings are float32.
  """

  widths: tuple[int, ...]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_VBD: jax.Array) -> jax.Array:
    """Embeds V views of B images, each view by its own statistics.

    Args:
      x_VBD: float [V, B, D], of all images of the batch.

    Returns:
      float32 [V, B, widths[-1]].
    """
    for i, width in enumerate(self.widths):
      if i:
        x_VBD = nn.relu(BatchNorm(name=f'norm{i}')(x_VBD))
      # functions.linear would gather the images of all devices.
      x_VBD = nn.Dense(
        width,
        use_bias=False,
        dtype=self.dtype,
        kernel_init=transformer.INITS['fan_in'],
        promote_dtype=transformer.gather_weights,
        name=f'fc{i + 1}',
      )(x_VBD).astype(jnp.float32)
    return x_VBD


class BatchNorm(nn.Module):
  """BatchNorm over the images of each view, [V, B, D], in float32."""

  @nn.compact
  def __call__(self, x_VBD: jax.Array) -> jax.Array:
    d = x_VBD.shape[-1]
    scale = self.param('scale', nn.initializers.ones, (d,), jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (d,), jnp.float32)
    centered = x_VBD - x_VBD.mean(1, keepdims=True)
    variance = (centered**2).mean(1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + 1e-5) * scale + bias
