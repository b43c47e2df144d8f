"""The text of compiled programs: what runs how often, and what is sent."""

import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ijepa_jax.plan import chips
from ijepa_jax.plan.program import collectives, cost, hlo
from ijepa_jax.runtime import sharding
from tests.close import close

HERE = pathlib.Path(__file__).parent

# A loop of 3 around a loop of 5, which tell their lengths in two ways.
LOOPS = (HERE / 'loops.hlo').read_text()


def test_loops_run_as_often_as_they_say():
  module = hlo.parse(LOOPS)
  assert module.entry == 'main.4_spmd' and module.chips == 4
  assert module.uncounted_loops() == 0
  # A fusion's own cycles, not those of what is in it; of branches the dearest.
  cycles = 100 + 3 * 5 * (10 + 1) + 20 + 7
  v5e = chips.CHIPS['v5e']
  close(cost.step_seconds(module, v5e, 4), cycles / 1.5e9, 1e-12)
  of_each = cost.seconds_by_instruction(module, v5e)
  seconds = {x.name: seconds for x, seconds in of_each.items()}
  close(seconds['y'], 3 * 5 * 10 / 1.5e9, 1e-12)
  assert cost.step_seconds(module, None, 4) is None  # of a CPU
  unknown = hlo.parse(LOOPS.replace('constant(5)', 'get-tuple-element(%c)'))
  assert unknown.uncounted_loops() == 1
  cycles = 100 + 3 * (10 + 1) + 20 + 7
  close(cost.step_seconds(unknown, v5e, 4), cycles / 1.5e9, 1e-12)


@pytest.mark.parametrize(
  ('line', 'opcode', 'count', 'operands'),
  [
    ('%a = f32[] constant(1)', 'constant', 4, None),
    ('%a.1 = bf16[2,3]{1,0:T(8,128)(2,1)} dot(%x, %y.2)', 'dot', 12, 'x y.2'),
    ('a = pred[8]{0} compare(f32[8]{0} x, f32[8]{0} %y)', 'compare', 8, 'x y'),
    ('%a = (s4[8]{0}, u8[3,1]{1,0}) tuple(%x, %y)', 'tuple', 7, 'x y'),
    ('%a = (f8e4m3fn[8], /*index=1*/c64[2], token[]) f(%x)', 'f', 24, 'x'),
    ('%a = f32[4]{0} g((f32[2]{0}, s32[]) %x), calls=%h', 'g', 16, 'f32 x'),
  ],
)
def test_instructions(line, opcode, count, operands):
  text = f'HloModule m\n\nENTRY %e () -> f32[] {{\n  ROOT {line}\n}}\n'
  (x,) = hlo.parse(text).computations['e'].values()
  assert (x.opcode, x.bytes, x.root) == (opcode, count, True)
  if operands:
    assert ' '.join(x.operands) == operands


def test_other_text_is_refused():
  with pytest.raises(ValueError, match='ENTRY'):
    hlo.parse('module @jit_step {}')


# What a chip sends of an operand of 1024 float32, 4096 bytes.
@pytest.mark.parametrize(
  ('line', 'kind', 'count'),
  [
    ('all-gather(%a), replica_groups={{0,1,2,3},{4,5,6,7}}', None, 3 * 4096),
    (
      'all-gather(%a), replica_groups=[1,8]<=[8], dimensions={0}',
      None,
      7 * 4096,
    ),
    ('reduce-scatter(%a), replica_groups=[2,4]<=[8], to_apply=%s', None, 3072),
    ('all-reduce(%a), replica_groups={}, to_apply=%s', None, 2 * 7 / 8 * 4096),
    ('all-reduce(%a, %a), replica_groups=[4,2]<=[2,4]T(1,0)', None, 8192),
    ('all-to-all(%a), replica_groups={{0,1,2,3}}', None, 3072),
    ('collective-permute(%a), source_target_pairs={{0,1},{1,0}}', None, 4096),
    ('all-gather-start(%a), replica_groups=[1,8]<=[8]', 'all-gather', 7 * 4096),
    (
      'send(%a, %t), is_host_transfer=true, '
      'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale"}',
      'between-slices',
      4096,
    ),
    ('send(%a, %t), is_host_transfer=true', '', 0),
    ('all-gather-done(%a)', '', 0),
    ('add(%a, %a)', '', 0),
  ],
)
def test_bytes_that_are_sent(line, kind, count):
  text = f"""\
HloModule m, num_partitions=8

%s (x: f32[], y: f32[]) -> f32[] {{
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %z = f32[] add(%x, %y)
}}

ENTRY %e (a: f32[1024]) -> f32[1024] {{
  %a = f32[1024]{{0}} parameter(0)
  ROOT %r = f32[1024]{{0}} {line}
}}
"""
  kind = line.partition('(')[0] if kind is None else kind
  counts = collectives.bytes_by_kind(hlo.parse(text))
  assert counts == ({kind: count} if kind else {})


