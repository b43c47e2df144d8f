"""Runs that begin with somebody's weights."""

import shutil

import jax
import numpy as np
import optax
import pytest

from ijepa_jax.errors import UserError
from ijepa_jax.pretrained.formats import huggingface, release
from ijepa_jax.pretrained.formats.weights import Optimizer
from ijepa_jax.runtime import sharding
from ijepa_jax.train import compile, pretrain
from ijepa_jax.train.initial_state import state_from_weights
from ijepa_jax.train.run import make_run
from tests.train import test_pretrain
from tests.train.test_pretrain import assert_same, losses, params


def make_config(**changes):
  """8 steps, a checkpoint after 4."""
  changes = {
    'total_steps': 8,
    'optim.warmup_steps': 2,
    'checkpoint.every_steps': 4,
    'data.count': 100,
    **changes,
  }
  return test_pretrain.make_config(**changes)


def begin(path, config):
  """The first state, and what else it could have been."""
  config.init_from = str(path)
  run = make_run(config)
  abstract, make_state = compile.abstract_state(run)
  return state_from_weights(run, abstract, make_state), make_state


def sizes(config):
  d = config.data
  return config.model.to_dict() | dict(
    image_size=tuple(d.image_size),
    channels=d.channels,
    mean=tuple(d.mean),
    std=tuple(d.std),
  )


def weights(state, *names):
  parts = {**state.params, 'target': state.target}
  return {k: parts[k] for k in names or parts}


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """The run without a stop."""
  workdir = tmp_path_factory.mktemp('straight')
  pretrain.run(make_config(), workdir)
  return workdir


@pytest.fixture(scope='module')
def trained(straight):
  return params(make_config(), straight)


def test_exactly_these_weights(straight, trained):
  config = make_config()
  state, _ = begin(straight, config)
  zeros = jax.tree.map(np.zeros_like, (trained.step, trained.opt_state))
  assert_same(
    jax.device_get(state),
    trained.replace(step=zeros[0], opt_state=zeros[1]),
  )


def test_the_loss_goes_on_falling(straight, tmp_path):
  changes = {'mesh.data': 1, 'mesh.fsdp': 8}
  pretrain.run(make_config(init_from=str(straight), **changes), tmp_path)
  before, after = losses(straight), losses(tmp_path)
  assert list(after) == list(range(1, 9))
  assert after[1] < 0.6 * before[1]
  assert max(after[i] for i in (6, 7, 8)) < min(before.values())


def test_with_the_optimizer_it_is_the_straight_run(straight, trained, tmp_path):
  half = tmp_path / 'half'
  shutil.copytree(straight, half)
  shutil.rmtree(half / 'checkpoints/8')
  config = make_config(init_from=str(half), init_optimizer=True)
  pretrain.run(config, tmp_path / 'on')
  expected, on = losses(straight), losses(tmp_path / 'on')
  assert on == {i: expected[i] for i in range(5, 9)}
  assert_same(params(config, tmp_path / 'on'), trained)
  # What the workdir holds is gone on from, whatever init_from says.
  config.init_from = str(tmp_path / 'nowhere')
  assert int(pretrain.run(config, tmp_path / 'on').step) == 8
  with pytest.raises(UserError, match='8 steps already'):
    config.init_from = str(straight)
    begin(straight, config)


def test_one_encoder_alone(trained, tmp_path, caplog):
  """A Hugging Face folder: the predictor is fresh, and it is said.

  Both encoders have buffers of their own, so that a step may take them.
  """
  config = make_config()
  folder = tmp_path / 'folder'
  huggingface.write(folder, weights(trained), sizes(config))
  state, make_state = begin(folder, config)
  fresh = jax.device_get(make_state(jax.random.key(config.seed)))
  assert_same(
    jax.device_get(state),
    fresh.replace(
      params=fresh.params | {'encoder': trained.target}, target=trained.target
    ),
  )
  double = jax.jit(lambda x, y: (2 * x, 4 * y), donate_argnums=(0, 1))
  context, target = (
    tree['norm']['scale'] for tree in (state.params['encoder'], state.target)
  )
  twice, four_times = double(context, target)
  assert_same(2 * twice, four_times)
  assert (
    f'{folder} has no predictor: the run starts with a random one, of seed 0'
    in caplog.text
  )
  assert 'the target encoder: both of the run start with it' in caplog.text
  with pytest.raises(UserError, match='no state of AdamW'):
    begin(folder, make_config(init_optimizer=True))


