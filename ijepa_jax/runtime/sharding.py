"""The device mesh, how batches and states are split over it, and checks that
all processes agree.

The mesh has two axes, `('data', 'fsdp')`. A batch is split over both. The state
is split over 'fsdp' alone, by one rule of shapes, so that parameters, EMA
target and Adam's moments are split alike.
"""

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


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays with a copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays split by rows over all devices."""
  return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def state_sharding(abstract_tree, mesh: Mesh, min_size: int = 2**16):
  """Returns a tree of NamedSharding for a tree of shaped leaves, by one rule.

  The largest axis that mesh.shape['fsdp'] divides is split over 'fsdp' (the
  first of equals). A leaf without such an axis is replicated, and so is one of
  fewer than `min_size` elements: gathering it costs more than its memory. (The
  rule of big_vision's sharding.py, on any tree.)
  """
  n = mesh.shape['fsdp']

  def rule(leaf):
    axes = [i for i, size in enumerate(leaf.shape) if size and size % n == 0]
    if n == 1 or not axes or math.prod(leaf.shape) < min_size:
      return replicated(mesh)
    axis = max(axes, key=lambda i: leaf.shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, 'fsdp'))

  return jax.tree.map(rule, abstract_tree)


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
