"""The transformer blocks that encoder, predictor and heads share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from ijepa_jax.models import functions

# What the backward pass keeps of each block; the rest is computed again.
REMAT = {
  'none': None,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}
# `release`: its truncation at +-2 is 100 standard deviations away, so a normal.
# `rescaled`: the same, then `rescale_residuals`.
INITS = {
  'release': nn.initializers.normal(0.02),
  'rescaled': nn.initializers.normal(0.02),
  'fan_in': nn.initializers.variance_scaling(1.0, 'fan_in', 'normal'),
}


class Block(nn.Module):
  """A pre-norm transformer block with exact GELU and fused qkv with bias."""

  heads: int
  mlp_dim: int
  dtype: Any
  kernel_init: Callable
  attention: str
  product_dtype: Any = None  # of linear layers, functions.product_dtype
  block_output: Callable | None = None  # what to return of the output too
  tokens: int | None = None  # how many of the last to compute; None: all

  @nn.compact
  def __call__(self, x_BTD: jax.Array, drop_path: jax.Array | None = None):
    d = x_BTD.shape[-1]
    y = LayerNorm(self.dtype, name='norm1')(x_BTD)
    # Of a kernel's output no sum is fused with what makes it.
    qkv = dense('qkv', 3 * d, self, self.attention == 'pallas')(y)
    y = functions.attention(qkv, self.heads, self.attention, self.tokens)
    y = dense('proj', d, self)(y)
    x_BTD = x_BTD[:, -y.shape[1] :] + self.drop(y, drop_path)
    y = LayerNorm(self.dtype, name='norm2')(x_BTD)
    y = functions.gelu(dense('fc1', self.mlp_dim, self)(y))
    x_BTD = x_BTD + self.drop(dense('fc2', d, self)(y), drop_path)
    output = self.block_output(x_BTD) if self.block_output else None
    return x_BTD, output

  def drop(self, y_BTD: jax.Array, rate: jax.Array | None) -> jax.Array:
    """Stochastic depth: of some images the branch is left out."""
    if rate is None:
      return y_BTD
    kept = jax.random.bernoulli(
      self.make_rng('drop_path'), 1 - rate, (len(y_BTD), 1, 1)
    )
    return jnp.where(kept, y_BTD / (1 - rate).astype(y_BTD.dtype), 0)


class Dense(nn.Module):
  """nn.Dense with the products of functions.py; weights gathered, see below.

  Attributes:
    product_dtype: of the product before it is rounded, functions.linear.
    sum_by_product: how the bias's gradient is summed, functions.add_bias.
  """

  features: int
  dtype: Any
  kernel_init: Callable
  product_dtype: Any = None
  sum_by_product: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = x.shape[-1], self.features
    kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, shape[1:], jnp.float32)
    x, kernel, bias = gather_weights(x, kernel, bias, dtype=self.dtype)
    y = functions.linear(x, kernel, self.product_dtype)
    return functions.add_bias(y, bias) if self.sum_by_product else y + bias


def dense(
  name: str, features: int, module: nn.Module, sum_by_product: bool = False
) -> Dense:
  """A linear layer with the compute types and initialisation of `module`."""
  return Dense(
    features,
    module.dtype,
    module.kernel_init,
    module.product_dtype,
    sum_by_product,
    name=name,
  )


def gather_weights(x, *weights, dtype=None):
  """nn.dtypes.promote_dtype that gathers the parts of a split weight.

  In the context runtime/sharding.py: gathering, every device computes with all
  of a weight, in the compute type, on its own rows of the batch. Left to itself
  XLA splits a layer's features as its weight is split, and gathers the rows of
  all devices on each of them instead.
  """
  x, *weights = nn.dtypes.promote_dtype(x, *weights, dtype=dtype)
  if splits_weights():
    # Their gradient has this constraint too, see docs/performance.md.
    weights = jax.lax.with_sharding_constraint(weights, PartitionSpec())
  return x, *weights


def splits_weights() -> bool:
  """Whether weights are split, in `gathering`; a user's mesh has no 'fsdp'."""
  return jax.sharding.get_abstract_mesh().shape.get('fsdp', 1) > 1


