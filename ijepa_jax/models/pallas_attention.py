"""Self-attention of short sequences as kernels of TPUs, in Pallas.

XLA keeps the logits of all images and heads in memory, and pads heads of 32
features to the 128 lanes of a TPU's registers. These kernels keep no logits:
the backward pass computes them again, from queries and keys.

A program takes some images and a group of heads, which fills whole registers.
Masks over the lanes tell its heads apart: a product of all lanes takes no
longer than one of a head's, and what is masked adds nothing to it.

Shapes in names: B images, T tokens, D features of all heads, G of a group's.
"""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

LANES = 128  # of a register
IMAGES = 8  # of a program, at most
ROOM = 8 * 2**20  # bytes of a program's blocks: half of what every TPU has


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def attention(
  qkv_BTD: jax.Array, heads: int, interpret: bool = False
) -> jax.Array:
  """Self-attention of fused queries, keys and values, on TPUs.

  Args:
    qkv_BTD: [B, T, 3 D], see `functions.attention`; 128 divides D.
    heads: of D / heads features each.
    interpret: compute it by JAX's operations, on any device, for tests.

  Returns:
    [B, T, D] of the same type; the softmax is in float32.
  """
  return _on_all_devices(_forward, heads, interpret, qkv_BTD)


def _attention_and_arguments(qkv_BTD, heads, interpret):
  y_BTD = _on_all_devices(_forward, heads, interpret, qkv_BTD)
  return y_BTD, qkv_BTD


def _gradient(heads, interpret, qkv_BTD, dy_BTD):
  return (_on_all_devices(_backward, heads, interpret, qkv_BTD, dy_BTD),)


attention.defvjp(_attention_and_arguments, _gradient)


def _on_all_devices(kernel, heads, interpret, *arrays):
  """Calls a kernel for each device's images: XLA splits none by itself.

  In the context runtime/sharding.py: gathering; outside of it for one device.
  """
  call = functools.partial(_call, kernel, heads, interpret)
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(axis for axis in ('data', 'fsdp') if axis in mesh.axis_names)
  devices = math.prod(mesh.shape[axis] for axis in axes)
  if devices == 1:
    return call(*arrays)
  rows = PartitionSpec(None if len(arrays[0]) % devices else axes)
  return jax.shard_map(call, in_specs=rows, out_specs=rows, check_vma=False)(
    *arrays
  )


