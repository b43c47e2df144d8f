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
IMAGES = 8  # of a program at most; side by side in a register's 8 rows
ROOM = 8 * 2**20  # bytes, for the blocks of a program where a group is wide


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
  # Tokens before images, as TPUs' compiler lays them out by itself: 8 divides
  # most numbers of images, and few of tokens. Not so where a group is wide, as
  # of heads of 80: eight images of it find no room on v4.
  tokens_first = group == LANES
  if tokens_first:
    # A copy of each input and of each part of the output, see `_unpack`.
    images, copies, logits = IMAGES, len(inputs) + width // d, 0
    row += 4 * LANES * copies
  else:
    images, copies, logits = min(max(ROOM // (t * row), 1), IMAGES), 0, t * t
  grid = pl.cdiv(b, images), d // group

  def ordered(image, token, feature):
    first = (token, image) if tokens_first else (image, token)
    return *first, feature

  def swapped(x):
    return jnp.swapaxes(x, 0, 1) if tokens_first else x

  def block(width, group_of):
    return pl.BlockSpec(
      ordered(images, t, width), lambda i, g: ordered(i, 0, group_of(g))
    )

  y = pl.pallas_call(
    functools.partial(kernel, features=d // heads),
    name=kernel.__name__.strip('_') + '_attention',
    metadata={'programs': str(math.prod(grid))},  # for the planner
    out_shape=jax.ShapeDtypeStruct(ordered(b, t, width), qkv_BTD.dtype),
    grid=grid,
    in_specs=[
      block(group, lambda g, first=first: first + g)
      for first in first_groups[: len(inputs)]
    ],
    out_specs=block(out_width, lambda g: 0 if cotangent else g),
    scratch_shapes=[pltpu.VMEM((t * images, LANES), jnp.float32)] * copies,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary'),
      # A limit: what a program computes is there besides, as much again as its
      # blocks, and of few images 32 bytes for each of the logits of some heads.
      # 16 MiB are what every TPU has.
      vmem_limit_bytes=2 * max(images * t * row, ROOM) + 32 * logits,
    ),
    interpret=interpret,
  )(*map(swapped, inputs))
  return swapped(y)


def _forward(q_ref, k_ref, v_ref, y_ref, *copies, features):
  """A program: softmax(q k^T / sqrt(features)) v of each image and head."""
  group, dtype, scale = q_ref.shape[2], y_ref.dtype, features**-0.5
  inputs = _unpack((q_ref, k_ref, v_ref), copies)
  outputs = copies[3:]
  for image in range(q_ref.shape[1 if copies else 0]):
    q, k, v = (_tokens(x, image) for x in inputs)
    k_TG, v_TG = k.astype(dtype), v.astype(dtype)
    y = {}
    for at, mask in _heads(group, features):
      q_TG = jnp.where(mask, q[:, at], 0).astype(dtype)
      logits = _product(q_TG, k_TG[:, at], 1, 1)
      weights = jnp.exp((logits - logits.max(1, keepdims=True)) * scale)
      total = weights.sum(1, keepdims=True)
      y_TG = _product(weights.astype(dtype), v_TG[:, at], 1, 0) / total
      _collect(y, at, mask, y_TG)
    _put(y_ref, outputs, image, group, [y])
  _pack(y_ref, outputs, group)


def _backward(q_ref, k_ref, v_ref, dy_ref, dqkv_ref, *copies, features):
  """A program: the gradient of `_forward`, of queries, keys and values."""
  group, dtype, scale = q_ref.shape[2], dy_ref.dtype, features**-0.5
  inputs = _unpack((q_ref, k_ref, v_ref, dy_ref), copies)
  outputs = copies[4:]
  for image in range(q_ref.shape[1 if copies else 0]):
    q, k, v, dy = (_tokens(x, image) for x in inputs)
    q_TG, k_TG, dy_TG = (x.astype(dtype) for x in (q, k, dy))
    dq, dk, dv = {}, {}, {}
    for at, mask in _heads(group, features):
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
    _put(dqkv_ref, outputs, image, group, [dq, dk, dv])
  _pack(dqkv_ref, outputs, group)


def _unpack(refs, copies):
  """What `_tokens` reads: the inputs, or their copies where there are such.

  Of tokens before images, [T, IMAGES, LANES], copies are [T * IMAGES, LANES] in
  float32: a strided load takes an image's tokens from there, of 32 bits alone,
  for of 16 two images share a row.
  """
  if not copies:
    return refs
  copies = copies[: len(refs)]
  for ref, copy in zip(refs, copies, strict=True):
    copy[...] = ref[...].astype(jnp.float32).reshape(copy.shape)
  return copies


def _tokens(ref, image: int) -> jax.Array:
  """One image's tokens, [T, G]; of a copy in float32."""
  return ref[image] if len(ref.shape) == 3 else ref[_rows(ref, image), :]


def _rows(copy, image: int):
  """The rows of one image in a copy."""
  return pl.ds(image, copy.shape[0] // IMAGES, stride=IMAGES)


def _put(ref, copies, image: int, group: int, parts: list[dict]) -> None:
  """Writes one image's tokens of each part, {first lane: [T, LANES]}."""
  for part, tiles in enumerate(parts):
    if copies:
      copies[part][_rows(copies[part], image), :] = tiles[0]
      continue
    for first, tile in tiles.items():
      lanes = _lanes(ref, part, len(parts), group, first)
      ref[image, :, lanes] = tile.astype(ref.dtype)


def _pack(ref, copies, group: int) -> None:
  """Writes the copies of an output's parts back to it, if there are any."""
  for part, copy in enumerate(copies):
    tile = copy[...].reshape(*ref.shape[:2], LANES)
    ref[:, :, _lanes(ref, part, len(copies), group)] = tile.astype(ref.dtype)


def _lanes(ref, part: int, parts: int, group: int, first: int = 0):
  """A register of this group, in an output of all groups or of this one."""
  start = part * (ref.shape[2] // parts) + first
  if ref.shape[2] > parts * group:
    start += pl.program_id(1) * group
  return pl.ds(pl.multiple_of(start, LANES), LANES)


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
