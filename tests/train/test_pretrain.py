"""Whole runs: what they write, and that stopping anywhere changes nothing."""

import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import types

import jax
import numpy as np
import optax
import PIL.Image
import pytest

from configs import tiny
from ijepa_jax.data import loader
from ijepa_jax.errors import UserError
from ijepa_jax.runtime import metrics, sharding
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.runtime.timing import summary
from ijepa_jax.train import compile, loop, pretrain
from ijepa_jax.train.run import make_run
from tests.close import FLOAT64, TRAINED, close, trees_close

ROOT = pathlib.Path(__file__).parents[2]


def make_config(**changes):
  """`tiny`, smaller: 300 pictures, one mask shape, no probe."""
  c = tiny.get_config()
  c.total_steps = 20
  c.batch_size = 16
  c.data.count = 300
  c.probe.every_steps = c.health.every_steps = 0
  c.model.depth = 2
  c.mask.sampler = 'rasterized'
  c.optim.start_lr, c.optim.peak_lr, c.optim.warmup_steps = 2e-4, 2e-3, 5
  c.checkpoint.every_steps = 10
  c.log.tensorboard = False
  c.update_from_flattened_dict(changes)
  return c


def flags(config) -> list[str]:
  """The same as command-line flags over configs/tiny.py."""
  base = tiny.get_config().to_dict()
  found = []

  def differ(path, ours, theirs):
    for k, v in ours.items():
      if isinstance(v, dict):
        differ([*path, k], v, theirs[k])
      elif v != theirs[k]:
        found.append(f'--{".".join(["config", *path, k])}={v}')

  differ([], config.to_dict(), base)
  return found


def command(workdir, config, *more) -> list[str]:
  return [
    sys.executable,
    str(ROOT / 'main.py'),
    f'--config={ROOT}/configs/tiny.py',
    f'--workdir={workdir}',
    *flags(config),
    *more,
  ]


def losses(workdir) -> dict[int, float]:
  return {row['step']: row['loss'] for row in metrics.read(workdir)}


def params(config, workdir):
  """The last checkpoint, on one device."""
  run = make_run(config)
  abstract, _ = compile.abstract_state(run)
  with checkpointer.Checkpointer(workdir / 'checkpoints') as checkpoints:
    state, step = checkpoints.restore(abstract)
  assert step == config.total_steps
  return jax.device_get(state)


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def losses_close(found, expected):
  assert found.keys() == expected.keys()
  close([found[s] for s in expected], list(expected.values()), TRAINED)


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """20 steps without a stop."""
  workdir = tmp_path_factory.mktemp('straight')
  pretrain.run(make_config(), workdir)
  return workdir


def test_what_a_run_writes(straight):
  rows = metrics.read(straight)
  assert [row['step'] for row in rows] == list(range(1, 21))
  for row in rows:
    assert {
      'loss',
      'lr',
      'weight_decay',
      'momentum',
      'grad_norm',
      'images_per_second',
      'data_wait_share',
      'feature_std',
    } <= set(row)
  config = json.loads((straight / 'config.json').read_text())
  assert config['total_steps'] == 20
  assert config['data']['source'] == 'scenes'
  with checkpointer.Checkpointer(straight / 'checkpoints') as checkpoints:
    assert checkpoints.steps() == [10, 20]
  # The parts of the time are those of the whole start.
  (start,) = summary.read(straight)
  assert (start['from_step'], start['step']) == (0, 20)
  assert start['end'] == 'complete' and start['seconds']['redone'] == 0
  close(start['wall_seconds'], sum(start['seconds'].values()), FLOAT64)
  assert min(start['seconds'][k] for k in ('steps', 'compile', 'save')) > 0
  assert [row['step'] for row in rows if 'seconds/steps' in row][-1] == 20
  # No step was compiled while training; saving the first checkpoint compiles.
  assert len({row['compilations'] for row in rows[:9]}) == 1
  assert len({row['compilations'] for row in rows[10:19]}) == 1