# As libtpu writes them, of two blocks: their gradients have one channel.
FUSED = """\
HloModule m, num_partitions=4

%start (a: f32[1024]) -> f32[4096] {
  %a = f32[1024]{0} parameter(0)
  %g = f32[4096]{0} all-gather(%a), PART
  ROOT %c = f32[4096]{0} custom-call(%g), TARGET="AsyncCollectiveStart"
}

%goes_on (b: f32[1024]) -> f32[4096] {
  %b = f32[1024]{0} parameter(0)
  ROOT %g = f32[4096]{0} all-gather(%b), PART
}

%done (b: f32[1024]) -> f32[4096] {
  %b = f32[1024]{0} parameter(0)
  %g = f32[4096]{0} all-gather(%b), PART
  ROOT %c = f32[4096]{0} custom-call(%g), TARGET="AsyncCollectiveDone"
}

%all-reduce-scatter (c: f32[1024]) -> f32[256] {
  %c = f32[1024]{0} parameter(0)
  %i = s32[] constant(0)
  %sum = f32[1024]{0} all-reduce(%c), channel_id=8, replica_groups={{0,1,2,3}}
  ROOT %part = f32[256]{0} dynamic-slice(%sum, %i), dynamic_slice_sizes={256}
}

%all-reduce-scatter.1 (c: f32[1024]) -> f32[256] {
  %c = f32[1024]{0} parameter(0)
  %i = s32[] constant(0)
  %sum = f32[1024]{0} all-reduce(%c), channel_id=8, replica_groups={{0,1,2,3}}
  ROOT %part = f32[256]{0} dynamic-slice(%sum, %i), dynamic_slice_sizes={256}
}

ENTRY %e (x: f32[1024]) -> f32[256] {
  %x = f32[1024]{0} parameter(0)
  %s = f32[4096]{0} fusion(%x), kind=kCustom, calls=%start
  %p = f32[4096]{0} fusion(%x), kind=kOutput, calls=%goes_on
  %d = f32[4096]{0} fusion(%x), kind=kCustom, calls=%done
  %r = f32[256]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
  ROOT %t = f32[256]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
""".replace('TARGET', 'custom_call_target').replace(
  'PART',
  'channel_id=7, replica_groups=[1,4]<=[4], '
  'backend_config={"async_collective_fusion_config":{}}',
)


def test_collectives_in_fusions_of_tpus():
  """One that is cut into parts is one; a sum that is sliced is scattered."""
  module, v5e = hlo.parse(FUSED), chips.CHIPS['v5e']
  assert collectives.bytes_by_kind(module) == {
    'all-gather': 3 * 4096,
    'reduce-scatter': 2 * 3 / 4 * 4096,
  }
  seconds = collectives.seconds(module, v5e, 4)
  close(seconds[True], 3 * 4096 / v5e.link, 1e-9)  # beside what is computed
  close(seconds[False], 2 * 3 / 4 * 4096 / v5e.link, 1e-9)


def test_groups_of_chips():
  def group(text):
    x = hlo.Instruction('a', 'all-reduce', (), (), '', text, '', False)
    return collectives.group(x, 8)

  assert group('replica_groups=[4,2]<=[2,4]T(1,0)') == (0, 4)
  assert group('replica_groups=[2,4]<=[8]') == (0, 1, 2, 3)
  assert group('replica_groups={{0,2},{1,3}}') == (0, 2)
  mesh = "replica_groups=mesh['a'=2,'b'=4,'c'=1] "
  assert group(mesh + "{'b','c'}") == (0, 1, 2, 3)
  assert group(mesh + "{'a'}") == (0, 4)
  assert group(mesh + "{'b':(1)2}") == (0, 2)
  assert group(mesh + "{'b':(2)2}") == (0, 1)
  mesh = "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) "
  assert group(mesh + "{'b'}, dimensions={1}") == (0, 2, 4, 6)
  assert group(mesh + "{'a'}") == (0, 1)
  mesh = "replica_groups=mesh['a'=2,'b'=2], device_ids=(3,1,2,0) "
  assert group(mesh + "{'b'}") == (3, 1)
  with pytest.raises(ValueError, match='not understood'):
    group('replica_groups=<new>')
  assert group('channel_id=1') == tuple(range(8))
  assert collectives.shared_host((0, 1, 2, 3), 4) == 0  # all on one
  assert collectives.shared_host(tuple(range(8)), 4) == 4
  assert collectives.shared_host((0, 4), 4) == 1


