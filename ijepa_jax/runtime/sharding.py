"""The device mesh, how batches and states are split over it, and checks that
all processes agree.

The mesh has two axes, `('data', 'fsdp')`. A batch is split over both. The state
is split over 'fsdp' alone, by one rule of shapes, so that parameters, EMA
target and Adam's moments are split alike. Each step gathers the weights of one
layer after the other and computes with them on its rows of the batch (ZeRO-3 of
Rajbhandari et al., 2020, known as FSDP).
"""

import contextlib
import hashlib
import math

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ijepa_jax.errors import UserError


def make_mesh(*, data: int = -1, fsdp: int = 1, devices=None) -> Mesh:
  """Makes a mesh with axes ('data', 'fsdp'), both AxisType.Auto.

  Neighbors along 'fsdp', which gathers parameters in every step, are close in
  the network. Slices of a multi-slice TPU are split over 'data'.

  Args:
    data, fsdp: devices along each axis; -1, for one of them: all that remain.
    devices: by default `jax.devices()`.

  Raises:
    UserError: the devices don't divide like that.
  """
  devices = jax.devices() if devices is None else list(devices)
  n, axes = len(devices), f'mesh.data = {data} and mesh.fsdp = {fsdp}'
  sizes = [size for size in (data, fsdp) if size != -1]
  if not sizes or min(sizes) < 1:
    raise UserError(f'{axes}: take 1 or more, or -1 for one of the two.')
  known = math.prod(sizes)
  if n % known or (len(sizes) == 2 and known != n):
    raise UserError(
      f'{axes} do not make the {n} devices: take divisors of {n} whose '
      'product it is, or -1 for one of the two.'
    )
  shape = tuple(n // known if size == -1 else size for size in (data, fsdp))
  # Not jax.make_mesh: it refuses several slices, which GPU hosts may count as.
  slices = len({getattr(d, 'slice_index', 0) for d in devices})
  if devices[0].platform != 'tpu' or slices == 1:
    grid = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
  elif shape[0] % slices:
    raise UserError(
      f'mesh.fsdp = {shape[1]} leaves {shape[0]} along data, which does not '
      f'divide over the {slices} TPU slices: take a smaller mesh.fsdp.'
    )
  else:
    grid = mesh_utils.create_hybrid_device_mesh(
      (shape[0] // slices, shape[1]),
      (slices, 1),
      devices,
      allow_split_physical_axes=True,
    )
  return Mesh(grid, ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)


def gathering(mesh: Mesh):
  """A context in which programs of several devices are compiled.

  In it models/transformer.py has each layer's weights gathered before they are
  used, where the state is split, and models/pallas_attention.py has each device
  compute the attention of its rows. Of one device it does nothing.
  """
  if mesh.size == 1:
    return contextlib.nullcontext()
  return jax.set_mesh(mesh)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays with a copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays split by rows over all devices."""
  return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def parts_of(shape, n: int) -> tuple[int, ...]:
  """In how many parts each axis of an array is split over `n` devices.

  The largest axis that n divides is split (the first of equals). Where there
  is none, the axes, the largest first, take what divides them of the rest of
  n: 1408 x 4224 over 256 is split as 2 x 128. The parts are as many as can be
  of one size, the greatest common divisor of n and the number of elements.
  """
  parts = [1] * len(shape)
  for i in sorted(
    range(len(shape)), key=lambda i: (shape[i] % n > 0, -shape[i])
  ):
    parts[i] = math.gcd(shape[i], n)
    n //= parts[i]
  return tuple(parts)


def state_sharding(abstract_tree, mesh: Mesh, min_size: int = 2**16):
  """Returns a tree of NamedSharding for a tree of shaped leaves, by one rule.

  `parts_of` splits a leaf over 'fsdp'. A leaf of fewer than `min_size` elements
  is replicated: gathering it costs more than its memory. So is the first axis
  of what is under 'blocks': a step takes one layer after the other, and would
  gather all of them each time. (Began as big_vision's sharding.py.)

  A leaf with several split axes is on a mesh of the same devices in the same
  order, which has an axis for each prime factor of 'fsdp': a PartitionSpec
  takes an axis of a mesh as a whole. A program takes leaves of both meshes.
  """
  n = mesh.shape['fsdp']
  factors = {f'fsdp{i}': p for i, p in enumerate(_prime_factors(n))}
  factored = Mesh(
    mesh.devices.reshape(-1, *factors.values()),
    ('data', *factors),
    axis_types=(AxisType.Auto,) * (1 + len(factors)),
  )

  def rule(path, leaf):
    parts = state_parts(path, leaf.shape, n, min_size)
    if math.prod(parts) == 1:
      return replicated(mesh)
    if n in parts:
      return NamedSharding(
        mesh, PartitionSpec(*[None] * parts.index(n), 'fsdp')
      )
    free = dict(factors)
    spec = [_take(free, count) or None for count in parts]
    return NamedSharding(factored, PartitionSpec(*spec))

  return jax.tree.map_with_path(rule, abstract_tree)


def state_parts(path, shape, n: int, min_size: int = 2**16) -> tuple[int, ...]:
  """In how many parts `state_sharding` splits each axis of a leaf.

  Args:
    path: of the leaf, of jax.tree_util.
    shape, n, min_size: of the leaf, devices along 'fsdp', see there.
  """
  if math.prod(shape) < min_size:
    return (1,) * len(shape)
  if any(getattr(key, 'key', None) == 'blocks' for key in path):
    return 1, *parts_of(shape[1:], n)
  return parts_of(shape, n)


def describe_state(abstract_state, mesh: Mesh) -> str:
  """Says what a device holds of a state, and what is in fewer than n parts.

  Args:
    abstract_state: tree of leaves with shardings, see `with_shardings`.
  """
  n, total, held, small, large = mesh.shape['fsdp'], 0, 0, 0, {}
  for path, x in jax.tree_util.tree_leaves_with_path(abstract_state):
    size = x.size * x.dtype.itemsize
    part = math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    total, held = total + size, held + part
    if part == size:
      small += part
    elif part * n > size:
      large[f'{jax.tree_util.keystr(path)} in {size // part}'] = part
  text = f'The state takes {_amount(total)}'
  if n == 1:
    return f'{text} on every device.'
  text += f', {_amount(held)} a device; 1/{n} of it is {_amount(total / n)}.'
  if small:
    text += f' On every device are the small arrays, {_amount(small)}.'
  if large:
    amount, largest = sum(large.values()), max(large, key=large.get)
    text += (
      f' {n} does not divide {len(large)} others, {_amount(amount)} a device, '
      f'the largest {largest} parts.'
    )
  return text


def _amount(count: float) -> str:
  unit, name = (2**30, 'GiB') if count >= 2**27 else (2**20, 'MiB')
  return f'{count / unit:.2f} {name}'


def _prime_factors(n: int) -> list[int]:
  factors, p = [], 2
  while n > 1:
    while n % p == 0:
      factors.append(p)
      n //= p
    p += 1
  return factors


def _take(free: dict[str, int], count: int) -> tuple[str, ...]:
  """Takes out of `free`, primes by name, those whose product `count` is."""
  names = []
  for name, prime in list(free.items()):
    if count % prime == 0:
      count //= free.pop(name)
      names.append(name)
  return tuple(names)


def with_shardings(shapes, mesh: Mesh):
  """Returns shaped leaves as jax.ShapeDtypeStruct with `state_sharding`."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    state_sharding(shapes, mesh),
  )


def to_global(batch, mesh: Mesh):
  """Makes global arrays [B, ...] of this process's rows [b, ...].

  Args:
    batch: tree of numpy arrays of b rows, B = b * jax.process_count(), the
      same b on every process; B divides over the devices.
  """
  sharding = batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    batch,
  )


def shard_rows(x, mesh, dtype, fill=0) -> jax.Array:
  """Splits a host array [N, ...] by rows over all devices.

  Rows of `fill` pad it to a multiple of the devices. Each process reads the
  rows of its own devices only.
  """
  n = -(-len(x) // mesh.size) * mesh.size

  def rows(index):
    start, stop, _ = index[0].indices(n)
    part = np.asarray(x[start:stop], dtype)
    pad = [(0, stop - start - len(part))] + [(0, 0)] * (part.ndim - 1)
    return np.pad(part, pad, constant_values=fill)

  return jax.make_array_from_callback(
    (n, *np.shape(x)[1:]), batch_sharding(mesh), rows
  )


def of_first(text: str) -> str:
  """Returns process 0's text; the texts of all processes are of one length."""
  if jax.process_count() == 1:
    return text
  codes = np.frombuffer(text.encode(), np.uint8)
  return multihost_utils.broadcast_one_to_all(codes).tobytes().decode()


def check_alike(listing: str, count: int) -> None:
  """Refuses processes that see other images than process 0.

  Local copies of a data set may differ: each process would train on a stream of
  its own.

  Args:
    listing: of the images, see data/sources.
    count: of the images, for the sentence.

  Raises:
    UserError: on every process, with the counts of all.
  """
  if jax.process_count() == 1:
    return
  digest = int(hashlib.sha256(listing.encode()).hexdigest()[:7], 16)
  pairs = multihost_utils.process_allgather(np.int32([digest, count]))
  if (pairs != pairs[0]).any():
    raise UserError(
      f'The processes see other images, {pairs[:, 1].tolist()} of them: bring '
      'the same files to every machine, or take a disk that all see.'
    )