def test_killed_in_the_middle_of_step_15(straight, tmp_path):
  """kill -9, start again: bit-identical losses and parameters."""
  config = make_config()
  # Step 14 is recorded while step 15 runs.
  script = (
    'import os, signal, sys; from ijepa_jax.runtime import metrics\n'
    'write = metrics.MetricWriter.write\n'
    'def dying(self, step, values):\n'
    '  write(self, step, values)\n'
    '  step == 14 and os.kill(os.getpid(), signal.SIGKILL)\n'
    'metrics.MetricWriter.write = dying\n'
    'from ijepa_jax.runtime.timing import starts\n'
    'starts._EVERY[False] = 0.001\n'
    'import runpy; runpy.run_path(sys.argv[0], run_name="__main__")\n'
  )
  line = command(tmp_path, config)
  killed = subprocess.run(
    [
      sys.executable,
      '-c',
      f'import sys; sys.argv = {line[1:]!r}\n{script}',
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  assert max(losses(tmp_path)) == 14
  pretrain.run(config, tmp_path)
  assert losses(tmp_path) == losses(straight)
  assert_same(params(config, tmp_path), params(config, straight))
  first, second = summary.read(tmp_path)
  assert first['end'] is None and first['step'] in (11, 12, 13, 14)
  # The save of step 10 may have been under way.
  assert second['from_step'] in (0, 10) and second['step'] == 20
  # Its time is from the start of its process, which read in Python and JAX.
  assert first['seconds']['restart'] > 0.05
  assert 0 < first['seconds']['redone'] < first['wall_seconds']
  assert summary.total([first, second])['seconds']['between'] > 0


def test_finished_run_is_left_alone(straight):
  before = (straight / 'metrics.jsonl').read_bytes()
  starts = summary.read(straight)
  state = pretrain.run(make_config(), straight)
  assert state.step == 20
  assert (straight / 'metrics.jsonl').read_bytes() == before
  assert summary.read(straight) == starts


def test_sigterm_saves_and_exits(straight, tmp_path):
  """Then the same command goes on to the very same end."""
  config = make_config(**{'checkpoint.every_steps': 1000})
  run = subprocess.Popen(
    command(tmp_path, make_config(**{'total_steps': 20_000})),
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  for line in run.stderr:
    if 'Step ' in line:
      run.send_signal(signal.SIGTERM)
      break
  rest = run.stderr.read()
  assert run.wait(60) == 143, rest
  stopped = max(losses(tmp_path))
  assert f'Stopped at step {stopped}' in rest
  with checkpointer.Checkpointer(tmp_path / 'checkpoints') as checkpoints:
    assert checkpoints.steps()[-1] == stopped
  config.total_steps = stopped + 3
  assert pretrain.run(config, tmp_path).step == stopped + 3


def test_another_mesh(straight, tmp_path):
  """FSDP over 8 devices equals 8 copies; a run may change over half-way."""
  wide = {'model.width': 128, 'model.heads': 4}  # wide enough to be split
  wide |= {'total_steps': 8, 'checkpoint.every_steps': 4}
  plain = make_config(**wide)
  split = make_config(**wide, **{'mesh.data': 1, 'mesh.fsdp': 8})
  pretrain.run(plain, tmp_path / 'plain')
  pretrain.run(split, tmp_path / 'split')
  half = make_config(**wide)
  half.total_steps, half.optim.schedule_scale = 4, 2.0
  pretrain.run(half, tmp_path / 'half')
  two = make_config(**wide, **{'mesh.data': 4, 'mesh.fsdp': 2})
  pretrain.run(two, tmp_path / 'half')
  expected = losses(tmp_path / 'plain')
  for name in 'split', 'half':
    losses_close(losses(tmp_path / name), expected)


def test_fsdp_splits_the_state_and_equals_one_device(cpus, capfd):
  """Five steps on one device and on eight that split the state.

  8 divides fc1's 528 features, and neither axis of the kernel of qkv, 132 x
  396, which is split along both.
  """
  config = make_config(
    **{'model.width': 132, 'model.heads': 4, 'model.mlp_dim': 528}
  )
  results = []
  for devices, fsdp in ((cpus[:1], 1), (cpus, 8)):
    run = make_run(config)
    mesh = sharding.make_mesh(data=1, fsdp=fsdp, devices=devices)
    run = dataclasses.replace(run, mesh=mesh)
    abstract, make_state = compile.abstract_state(run)
    steps = compile.compile_steps(run, abstract)
    state = make_state(jax.random.key(0))
    if fsdp == 8:
      mu = state.opt_state[0][0].mu['encoder']
      for tree in mu, state.params['encoder'], state.target:
        for name, shard in ('fc1', (2, 132, 66)), ('qkv', (2, 66, 99)):
          kernel = tree['blocks'][name]['kernel']
          assert kernel.sharding.shard_shape(kernel.shape) == shard
      check_collectives(steps, abstract.params)
    out = []
    keys = run.method.batch_keys
    batches = loader.device_batches(run.batches(0), run.mesh, *keys)
    with batches as batches:
      for _ in range(5):
        batch = next(batches)
        state, values = steps[compile.batch_shape(run, batch)](state, batch)
        out.append(float(values['loss']))
    mu = optax.tree_utils.tree_get(state.opt_state, 'mu')
    results.append((out, jax.device_get(mu)))
  (one, mu_one), (eight, mu_eight) = results
  close(eight, one, TRAINED)
  trees_close(mu_eight, mu_one, TRAINED)
  # As XLA says where it copies an array to all devices to split it anew.
  assert 'rematerialization' not in capfd.readouterr().err


def check_collectives(steps, params):
  """Weights are gathered, a layer at a time, and no activations."""
  layers = {x.shape[1:] for x in jax.tree.leaves(params['encoder']['blocks'])}
  largest = max(math.prod(shape) for shape in layers)
  for step in steps.values():
    text = step.as_text()
    gathered = [
      math.prod(map(int, shape.split(',')))
      for shape in re.findall(r'= f32\[([\d,]+)\]\S* all-gather\(', text)
    ]
    # Twice each of encoder's and target's, in the first and the backward pass.
    assert gathered
    assert max(gathered) == largest
    assert 'all-to-all' not in text


@pytest.mark.parametrize(
  'method', ['ijepa', pytest.param('vicreg', marks=pytest.mark.slow)]
)
def test_two_processes_train_as_one(method, tmp_path):
  """Two real processes of one device each, and one process of two devices."""
  changes = {'method': method, 'total_steps': 6, 'checkpoint.every_steps': 3}
  config = make_config(**changes)
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]

  def start(name, devices, *more):
    count = f' --xla_force_host_platform_device_count={devices}'
    return subprocess.Popen(
      command(tmp_path / name, config, *more),
      cwd=ROOT,
      env=os.environ
      | {
        'XLA_FLAGS': os.environ['XLA_FLAGS'] + count,  # the last one counts
        'JAX_PLATFORMS': 'cpu',
      },
      stderr=subprocess.PIPE,
      text=True,
    )

  runs = [
    start(
      'two',
      1,
      f'--coordinator=localhost:{port}',
      '--num_processes=2',
      f'--process_id={i}',
    )
    for i in range(2)
  ]
  runs.append(start('one', 2))
  for run in runs:
    _, words = run.communicate(timeout=300)
    assert run.returncode == 0, words
  one, two = losses(tmp_path / 'one'), losses(tmp_path / 'two')
  assert sorted(one) == list(range(1, 7))
  losses_close(two, one)


def test_not_a_number_stops_the_run(tmp_path):
  config = make_config(**{'checkpoint.every_steps': 2})
  config.optim.start_lr = config.optim.peak_lr = 1e30
  with pytest.raises(loop.NotFinite, match=r'At step \d+ the loss.*peak_lr'):
    pretrain.run(config, tmp_path)
  with checkpointer.Checkpointer(tmp_path / 'checkpoints') as checkpoints:
    steps = checkpoints.steps()
  assert steps == [] or max(steps) < max(losses(tmp_path))


def test_bad_images_stop_the_run_and_lose_nothing(tmp_path):
  """What was learned until then is saved; the sentence says what to mend."""
  images = tmp_path / 'images'
  images.mkdir()
  noise = np.random.default_rng(0)
  for i in range(40):
    pixels = noise.integers(0, 256, (50, 60, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(images / f'{i:02}.png')
  for i in range(10):
    (images / f'bad{i}.png').write_bytes(b'no image')
  config = make_config(
    **{
      'data.source': 'folder',
      'data.count': 20_000,  # of pictures; nothing is said of it
      'data.path': str(images),
      'data.max_bad_share': 0.03,
      'total_steps': 100,
    }
  )
  workdir = tmp_path / 'run'
  with pytest.raises(UserError, match=r'bad\d.png.*max_bad_share'):
    pretrain.run(config, workdir)
  with checkpointer.Checkpointer(workdir / 'checkpoints') as checkpoints:
    assert checkpoints.steps()[-1] == max(losses(workdir)) > 3
  config.data.max_bad_share = 1.0
  config.total_steps = max(losses(workdir)) + 1
  assert pretrain.run(config, workdir).step == config.total_steps


def test_a_disk_that_is_full(straight, tmp_path, monkeypatch):
  """Told in a sentence; the checkpoint before stays loadable."""
  shutil.copytree(straight, tmp_path / 'run')

  def full(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(
    checkpointer.ocp.training.Checkpointer, 'save_async', full
  )
  config = make_config(**{'total_steps': 22})
  with pytest.raises(UserError, match=r'22.*No space.*10, 20'):
    pretrain.run(config, tmp_path / 'run')
  monkeypatch.undo()
  assert pretrain.run(config, tmp_path / 'run').step == 22


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'batch_size': 12}, r'batch_size of 12.*multiple of 8'),
    ({'total_steps': 0}, 'total_steps is 0'),
    ({'model.patch_size': 7}, r'\(48, 48\).*7 pixels'),
    ({'mask.sampler': 'unifrom'}, "'uniform'"),
    ({'data.channels': 1}, 'data.mean has 3'),
    (
      {'data.source': 'folder', 'data.count': 20_000, 'data.path': '/nowhere'},
      '/nowhere',
    ),
    ({'mesh.fsdp': 3}, 'mesh.fsdp = 3'),
    ({'checkpoint.keep_last': 0}, 'keep_last is 0'),
    ({'data.crop_scale': (0.5, 0.3)}, 'crop_scale is'),
    ({'optim.weight_decay_schedule': 'step'}, "'step'.*cosine, linear"),
    ({'optim.mu_dtype': 'float16'}, '^optim.mu_dtype .*one of float32, bf'),
    ({'checkpoint.keep_best': 'probe/class'}, 'keep_best is .*none, with'),
    ({'loss.kind': 'l1'}, "'l1'"),
    ({'optim.peak_lr': -1.0}, r'optim\.peak_lr is -1\.0: take 0 or more'),
    ({'optim.b1': 1.5}, r'optim\.b1 is 1\.5.* up to 0\.9999999\.'),
    ({'ema.last': 2.0}, r'ema\.last is 2'),
    ({'batch_size': 0}, 'batch_size is 0'),
    ({'model.depth': 0}, r'model\.depth is 0'),
    ({'data.mean': (123.7, 116.3, 103.5)}, r'pixels in \[0, 1\]'),
    ({'data.image_size': (48,)}, r'image_size is \(48,\): take a height'),
    ({'data.crop_scale': (0.5,)}, r'crop_scale is \(0\.5,\)'),
    (
      {'mask.sampler': 'release', 'mask.target_scale': (0.5,)},
      r'target_scale is \(0\.5,\)',
    ),
  ],
)
def test_mistakes_are_told_before_anything_is_written(changes, words, tmp_path):
  with pytest.raises(UserError, match=words):
    pretrain.run(make_config(**changes), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_another_model_in_the_same_folder(straight):
  config = make_config(**{'model.width': 32, 'total_steps': 30})
  with pytest.raises(UserError, match='32'):
    pretrain.run(config, straight)
  assert len(metrics.read(straight)) == 20


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'model.heads': 4}, r'model\.heads is 4, .* trained with 2'),
    ({'data.mean': (0.1,) * 3}, r'data\.mean is \(0\.1, .* \(0\.5, '),
  ],
)
def test_a_model_that_only_computes_otherwise(changes, words, straight):
  """Its arrays are alike: it would go on, and be another from then on."""
  before = (straight / 'config.json').read_bytes()
  config = make_config(**changes, total_steps=30)
  with pytest.raises(UserError, match=words):
    pretrain.run(config, straight)
  pretrain.run(make_config(total_steps=10, seed=3), straight)
  assert (straight / 'config.json').read_bytes() == before


