"""Self-attention of short sequences as kernels of TPUs, in Pallas.

XLA keeps the logits of all images and heads in memory, and pads heads of 32
features to the 128 lanes of a TPU's registers. These kernels keep no logits:
the backward pass computes them again, from queries and keys.

A program takes `IMAGES` images and a group of heads, which fills whole
registers. Masks over the lanes tell its heads apart: a product of all lanes
takes no longer than one of a head's, and what is masked adds nothing to it.

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
IMAGES = 8  # of a program; images lie side by side in a register's 8 rows


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
  grid = pl.cdiv(b, IMAGES), d // group
  inputs = *[qkv_BTD] * 3, *cotangent
  first_groups = 0, d // group, 2 * d // group, 0

  def block(first_group):
    return pl.BlockSpec(
      (t, IMAGES, group), lambda images, g: (0, images, first_group + g)
    )

  if cotangent:  # one array of three parts, of all groups before it is written
    out_width = out_block_width = 3 * d
    out_block = pl.BlockSpec(
      (t, IMAGES, 3 * d), lambda images, g: (0, images, 0)
    )
  else:
    out_width, out_block_width, out_block = d, group, block(0)
  # A copy of each input and each part of the output, see `_unpack`.
  copy = pltpu.VMEM((group // LANES, t * IMAGES, LANES), jnp.float32)
  copies = len(inputs) + out_width // d
  # Blocks are there twice: the next ones come while a program computes.
  blocks = 2 * qkv_BTD.dtype.itemsize * (len(inputs) * group + out_block_width)
  memory = t * IMAGES * (blocks + 4 * copies * group)
  # Tokens before images, as TPUs' compiler lays them out by itself: 8 divides
  # most numbers of images, and few of tokens.
  y_TBD = pl.pallas_call(
    functools.partial(kernel, features=d // heads),
    name=kernel.__name__.strip('_') + '_attention',
    metadata={'programs': str(math.prod(grid))},  # for the planner
    out_shape=jax.ShapeDtypeStruct((t, b, out_width), qkv_BTD.dtype),
    grid=grid,
    in_specs=[block(first) for first in first_groups[: len(inputs)]],
    out_specs=out_block,
    scratch_shapes=[copy] * copies,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary'),
      # A limit: what a program computes is there besides, as much again of
      # large groups. 16 MiB are what every TPU has.
      vmem_limit_bytes=max(2 * memory, 16 * 2**20),
    ),
    interpret=interpret,
  )(*(jnp.swapaxes(x, 0, 1) for x in inputs))
  return jnp.swapaxes(y_TBD, 0, 1)


def _forward(q_ref, k_ref, v_ref, y_ref, *scratch, features):
  """A program: softmax(q k^T / sqrt(features)) v of each image and head."""
  inputs, (ys,) = scratch[:3], scratch[3:]
  _unpack((q_ref, k_ref, v_ref), inputs)
  t, dtype, scale = y_ref.shape[0], y_ref.dtype, features**-0.5
  for image in range(IMAGES):
    q, k, v = (_tokens(x, image, t) for x in inputs)
    k_TG, v_TG = k.astype(dtype), v.astype(dtype)
    y = {}
    for at, mask in _heads(q.shape[1], features):
      q_TG = jnp.where(mask, q[:, at], 0).astype(dtype)
      logits = _product(q_TG, k_TG[:, at], 1, 1)
      weights = jnp.exp((logits - logits.max(1, keepdims=True)) * scale)
      total = weights.sum(1, keepdims=True)
      y_TG = _product(weights.astype(dtype), v_TG[:, at], 1, 0) / total
      _collect(y, at, mask, y_TG)
    _put(ys, image, t, y)
  _pack(y_ref, [ys])


def _backward(q_ref, k_ref, v_ref, dy_ref, dqkv_ref, *scratch, features):
  """A program: the gradient of `_forward`, of queries, keys and values."""
  inputs, outputs = scratch[:4], scratch[4:]
  _unpack((q_ref, k_ref, v_ref, dy_ref), inputs)
  t, dtype, scale = dy_ref.shape[0], dy_ref.dtype, features**-0.5
  for image in range(IMAGES):
    q, k, v, dy = (_tokens(x, image, t) for x in inputs)
    q_TG, k_TG, dy_TG = (x.astype(dtype) for x in (q, k, dy))
    dq, dk, dv = {}, {}, {}
    for at, mask in _heads(q.shape[1], features):
      # Keys by queries: so only the product of dq takes a transposed matrix.
      masked_k = jnp.where(mask, k[:, at], 0).astype(dtype)
      masked_v = jnp.where(mask, v[:, at], 0).astype(dtype)
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
    for out, x in zip(outputs, (dq, dk, dv), strict=True):
      _put(out, image, t, x)
  _pack(dqkv_ref, outputs)


def _unpack(refs, scratch) -> None:
  """Copies [T, IMAGES, G] to [G / LANES, T * IMAGES, LANES] in float32.

  A strided load takes an image's tokens from there: of 32 bits, for of 16 two
  images share a row, and of the lanes of one register.
  """
  for ref, rows in zip(refs, scratch, strict=True):
    for n in range(rows.shape[0]):
      tile = ref[:, :, n * LANES : (n + 1) * LANES].astype(jnp.float32)
      rows[n] = tile.reshape(rows.shape[1:])


def _pack(ref, scratch) -> None:
  """Copies back, to each part of an output: of all groups, or of this one."""
  t, _, width = ref.shape
  for part, rows in enumerate(scratch):
    first, size = part * (width // len(scratch)), rows.shape[0] * LANES
    if width > len(scratch) * size:
      first += pl.program_id(1) * size
    for n in range(rows.shape[0]):
      lanes = pl.ds(pl.multiple_of(first + n * LANES, LANES), LANES)
      tile = rows[n].reshape(t, IMAGES, LANES)
      ref[:, :, lanes] = tile.astype(ref.dtype)


def _tokens(rows, image: int, t: int) -> jax.Array:
  """One image's tokens, [T, G]."""
  of_image = pl.ds(image, t, stride=IMAGES)
  tiles = [rows.at[n][of_image, :] for n in range(rows.shape[0])]
  return jnp.concatenate(tiles, axis=1)


def _put(rows, image: int, t: int, tiles: dict) -> None:
  """Writes one image's tokens, {first lane: [T, LANES]}."""
  for first, tile in tiles.items():
    rows.at[first // LANES][pl.ds(image, t, stride=IMAGES), :] = tile


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
