"""JAX's flags change neither the types nor the numbers of a run."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import tiny
from ijepa_jax.data.transforms import mixup
from ijepa_jax.methods import train_step
from ijepa_jax.methods.optim import adamw, schedules
from ijepa_jax.models import vit
from ijepa_jax.probes import head_sweep, knn, labels, logistic, train_heads
from ijepa_jax.runtime import cli
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.train import compile, health
from ijepa_jax.train.run import make_run

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def flags():
  """Changes flags until the test ends."""
  before = {name: getattr(jax.config, name) for name in cli._JAX_DEFAULTS}
  yield jax.config.update
  for name, value in before.items():
    jax.config.update(name, value)


def config():
  c = tiny.get_config()
  c.model.depth, c.batch_size = 2, 16
  c.model.init = 'rescaled'
  c.probe.every_steps = c.health.every_steps = 0
  c.total_steps = 1
  return c


def types():
  """Of whatever is kept, trained or reported; nothing is compiled."""
  c = config()
  run = make_run(c)
  state, _ = compile.abstract_state(run)
  float32, int32 = np.dtype('float32'), np.dtype('int32')

  def array(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype)

  images, labels_B = array('uint8', 16, 48, 48, 3), array(int32, 16)
  (kc, kt), *_ = run.method.sampler.shapes
  batch = {
    'image': images,
    'context': array(int32, 16, run.method.sampler.num_contexts, kc),
    'targets': array(int32, 16, run.method.sampler.num_targets, kt),
  }
  accumulated = {}
  for n in 1, 2:
    accumulated[n] = jax.eval_shape(
      lambda s, b, n=n: train_step.train_step(
        s, b, method=run.method, tx=run.tx, accumulate=n
      ),
      state,
      batch,
    )
  sizes = dict(classes=3, examples=64, batch_size=16, epochs=2)
  attentive = head_sweep.Protocol('', 'adamw', (0.1,), (0.1,), final=0.0)
  sweeps = [
    # Both optimizers, and a schedule.
    head_sweep.HeadSweep(head_sweep.get_protocol(name), {'last': 8}, **sizes)
    for name in ('imagenet', 'clevr')
  ]
  sweeps.append(head_sweep.AttentiveSweep(attentive, {'tokens': 8}, **sizes))
  features = {'last': array(float32, 16, 8), 'tokens': array(float32, 16, 4, 8)}
  swept = []
  for sweep in sweeps:
    heads = train_heads.ARITHMETIC[sweep.kind]
    begun = jax.eval_shape(
      lambda sweep=sweep, heads=heads: heads.init(sweep, jax.random.key(0))
    )
    update, count = (
      functools.partial(f, sweep)
      for f in (heads.update_heads, heads.count_correct)
    )
    swept += [
      begun,
      jax.eval_shape(update, begun, features, labels_B, 0),
      jax.eval_shape(count, begun, features, labels_B),
    ]
  tree = {'encoder': state.params['encoder'], 'head': {'kernel': labels_B}}
  scale = adamw.layer_scales(state.params, 2, 0.5)
  tuned = adamw.adamw_by_layer(
    schedules.warmup_cosine(0.0, 1.0, 0.0, 2, 9), 0.1, scale
  )

  def tune(params):
    updates, after = tuned.update(params, tuned.init(params), params)
    return optax.apply_updates(params, updates), after

  encoder = run.method.encoder
  return {
    'state': state,
    'steps': accumulated,
    'heads': swept,
    'tuned': jax.eval_shape(tune, state.params),
    'features': jax.eval_shape(
      lambda p, x: run.method.encode(p, x, layers='pooled', drop_path=0.0),
      state.target,
      images,
    ),
    'dropped': jax.eval_shape(
      lambda p, x: encoder.apply(
        {'params': p}, x, drop_path=0.5, rngs={'drop_path': jax.random.key(0)}
      ),
      tree['encoder'],
      array(float32, 16, 48, 48, 3),
    ),
    'mixed': jax.eval_shape(
      lambda x, y: mixup.mix(
        jax.random.key(0),
        x,
        labels.soft_labels(y, 3, 0.1),
        mixup=0.8,
        cutmix=1.0,
      ),
      array(float32, 16, 48, 48, 3),
      labels_B,
    ),
    'logistic': jax.eval_shape(
      lambda x, y, l2: logistic.fit(x, y, l2, classes=3),
      array(float32, 16, 8),
      labels_B,
      array(float32, 2),
    ),
    'nearest': jax.eval_shape(
      lambda x, y: knn.nearest(x, y, x, 3), array(float32, 16, 8), labels_B
    ),
    'health': jax.eval_shape(
      lambda p, t, b: health.signals(run.method, p, t, b),
      state.params,
      state.target,
      batch,
    ),
    'normalized': jax.eval_shape(run.method.normalize, images),
    'rates': [
      jax.eval_shape(f, array(int32))
      for f in (
        run.schedules['lr'],
        run.method.ema_rate,
        schedules.linear(0.0, 1.0, 5),
      )
    ],
  }


def test_types_whatever_the_flag(flags):
  usual = types()
  flags('jax_enable_x64', True)
  wide = types()
  assert jax.tree.structure(usual) == jax.tree.structure(wide)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(usual),
    jax.tree.leaves(wide),
    strict=True,
  ):
    assert a.dtype == b.dtype, jax.tree_util.keystr(path)
    assert a.dtype in (jnp.float32, jnp.int32), jax.tree_util.keystr(path)


def test_first_weights_whatever_the_flag(flags):
  params = {'proj': {'kernel': jnp.ones((3, 2, 2), jnp.float32)}}

  def made():
    key = jax.random.key(0)
    token = vit.Predictor.init_token(key, (64,))
    return np.asarray(token), vit.rescale_residuals(params)

  usual = made()
  flags('jax_enable_x64', True)
  jax.tree.map(np.testing.assert_array_equal, made(), usual)


def test_jobs_set_the_flags_aside(flags, caplog):
  cli.reset_jax_flags()
  assert not caplog.records
  others = {
    'jax_enable_x64': True,
    'jax_default_matmul_precision': 'bfloat16',
    'jax_numpy_rank_promotion': 'raise',
    'jax_numpy_dtype_promotion': 'strict',
    'jax_default_prng_impl': 'rbg',
    'jax_threefry_partitionable': False,
    'jax_disable_jit': True,
  }
  for name, value in others.items():
    flags(name, value)
  cli.reset_jax_flags()
  for name in others:
    assert getattr(jax.config, name) == cli._JAX_DEFAULTS[name]
    assert name.upper() in caplog.text


def test_a_run_with_the_flags_is_the_run_without(images, tmp_path):
  """Its checkpoint holds the types of a run without them."""
  c = config()
  subprocess.run(
    [
      *(sys.executable, 'main.py', '--config=configs/tiny.py'),
      f'--workdir={tmp_path}',
      *(f'--config.{k}=0' for k in ('probe.every_steps', 'health.every_steps')),
      *('--config.total_steps=1', '--config.data.workers=0'),
      *('--config.data.source=folder', f'--config.data.path={images}'),
      *('--config.batch_size=16', '--config.model.depth=2'),
      '--config.model.init=rescaled',
    ],
    cwd=ROOT,
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': '',
      'JAX_ENABLE_X64': '1',
      'JAX_DEFAULT_PRNG_IMPL': 'rbg',
      'JAX_NUMPY_RANK_PROMOTION': 'raise',
      'JAX_NUMPY_DTYPE_PROMOTION': 'strict',
    },
    check=True,
    capture_output=True,
  )
  run = make_run(c)
  abstract, make_state = compile.abstract_state(run)
  with checkpointer.Checkpointer(tmp_path / 'checkpoints') as checkpoints:
    state, step = checkpoints.restore(abstract)
  assert step == 1
  # The first step's EMA of .97 leaves the target close to where it began.
  begun = make_state(jax.random.key(c.seed)).target['blocks']['qkv']['kernel']
  error = state.target['blocks']['qkv']['kernel'] - begun
  assert np.abs(error).max() < 1e-2 * np.abs(begun).max()