def test_a_folder_that_holds_something_else(tmp_path):
  (tmp_path / 'config.json').write_text('{"model_type": "ijepa"}')
  with pytest.raises(UserError, match=r'of no run of pre-training'):
    pretrain.run(make_config(), tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ['config.json']


@pytest.mark.parametrize(
  ('argument', 'words'),
  [
    ('--config.optim.peak_lrr=1', 'peak_lr'),
    ('--config.job=dream', 'pretrain'),
    ('--config.job=linear', 'configs/evals'),
    ('--config=configs/tny.py', 'There is no file configs/tny.py'),
    ('--workdir=/proc/x', '/proc/x: No such file'),
    ('--wrkdir=x', 'wrkdir'),
    ('stray', 'stray'),
  ],
)
def test_wrong_words_on_the_command_line(argument, words, tmp_path):
  run = subprocess.run(
    command(tmp_path, make_config(), argument),
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert run.returncode == 1
  assert words in run.stderr
  assert 'Traceback' not in run.stderr


@pytest.mark.parametrize(
  'path', sorted(p.stem for p in (ROOT / 'configs').glob('vit_*.py'))
)
def test_recipes_make_sense(path):
  """Every recipe builds, and its first lines give its own command."""
  module = __import__(f'configs.{path}', fromlist=['get_config'])
  assert f'--config=configs/{path}.py' in module.__doc__
  config = module.get_config()
  run = make_run(config, open_images=False)
  assert len(run.method.sampler.shapes) <= 12
  assert 0 < config.optim.warmup_steps < config.total_steps


def test_two_runs_in_one_workdir(tmp_path):
  """The second is refused, and the first ends as if it had been alone."""
  script = (
    'import sys, time; from ijepa_jax.runtime import locks\n'
    'with locks.only_writer(sys.argv[1]):\n'
    '  print("held", flush=True); sys.stdin.read()\n'
  )
  with subprocess.Popen(
    [sys.executable, '-c', script, str(tmp_path)],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as other:
    assert other.stdout.readline() == 'held\n'
    words = f'process {other.pid} on .* writes to {tmp_path}'
    with pytest.raises(UserError, match=words):
      pretrain.run(make_config(), tmp_path)
    other.stdin.close()
  assert not list(tmp_path.iterdir())


def test_other_images_after_a_stop(straight, tmp_path, caplog):
  """They are said, and the run remembers both."""
  workdir = tmp_path / 'run'
  shutil.copytree(straight, workdir)
  pretrain.run(make_config(total_steps=22), workdir)
  assert 'not those of the run so far' not in caplog.text
  pretrain.run(make_config(total_steps=24, **{'data.count': 299}), workdir)
  assert '299 now, 300 before' in caplog.text
  history = json.loads((workdir / 'images.json').read_text())
  assert [(x['from_step'], x['images']) for x in history] == [
    (0, 300),
    (22, 299),
  ]


@pytest.mark.parametrize('name', ['lr[1e-3]', 'a*', 'a\\b'])
def test_a_workdir_that_would_lose_its_checkpoints(name, tmp_path):
  with pytest.raises(UserError, match='checkpoints cannot be saved'):
    pretrain.run(make_config(), f'{tmp_path}/{name}')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('images', 'batch', 'steps', 'words', 'warnings'),
  [
    (1920, 64, 6000, '6,000 steps of 64 images each: 200 epochs of 1,920', 0),
    (1_281_167, 2048, 100, '0.16 epochs of 1,281,167 images', 0),
    (1920, 2048, 187_500, '200,000 epochs of 1,920 images', 2),
  ],
)
def test_a_run_says_what_it_will_do(
  caplog, images, batch, steps, words, warnings
):
  run = types.SimpleNamespace(
    source=range(images), batch_size=batch, total_steps=steps
  )
  with caplog.at_level('INFO'):
    pretrain.log_plan(run, 0)
  first, *rest = [record.getMessage() for record in caplog.records]
  assert words in first and len(rest) == warnings
  if warnings:
    assert 'A batch of 2048 is more than the 1920 images' in rest[0]
    assert 'total_steps is 281.' in rest[1]