def _call(kernel, heads, interpret, qkv_BTD, *cotangent):
  """Runs the programs of `_forward` or `_backward` on one device."""
  b, t, d = *qkv_BTD.shape[:2], qkv_BTD.shape[2] // 3
  group = math.lcm(d // heads, LANES)
  inputs = *[qkv_BTD] * 3, *cotangent
  first_groups = 0, d // group, 2 * d // group, 0
  # The gradient is one array of three parts, whole before it is written.
  width, out_width = (3 * d, 3 * d) if cotangent else (d, group)
  # Blocks are there twice: the next ones come while a program computes.
  row = 2 * qkv_BTD.dtype.itemsize * (len(inputs) * group + out_width)
  images = min(max(ROOM // (t * row), 1), IMAGES)
  grid = pl.cdiv(b, images), d // group

  def block(first_group):
    return pl.BlockSpec(
      (images, t, group), lambda images, g: (images, 0, first_group + g)
    )

  return pl.pallas_call(
    functools.partial(kernel, features=d // heads),
    name=kernel.__name__.strip('_') + '_attention',
    metadata={'programs': str(math.prod(grid))},  # for the planner
    out_shape=jax.ShapeDtypeStruct((b, t, width), qkv_BTD.dtype),
    grid=grid,
    in_specs=[block(first) for first in first_groups[: len(inputs)]],
    out_specs=pl.BlockSpec(
      (images, t, out_width),
      lambda images, g: (images, 0, 0 if cotangent else g),
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary'),
      # What a program computes is there besides its blocks: 32 bytes for each
      # of the logits of some heads are enough.
      vmem_limit_bytes=2 * max(images * t * row, ROOM) + 32 * t * t,
    ),
    interpret=interpret,
  )(*inputs)


def _forward(q_ref, k_ref, v_ref, y_ref, *, features):
  """A program: softmax(q k^T / sqrt(features)) v of each image and head."""
  images, _, width = y_ref.shape
  dtype, scale = y_ref.dtype, features**-0.5
  for image in range(images):
    q_TG, k_TG, v_TG = (x[image] for x in (q_ref, k_ref, v_ref))
    y = {}
    for at, mask in _heads(width, features):
      masked_q = jnp.where(mask, q_TG[:, at], 0)
      logits = _product(masked_q, k_TG[:, at], 1, 1)
      weights = jnp.exp((logits - logits.max(1, keepdims=True)) * scale)
      total = weights.sum(1, keepdims=True)
      y_TG = _product(weights.astype(dtype), v_TG[:, at], 1, 0) / total
      _collect(y, at, mask, y_TG)
    for first, tile in y.items():
      y_ref[image, :, first : first + LANES] = tile.astype(dtype)


def _backward(q_ref, k_ref, v_ref, dy_ref, dqkv_ref, *, features):
  """A program: the gradient of `_forward`, of queries, keys and values."""
  images, _, width = dy_ref.shape
  dtype, scale = dy_ref.dtype, features**-0.5
  for image in range(images):
    q_TG, k_TG, v_TG, dy_TG = (x[image] for x in (q_ref, k_ref, v_ref, dy_ref))
    dq, dk, dv = {}, {}, {}
    for at, mask in _heads(width, features):
      # Keys by queries: so only the product of dq takes a transposed matrix.
      masked_k = jnp.where(mask, k_TG[:, at], 0)
      masked_v = jnp.where(mask, v_TG[:, at], 0)
      logits = _product(masked_k, q_TG[:, at], 1, 1)
      weights = jnp.exp((logits - logits.max(0, keepdims=True)) * scale)
      weights = weights * (1 / weights.sum(0, keepdims=True))
      dweights = _product(masked_v, dy_TG[:, at], 1, 1)
      mean = (weights * dweights).sum(0, keepdims=True)
      dlogits = (weights * (dweights - mean) * scale).astype(dtype)
      weights = weights.astype(dtype)
      _collect(dv, at, mask, _product(weights, dy_TG[:, at], 1, 0))
      _collect(dk, at, mask, _product(dlogits, q_TG[:, at], 1, 0))
      _collect(dq, at, mask, _product(dlogits, k_TG[:, at], 0, 0))
    for part, x in enumerate((dq, dk, dv)):
      _put(dqkv_ref, image, part, width, x)


def _put(dqkv_ref, image: int, part: int, width: int, tiles: dict) -> None:
  """Writes a group's queries, keys or values, {first lane: [T, LANES]}."""
  start = part * (dqkv_ref.shape[2] // 3)
  if dqkv_ref.shape[2] > 3 * width:
    start += pl.program_id(1) * width
  for first, tile in tiles.items():
    lanes = pl.ds(pl.multiple_of(start + first, LANES), LANES)
    dqkv_ref[image, :, lanes] = tile.astype(dqkv_ref.dtype)


def _heads(width: int, features: int) -> Iterator[tuple[slice, jax.Array]]:
  """For each head the whole registers that hold it, and a mask of its lanes."""
  for first in range(0, width, features):
    last = first + features
    start, stop = first // LANES * LANES, -(-last // LANES) * LANES
    lane = start + jax.lax.broadcasted_iota(jnp.int32, (1, stop - start), 1)
    yield slice(start, stop), (first <= lane) & (lane < last)


def _collect(tiles: dict, at: slice, mask, x_TG) -> None:
  """Takes a head's lanes of `x_TG` into {first lane: [T, LANES]}."""
  for first in range(at.start, at.stop, LANES):
    lanes = slice(first - at.start, first - at.start + LANES)
    new = x_TG[:, lanes]
    if first in tiles:
      new = jnp.where(mask[:, lanes], new, tiles[first])
    tiles[first] = new


def _product(x, y, i: int, j: int) -> jax.Array:
  """Sums over axis i of x and axis j of y, in float32."""
  return jax.lax.dot_general(
    x, y, (((i,), (j,)), ((), ())), preferred_element_type=jnp.float32
  )