def save_all_but_gathered(primitive, *_, **__) -> bool:
  """A policy of remat: the backward pass gathers the weights again."""
  return primitive.name != 'sharding_constraint'


class LayerNorm(nn.Module):
  """nn.LayerNorm by functions.layer_norm; `dtype` is that of the result."""

  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
    return functions.layer_norm(x, scale, bias).astype(self.dtype)


def pool_standardized(x_BTD: jax.Array) -> jax.Array:
  """The average over tokens of LayerNorm without scale and offset: [B, D]."""
  x = x_BTD.astype(jnp.float32)
  centered = x - x.mean(-1, keepdims=True)
  variance = (centered**2).mean(-1, keepdims=True)
  return (centered / jnp.sqrt(variance + 1e-6)).mean(1)


# What is returned of each block's output, by the name of `layers`.
BLOCK_OUTPUTS = {
  '': None,
  'tokens': lambda x_BTD: x_BTD,
  'pooled': pool_standardized,
}


class Transformer(nn.Module):
  """What encoder and predictor share: the sizes and the scanned blocks."""

  width: int
  depth: int
  heads: int
  mlp_dim: int
  dtype: Any = jnp.float32
  kernel_init: Callable = INITS['release']
  remat: str = 'none'
  attention: str = 'xla'
  unroll: int = 1
  product_dtype: Any = None

  def blocks(
    self,
    x_BTD: jax.Array,
    block_output: Callable | None = None,
    drop_path: float = 0.0,
  ):
    """All blocks by one scan: compile time does not grow with the depth."""
    block, sizes = self._block()
    scanned = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True, 'drop_path': True},
      in_axes=0,
      length=self.depth,
      # Parameters are drawn once a run: a loop compiles sooner.
      unroll=1 if self.is_initializing() else min(self.unroll, self.depth),
    )
    return scanned(*sizes, block_output, name='blocks')(
      x_BTD,
      jnp.linspace(0, drop_path, self.depth, dtype=jnp.float32)
      if drop_path
      else None,
    )

  def last_tokens(self, x_BTD: jax.Array, tokens: int) -> jax.Array:
    """All blocks, and of their output only the last tokens: [B, tokens, D].

    Without a loop the last block computes no other tokens after its attention.
    In the predictor two thirds of all are such.
    """
    if self.is_initializing() or self.unroll < self.depth:
      return self.blocks(x_BTD)[0][:, -tokens:]
    block, sizes = self._block()

    def apply(x_BTD, params, tokens=None):
      module = block(*sizes, tokens=tokens, parent=None)
      return module.apply({'params': params}, x_BTD)

    # The gradient of a split is one concatenation.
    stacked, tree = jax.tree.flatten(self.variables['params']['blocks'])
    split = [jnp.split(x, [self.depth - 1]) for x in stacked]
    first, last = map(tree.unflatten, zip(*split, strict=True))
    x_BTD, _ = jax.lax.scan(apply, x_BTD, first, unroll=True)
    return apply(x_BTD, jax.tree.map(lambda x: x[0], last), tokens)[0]

  def _block(self) -> tuple[type[Block], tuple]:
    """The class of the blocks, with `remat`, and its first fields."""
    policy, no_loop = REMAT[self.remat], self.unroll >= self.depth
    if policy is None and splits_weights():
      policy = save_all_but_gathered
    block = Block
    if policy is not None:
      # Without a loop XLA may compute a block again as soon as it was computed,
      # which saves no memory. Gathered weights it may keep so: memory for them
      # costs less than gathering them again.
      block = nn.remat(
        Block, policy=policy, prevent_cse=no_loop and self.remat != 'none'
      )
    fields = self.heads, self.mlp_dim, self.dtype, self.kernel_init
    return block, (*fields, self.attention, self.product_dtype)