def test_what_fsdp_sends(cpus):
  """Weights of four layers over eight devices: 7/8 of each, each time."""
  mesh = sharding.make_mesh(data=1, fsdp=8, devices=cpus)
  layers, width = 4, 64
  split = NamedSharding(mesh, PartitionSpec(None, None, 'fsdp'))
  w = jax.ShapeDtypeStruct((layers, width, width), jnp.float32, sharding=split)
  x = jax.ShapeDtypeStruct(
    (16, width), jnp.float32, sharding=sharding.batch_sharding(mesh)
  )

  @jax.jit
  def forward(w, x):
    def layer(x, w):
      w = jax.lax.with_sharding_constraint(w, sharding.replicated(mesh))
      return jnp.tanh(x @ w), None

    return jax.lax.scan(layer, x, w)[0]

  module = hlo.parse(forward.lower(w, x).compile().as_text())
  assert module.chips == 8
  assert collectives.bytes_by_kind(module) == {
    'all-gather': layers * width * width * 4 * 7 / 8
  }

  mean = jax.jit(
    jax.grad(lambda w, x: forward(w, x).mean()), out_shardings=split
  )
  counts = collectives.bytes_by_kind(
    hlo.parse(mean.lower(w, x).compile().as_text())
  )
  # Gradients are scattered, or summed and cut, which sends twice as much.
  gathered = counts.pop('all-gather')
  assert gathered >= layers * width * width * 4 * 7 / 8
  assert sum(counts.values()) >= layers * width * width * 4 * 7 / 8


def test_trips_of_a_real_loop(cpus):
  @jax.jit
  def loops(x):
    def inner(x, _):
      return jnp.tanh(x @ x), None

    def outer(x, _):
      return jax.lax.scan(inner, x, None, length=7)[0], None

    return jax.lax.scan(outer, x, None, length=11)[0]

  here = jax.sharding.SingleDeviceSharding(cpus[0])
  x = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=here)
  module = hlo.parse(loops.lower(x).compile().as_text())
  assert module.uncounted_loops() == 0

  def products(computation):
    """In it, and in its fusions."""
    called = [
      y
      for x in computation.values()
      if x.opcode == 'fusion'
      for y in module.computations[x.called[0]].values()
    ]
    names = [x.opcode for x in (*computation.values(), *called)]
    return {'products': names.count('dot') + names.count('custom-call')}

  assert module.total(products)['products'] == 77


# A kernel that reads one layer of 4, a product, and a sum over two hosts.
KERNELS = (HERE / 'kernels.hlo').read_text()


def test_roofline():
  h100, module = chips.CHIPS['h100'], hlo.parse(KERNELS)
  layer, rows = 256 * 256 * 2, 4096 * 256 * 2

  def moved(count):
    return count / h100.bandwidth

  product = 2 * 4096 * 256 * 256 / h100.flops
  assert product < moved(2 * rows + layer)  # bound by its bytes
  expected = (
    moved(2 * layer + 4)  # one layer, and its number
    + moved(2 * rows + layer)
    + 2 * 15 / 16 * layer / min(h100.link, 8 * h100.network)
    + moved(2 * layer + 4)  # in place: one layer is written
    + moved(2 * rows)
  )
  close(cost.step_seconds(module, h100, 8), expected, 1e-9)
  # On one host the links are faster, and a larger product takes its peak.
  alone = cost.step_seconds(module, h100, 16)
  close(
    cost.step_seconds(module, h100, 8) - alone,
    2 * 15 / 16 * layer * (1 / 400e9 - 1 / 450e9),
    1e-6,
  )
