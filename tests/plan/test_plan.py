"""What is planned is what the training compiles, and what arithmetic says."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from configs import tiny, vit_l16
from configs.evals import finetune_full
from ijepa_jax import recipes
from ijepa_jax.errors import UserError
from ijepa_jax.plan import (
  chips,
  evaluations,
  flops,
  plan,
  search,
  table,
  topologies,
)
from ijepa_jax.plan.program import compiled, parts
from ijepa_jax.train import compile
from ijepa_jax.train.run import make_run
from tests.close import close

ROOT = pathlib.Path(__file__).parents[2]


def wide(fsdp):
  """`tiny` with one block, wide enough that its weights are split."""
  c = tiny.get_config()
  c.model.width, c.model.depth, c.model.mlp_dim = 256, 1, 256
  c.batch_size, c.mesh.fsdp = 16, fsdp
  return c


@pytest.fixture(scope='module')
def planned(cpus):
  """The plan of a split state, and the config."""
  c = wide(8)
  run = make_run(c, cpus, open_images=False)
  return plan.make_plan(run, per_host=8), c


def test_memory_is_that_of_the_training(planned, cpus):
  result, c = planned
  run = make_run(c, cpus)  # as train/pretrain.py does
  abstract, _ = compile.abstract_state(run)
  (step,) = compile.compile_steps(run, abstract).values()
  m = step.memory_analysis()
  assert result.temporary_bytes_per_chip == m.temp_size_in_bytes
  assert result.peak_bytes_per_chip == (
    m.argument_size_in_bytes
    + m.output_size_in_bytes
    + m.temp_size_in_bytes
    - m.alias_size_in_bytes
  )
  assert result.fits and result.memory_per_chip > result.peak_bytes_per_chip
  assert result.estimated_step_seconds is result.mfu is None  # of a CPU


def test_state_is_arithmetic(planned, cpus):
  """Parameters, moments and target in float32; an eighth of what is large."""
  result, c = planned
  run = make_run(c, cpus, open_images=False)
  shapes = jax.eval_shape(
    lambda key: run.method.init_params(key, run.image_shape), jax.random.key(0)
  )
  counts = {
    part: sum(
      x.size / (8 if x.size >= 2**16 else 1) for x in jax.tree.leaves(tree)
    )
    for part, tree in shapes.items()
  }
  # Both parts with two moments, the target, and counts of steps.
  expected = 4 * (3 * sum(counts.values()) + counts['encoder'])
  assert 0 <= result.state_bytes_per_chip - expected <= 32
  whole, _ = compile.abstract_state(make_run(wide(1), cpus, open_images=False))
  assert plan.state_bytes(whole) == sum(
    x.size * x.dtype.itemsize for x in jax.tree.leaves(whole)
  )
  c = wide(1)
  c.optim.mu_dtype = 'bfloat16'  # two bytes less of each trained parameter
  less, _ = compile.abstract_state(make_run(c, cpus, open_images=False))
  count = sum(x.size for x in jax.tree.leaves(shapes))
  assert plan.state_bytes(whole) - plan.state_bytes(less) == 2 * count


def test_what_is_printed(planned):
  result, _ = planned
  assert list(result.as_json()) == [*plan.KEYS, 'parts']
  json.dumps(result.as_json())
  assert result.mesh == {'data': 1, 'fsdp': 8} and result.chips == 8
  assert result.images_per_chip == 2
  assert result.collectives['all-gather'] > 0
  text = table.table(result, 'a recipe on chips')
  assert 'no estimate' in text and ': fits' in text
  assert 'the costliest of 1' in text


def transformer(tokens, width, depth, mlp_dim):
  weights = 4 * width**2 + 2 * width * mlp_dim
  return depth * (2 * tokens * weights + 4 * tokens**2 * width)


def test_operations_are_the_model_s(cpus):
  """Target once, context and predictor three times; none for remat.

  The predictor's last block leaves out context tokens after their keys.
  """
  c = vit_l16.get_config()
  c.model.size, c.model.predictor_depth, c.model.remat = 'base', 6, 'full'
  run = make_run(c, cpus, open_images=False)
  batch = run.method.batch_shapes(c.batch_size, run.image_shape)[0]
  context, (targets, k) = batch['context'].shape[-1], batch['targets'].shape[1:]

  def encoder(tokens):
    return 2 * tokens * 768 * 768 + transformer(tokens, 768, 12, 3072)

  project = 2 * 384 * 768
  unused = 2 * context * (384 * 384 + 2 * 384 * 1536)
  unused += 4 * context * (context + k) * 384
  predictor = context * project + targets * (
    transformer(context + k, 384, 6, 1536) - unused + k * project
  )
  expected = encoder(196) + 3 * (encoder(context) + predictor)
  count = flops.model_flops(run, batch)
  close(count, c.batch_size * expected, 0.01)
  # A kernel of cuDNN is no product, but does the same ones.
  method = run.method
  fused = {
    name: getattr(method, name).clone(attention='cudnn')
    for name in ('encoder', 'predictor')
  }
  method = dataclasses.replace(method, **fused)
  run = dataclasses.replace(run, method=method)
  assert flops.model_flops(run, batch) == count


def test_operations_of_fine_tuning(cpus):
  """A forward pass, and two for its gradient; of images alone none."""
  recipe, c = vit_l16.get_config(), finetune_full.get_config()
  c.finetune.batch_size = 8
  run = evaluations.make_run(c, recipe, cpus)
  assert run.total_steps == 50 * (1_281_167 // 8)
  ((_, batch),) = plan.shapes_as_drawn(run)
  embed = 2 * 196 * 768 * 1024
  head = 2 * 1024 * 1000
  image = 3 * (transformer(196, 1024, 24, 4096) + head) + 2 * embed
  close(flops.model_flops(run, batch), 8 * image, 0.001)
  c.task = 'cifar10'
  with pytest.raises(UserError, match='imagenet and imagenet_1pct'):
    evaluations.make_run(c, recipe, cpus)


@pytest.mark.parametrize(
  ('job', 'changes', 'batch', 'steps'),
  [
    ('linear', {}, 16_384, 50 * (1_281_167 // 16_384)),
    ('linear', {'linear.augment': False}, 256, -(-1_331_167 // 256)),
    ('attentive', {}, 1024, 20 * (1_281_167 // 1024)),
    ('knn', {'batch_size': 100}, 104, -(-1_331_167 // 104)),
    ('logistic', {}, 256, -(-62_811 // 256)),
  ],
)
def test_a_frozen_encoders_jobs(cpus, job, changes, batch, steps):
  """A forward pass of each image; the heads come on top."""
  recipe, config = tiny.get_config(), recipes.load(f'evals/{job}')
  config.update_from_flattened_dict(changes)
  result = evaluations.make_plan(config, recipe, cpus[:8], 8)
  assert (result.batch_size, result.total_steps) == (batch, steps)
  image = 3 * transformer(36, 64, 1, 64) + 2 * 36 * 192 * 64
  assert result.flops > 0.99 * batch * image
  if batch < 1000:
    close(result.flops, batch * image, 0.01)
  assert result.fits and result.peak_bytes_per_chip > batch / 8 * 48 * 48 * 3


@pytest.mark.parametrize('method', ['mae', 'vicreg'])
def test_operations_of_every_method(cpus, method):
  c = tiny.get_config()
  c.method, c.batch_size = method, 8
  run = make_run(c, cpus, open_images=False)
  (batch, *_) = run.method.batch_shapes(8, run.image_shape)
  once = flops.model_flops(run, batch)
  twice = run.method.batch_shapes(16, run.image_shape)[0]
  assert once > 0
  if method != 'vicreg':  # whose covariance is of the batch
    close(flops.model_flops(run, twice), 2 * once, 1e-12)


@pytest.mark.parametrize(
  ('text', 'amounts'),
  [
    (
      'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory '
      'in memory space hbm. Used 28.50G of 15.75G hbm. Exceeded hbm capacity '
      'by 12.75G.',
      (round(28.5 * 2**30), round(15.75 * 2**30)),
    ),
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
      'for HLO temporaries (512.00G) exceeds available HBM (15.75G).',
      (512 * 2**30, round(15.75 * 2**30)),
    ),
    ('RESOURCE_EXHAUSTED: Out of memory', (None, None)),
    ('INTERNAL: something else', None),
  ],
)
def test_out_of_memory(text, amounts):
  assert compiled.out_of_memory(text) == amounts


def test_what_does_not_fit_is_a_plan(cpus, monkeypatch):
  def refuse(*_):
    raise jax.errors.JaxRuntimeError(
      'RESOURCE_EXHAUSTED: Used 20.00G of 15.75G hbm.'
    )

  monkeypatch.setattr(compile, 'compile_steps', refuse)
  run = make_run(wide(1), cpus, open_images=False)
  result = plan.make_plan(run, per_host=8)
  assert not result.fits
  text = table.table(result, '')
  assert 'does not fit: needs 20.00 GiB of 15.75 GiB a chip' in text


def test_a_kernel_without_room_is_named(cpus, monkeypatch):
  def refuse(*_):
    raise jax.errors.JaxRuntimeError(
      'RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 56.15M '
      'of 16.00M vmem.\n  XLA label: %forward_attention.1 = bf16[256,32,1280]'
    )

  monkeypatch.setattr(compile, 'compile_steps', refuse)
  run = make_run(wide(1), cpus, open_images=False)
  with pytest.raises(
    UserError, match=r'no room in the fast memory of cpu: .*xla'
  ):
    plan.make_plan(run, per_host=8)


def test_search_takes_the_fastest_that_fits(cpus):
  """Accumulation is doubled until a step fits; a batch that can't be cut ends
  it."""
  c = wide(1)
  c.batch_size = 32
  tried = []

  def make(config):
    tried.append((config.mesh.fsdp, config.model.remat, config.accumulate))
    if config.accumulate == 4 and config.mesh.fsdp == 8:
      raise UserError('A batch of 32 does not divide.')
    result = plans[config.mesh.fsdp, config.model.remat]
    fits = result is not None and config.accumulate >= 2
    return make_result(fits=fits, seconds=result or 1.0)

  plans = dict.fromkeys([(n, r) for n in (1, 8) for r in ('none', 'dots')], 2.0)
  plans |= {(1, 'full'): 1.0, (8, 'full'): None}
  results = list(search.search(c, cpus, make, None, 8))
  assert tried[:2] == [(1, 'none', 1), (1, 'none', 2)]  # then it fits
  assert tried[-3:] == [(8, 'full', 1), (8, 'full', 2), (8, 'full', 4)]
  candidate, result = search.fastest(results)
  assert str(candidate) == (
    '--config.mesh.data=-1 --config.mesh.fsdp=1 --config.model.remat=full '
    '--config.accumulate=2'
  )
  assert result.estimated_step_seconds == 1.0
  # A state that is too large is not compiled.
  tried.clear()
  ((_, words), *_) = search.search(c, cpus, make, 1000, 8)
  assert 'the state alone' in words and not tried


def make_result(*, fits, seconds):
  return plan.Plan(
    platform='tpu',
    kind='TPU v5 lite',
    chips=8,
    mesh={'data': 8, 'fsdp': 1},
    images_per_chip=4,
    accumulate=1,
    shapes='',
    state_bytes_per_chip=1,
    temporary_bytes_per_chip=1,
    peak_bytes_per_chip=2,
    memory_per_chip=3,
    fits=fits,
    compile_seconds=1.0,
    collectives={},
    flops=8 * 197e12 / 4,
    estimated_step_seconds=seconds,
    parts=[parts.Part('predictor', 0.3), parts.Part('loss', 0.1)],
    dearest=[parts.Part('dot.1', 0.2, 'models/vit.py:9', 'a/blocks/fc1/dot')],
    uncounted_loops=0,
    batch_size=32,
    total_steps=3600,
    peak_flops=8 * 197e12,
  )


def test_figures_of_an_estimate():
  result = make_result(fits=True, seconds=0.5)
  close(result.images_per_second, 64)
  close(result.mfu, 0.5)
  close(result.hours, 0.5)
  text = table.table(result, '')
  assert '500 ms a step, 64 images/s, MFU 50%' in text
  assert '0.5 hours, 4 chip-hours' in text
  assert 'no measurement' in text and text.count('estimated cycles') == 1
  first, *_, last = table.parts(result).splitlines()
  assert first.split() == ['300', 'ms', '75.0%', 'predictor']
  assert last.endswith('50.0%  models/vit.py:9  blocks/fc1/dot')


def test_chips_by_what_jax_calls_them():
  assert chips.by_kind('TPU v5 lite') is chips.CHIPS['v5e']
  assert chips.by_kind('TPU v5') is chips.CHIPS['v5p']
  assert chips.by_kind('NVIDIA H100 80GB HBM3') is chips.CHIPS['h100']
  assert chips.by_kind('NVIDIA H100 PCIe') is chips.CHIPS['h100-pcie']
  assert chips.by_kind('cpu') is None


def test_command(tmp_path):
  """Its last line is an object with the keys that scripts rely on."""
  command = [sys.executable, '-m', 'ijepa_jax.plan', '--topology=cpu:2']
  command += ['--config=configs/tiny.py', '--json', '--config.batch_size=8']
  done = subprocess.run(
    [*command, '--config.model.depth=1'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
    env=os.environ | {'JAX_COMPILATION_CACHE_DIR': str(tmp_path)},
  )
  result = json.loads(done.stdout.splitlines()[-1])
  assert list(result) == [*plan.KEYS, 'parts']
  assert (result['platform'], result['chips']) == ('cpu', 2)
  assert math.isfinite(result['compile_seconds'])


@pytest.mark.parametrize(
  ('text', 'slices', 'words'),
  [
    ('v5x:8x8', 1, r'take one of cpu, v4, v5e, .*h100.*Did you mean'),
    ('v5e:8', 1, 'v5e is named by 2 numbers of chips, as in v5e:8x8'),
    ('v4:8x8', 1, 'as in v4:2x4x4'),
    ('v5e', 1, 'as in v5e:8x8'),
    ('h100:2x8x4', 1, 'hosts x devices of a host, as in h100:2x8'),
    ('h100:2x8', 2, 'without slices'),
    ('cpu:x', 1, 'cpu:8 for 8 virtual devices'),
    ('v5e:8x8', 0, '--slices is 1 or more'),
  ],
)
def test_topologies_that_are_refused(text, slices, words):
  with pytest.raises(UserError, match=words):
    topologies.parse(text, slices)


def test_topologies():
  topology = topologies.parse('v5e:8x8', 2)
  assert str(topology) == '2 x v5e:8x8'
  variables = topologies.environment(topology, {})
  assert variables['JAX_PLATFORMS'] == 'cpu' and 'XLA_FLAGS' not in variables
  assert variables['ALLOW_MULTIPLE_LIBTPU_LOAD'] == '1'
  assert topologies.environment(topologies.parse(''), {}) == {}
  gpus = topologies.parse('h100:8')
  assert gpus.shape == (1, 8) and topologies.per_host(gpus, [0] * 8) == 8
  flags = topologies.environment(gpus, {'XLA_FLAGS': '--a'})['XLA_FLAGS']
  assert flags == '--a --xla_gpu_enable_triton_gemm=false'
  assert topologies.per_host(topology, [0] * 128) == 64


@pytest.mark.parametrize(
  ('text', 'extra'), [('v5e:2x2', 'plan-tpu'), ('h100:1x1', 'plan-gpu')]
)
def test_what_is_missing_is_said(monkeypatch, text, extra):
  monkeypatch.setattr(topologies.importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(UserError, match=rf"pip install 'ijepa_jax\[{extra}\]'"):
    topologies.devices(topologies.parse(text))


def test_what_cannot_be_planned_is_said():
  def refusal(*arguments):
    command = [sys.executable, '-m', 'ijepa_jax.plan', *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    return done.stderr.strip().splitlines()[-1]

  config = '--config=configs/tiny.py'
  words = refusal(config, '--topology=h100:8', '--config.model.attention=cudnn')
  assert "model.attention is 'cudnn'" in words
  # Its width is no multiple of 128; of others the devices are refused.
  words = refusal(config, '--topology=cpu:2', '--config.model.attention=pallas')
  assert "model.attention is 'pallas'" in words


@pytest.mark.slow
@pytest.mark.parametrize(
  ('package', 'topology', 'platform'),
  [('libtpu', 'v5e:2x2', 'tpu'), ('jax_cuda12_plugin', 'h100:2x2', 'gpu')],
)
def test_planned_for_chips_that_are_not_here(package, topology, platform):
  """Two planners at once do not wait for each other."""
  pytest.importorskip(package)
  command = [sys.executable, '-m', 'ijepa_jax.plan', f'--topology={topology}']
  command += ['--config=configs/tiny.py', '--json', '--config.model.depth=1']
  planners = [
    subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for _ in range(2)
  ]
  for planner in planners:
    out, _ = planner.communicate()
    assert not planner.returncode
    result = json.loads(out.splitlines()[-1])
    assert (result['platform'], result['chips']) == (platform, 4)
    assert result['fits'] and 0 < result['mfu'] < 1


@pytest.mark.slow
def test_kernels_are_planned():
  """Their schedule is written down by a process that compiles them alone."""
  pytest.importorskip('libtpu')
  command = [sys.executable, '-m', 'ijepa_jax.plan', '--topology=v5e:2x2']
  command += ['--config=configs/tiny.py', '--json', '--config.model.depth=1']
  command += ['--config.model.width=128', '--config.model.predictor_width=128']
  times = {}
  for attention in ('xla', 'pallas'):
    flag = f'--config.model.attention={attention}'
    out = subprocess.run(
      [*command, flag], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    times[attention] = json.loads(out.splitlines()[-1])
  seconds = [x['estimated_step_seconds'] for x in times.values()]
  assert 0.2 < seconds[1] / seconds[0] < 5