def test_torch_file(trained, tmp_path):
  """Every bit of a state, by way of a .pth.tar with the optimizer."""
  pytest.importorskip('torch')
  config = make_config(init_optimizer=True, total_steps=9)
  path = tmp_path / 'a.pth.tar'
  moments = [
    optax.tree_utils.tree_get(trained.opt_state, k) for k in ('mu', 'nu')
  ]
  optimizer = Optimizer(8, *moments)
  release.write(path, weights(trained), sizes(config), optimizer=optimizer)
  assert_same(jax.device_get(begin(path, config)[0]), trained)
  path.unlink()
  release.write(path, weights(trained), sizes(config))
  with pytest.raises(UserError, match='no state of AdamW'):
    begin(path, config)
  with pytest.raises(UserError, match='has 2 heads, not 4'):
    begin(path, make_config(**{'model.heads': 4}))


def test_split_over_devices(straight, trained):
  """The layout is the run's own, whatever it was where the weights are from."""
  changes = {'mesh.data': 1, 'mesh.fsdp': 8, 'total_steps': 9}
  config = make_config(init_from=str(straight), init_optimizer=True, **changes)
  run = make_run(config)
  abstract, make_state = compile.abstract_state(run)
  # As large arrays would be.
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    abstract,
    sharding.state_sharding(abstract, run.mesh, min_size=8),
  )
  state = state_from_weights(run, abstract, make_state)
  assert_same(jax.device_get(state), trained)
  laid_out = [(x.dtype, x.sharding) for x in jax.tree.leaves(state)]
  assert laid_out == [(x.dtype, x.sharding) for x in jax.tree.leaves(abstract)]
  assert sum(not s.is_fully_replicated for _, s in laid_out) > 50


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'model.width': 32}, 'width is 64 there and 32 in the config'),
    ({'model.depth': 3}, 'depth is 2 there and 3 in'),
    ({'model.heads': 4}, 'heads is 2 there and 4 in'),
    (
      {'model.patch_size': 4, 'model.predictor_depth': 2},
      'patch_size is 8 .* 4 .*; predictor_depth is 1 there and 2',
    ),
    ({'model.predictor_width': 48}, 'predictor_width is 32 there and 48'),
    (
      {'data.channels': 1, 'data.mean': (0.5,), 'data.std': (0.5,)},
      'channels is 3 there and 1',
    ),
    ({'init_from': '/nowhere/at/all'}, '/nowhere/at/all'),
    ({'init_from': '', 'init_optimizer': True}, 'say in init_from where'),
  ],
)
def test_refused_in_a_sentence(straight, tmp_path, monkeypatch, changes, words):
  """Before anything is made, compiled or written."""
  config = make_config(**{'init_from': str(straight), **changes})
  prepare = compile.abstract_state
  monkeypatch.setattr(
    compile, 'abstract_state', lambda *args: (prepare(*args)[0], None)
  )
  monkeypatch.setattr(compile, 'compile_steps', None)
  with pytest.raises(UserError, match=words):
    pretrain.run(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_other_pixels(straight, trained, caplog):
  """Another size is fine; another normalisation is told."""
  config = make_config(init_optimizer=True, total_steps=9)
  config.data.image_size, config.data.mean = (64, 48), (0.4, 0.5, 0.5)
  state, _ = begin(straight, config)
  assert_same(jax.device_get(state.params), trained.params)
  assert 'had the mean (0.5, 0.5, 0.5), here data.mean is (0.4' in caplog.text
  assert 'had the std' not in caplog.text
