"""The mesh, the shape rule, and global batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from ijepa_jax.errors import UserError
from ijepa_jax.runtime import sharding


@pytest.mark.parametrize(
  ('sizes', 'shape'),
  [
    ({}, (8, 1)),
    ({'fsdp': 4}, (2, 4)),
    ({'data': 2, 'fsdp': -1}, (2, 4)),
    ({'data': 1, 'fsdp': 8}, (1, 8)),
  ],
)
def test_mesh(cpus, sizes, shape):
  mesh = sharding.make_mesh(**sizes, devices=cpus)
  assert mesh.devices.shape == shape
  assert mesh.axis_names == ('data', 'fsdp')
  assert set(mesh.axis_types) == {AxisType.Auto}
  assert {d.id for d in mesh.devices.flat} == {d.id for d in cpus}


@pytest.mark.parametrize(
  'sizes', [{'fsdp': 3}, {'data': 2, 'fsdp': 2}, {'data': 16}, {'fsdp': 16}]
)
def test_mesh_that_does_not_divide(cpus, sizes):
  with pytest.raises(UserError, match='do not make the 8 devices'):
    sharding.make_mesh(**sizes, devices=cpus)


@pytest.mark.parametrize('sizes', [{'data': -1, 'fsdp': -1}, {'fsdp': 0}])
def test_mesh_of_nonsense(cpus, sizes):
  with pytest.raises(UserError, match='-1 for one of the two'):
    sharding.make_mesh(**sizes, devices=cpus)


@dataclasses.dataclass(frozen=True)
class Gpu:
  id: int
  slice_index: int
  platform: str = 'gpu'
  device_kind: str = 'H100'


def test_mesh_of_several_hosts_with_slices():
  """Hosts of GPUs may call themselves slices; jax.make_mesh refuses them."""
  devices = [Gpu(i, i // 4) for i in range(8)]
  mesh = sharding.make_mesh(fsdp=4, devices=devices)
  assert [[d.id for d in row] for row in mesh.devices] == [
    [0, 1, 2, 3],
    [4, 5, 6, 7],
  ]


def test_state_rule(cpus):
  mesh = sharding.make_mesh(data=2, fsdp=4, devices=cpus)

  def spec(*shape):
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    return sharding.state_sharding({'x': leaf}, mesh, min_size=64)['x'].spec

  assert spec() == PartitionSpec()
  assert spec(63) == PartitionSpec()  # small
  assert spec(64) == PartitionSpec('fsdp')
  assert spec(12, 16, 48) == PartitionSpec(None, None, 'fsdp')  # largest
  assert spec(12, 16, 50) == PartitionSpec(None, 'fsdp')  # largest that divides
  assert spec(16, 16) == PartitionSpec('fsdp')  # first of equals
  assert spec(9, 9) == PartitionSpec()  # nothing divides


@pytest.mark.parametrize(
  ('shape', 'n', 'parts'),
  [
    ((1408, 4224), 128, (1, 128)),
    ((1408, 4224), 256, (2, 128)),  # giant's qkv: 128 x 11, 128 x 33
    ((1408, 1408), 1024, (128, 8)),
    ((14, 18, 50), 4, (1, 2, 2)),
    ((1280, 5120), 96, (1, 32)),  # 3 divides neither
    ((), 8, ()),
  ],
)
def test_parts(shape, n, parts):
  assert sharding.parts_of(shape, n) == parts


def test_state_along_several_axes(cpus):
  """Each device has its own part, and neighbors along 'fsdp' stay neighbors."""
  mesh = sharding.make_mesh(data=1, fsdp=8, devices=cpus)
  x = np.arange(12 * 36.0).reshape(12, 36)
  layers = {'blocks': {'kernel': np.stack([x] * 8)}}
  shardings = sharding.state_sharding({'x': x} | layers, mesh, min_size=64)
  # Layers are not split over devices, though 8 divides their number.
  assert shardings['blocks']['kernel'].shard_shape((8, 12, 36)) == (8, 6, 9)
  assert shardings['x'].shard_shape(x.shape) == (6, 9)
  assert list(shardings['x'].mesh.devices.flat) == list(mesh.devices.flat)
  placed = jax.device_put(x, shardings['x'])
  np.testing.assert_array_equal(placed, x)
  first = {float(s.data[0, 0]) for s in placed.addressable_shards}
  assert len(first) == 8


def test_what_is_not_split_is_said(cpus):
  mesh = sharding.make_mesh(data=1, fsdp=8, devices=cpus)
  shapes = {'fits': (512, 256), 'odd': (258, 257), 'small': (9,)}

  def describe(mesh):
    tree = {k: jax.ShapeDtypeStruct(x, jnp.float32) for k, x in shapes.items()}
    tree = sharding.with_shardings(tree, mesh)
    return sharding.describe_state(tree, mesh)

  words = describe(mesh)
  # 524288 + 265224 + 36 bytes, of which 65536 + 132612 + 36.
  assert words.startswith('The state takes 0.75 MiB, 0.19 MiB a device; 1/8')
  assert 'the small arrays, 0.00 MiB.' in words
  assert (
    "8 does not divide 1 others, 0.13 MiB a device, the largest ['odd']"
    in (words)
  )
  assert words.endswith("['odd'] in 2 parts.")
  del shapes['odd']
  assert 'divide' not in describe(mesh)
  alone = sharding.make_mesh(devices=cpus)
  assert describe(alone) == 'The state takes 0.50 MiB on every device.'


def test_state_is_spread(cpus):
  """Moments lie like their parameters, and a device holds its share only."""
  mesh = sharding.make_mesh(fsdp=8, devices=cpus)
  tree = {
    'w': jnp.ones((512, 256)),
    'mu': jnp.ones((512, 256)),
    'b': jnp.ones(8),
  }
  shardings = sharding.state_sharding(tree, mesh)
  assert shardings['w'] == shardings['mu']
  placed = jax.device_put(tree, shardings)
  assert placed['w'].addressable_shards[0].data.shape == (64, 256)
  assert placed['b'].addressable_shards[0].data.shape == (8,)
  alone = sharding.make_mesh(devices=cpus)
  assert sharding.state_sharding(tree, alone)['w'].is_fully_replicated


@pytest.mark.parametrize('fsdp', [1, 4])
def test_global_batch(cpus, fsdp):
  mesh = sharding.make_mesh(fsdp=fsdp, devices=cpus)
  batch = {
    'image': np.arange(16 * 12, dtype=np.uint8).reshape(16, 2, 2, 3),
    'context': np.arange(16, dtype=np.int32)[:, None],
  }
  out = sharding.to_global(batch, mesh)
  for name, x in out.items():
    assert x.dtype == batch[name].dtype
    assert x.sharding == sharding.batch_sharding(mesh)
    np.testing.assert_array_equal(x, batch[name])
  # Row order follows the mesh: device i holds rows 2i and 2i + 1.
  rows = {
    s.device: s.data[:, 0].tolist() for s in out['context'].addressable_shards
  }
  assert [rows[d] for d in mesh.devices.flat] == [
    [2 * i, 2 * i + 1] for i in range(8)
  ]


def test_machines_with_other_images_are_refused(monkeypatch):
  """Local copies of a data set may differ; one process needs no comparison."""
  sharding.check_alike('a', 5)
  assert sharding.of_first('name') == 'name'

  def gathered(mine, others):
    monkeypatch.setattr(jax, 'process_count', lambda: 1 + len(others))
    monkeypatch.setattr(
      sharding.multihost_utils,
      'process_allgather',
      lambda x: np.stack([x, *(np.int32(o(x)) for o in others)]),
    )
    sharding.check_alike(*mine)

  gathered(('a', 5), [lambda x: x])
  for other in (lambda x: x + np.int32([0, 1]), lambda x: x + np.int32([1, 0])):
    with pytest.raises(UserError, match='see other images'):
      gathered(('a', 5), [lambda x: x, other])
