"""Runs whose first moment of AdamW is in bfloat16, and what is made of them."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ijepa_jax.convert import export
from ijepa_jax.errors import UserError
from ijepa_jax.pretrained import load
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.runtime.config import write_config
from ijepa_jax.train import pretrain
from tests.train import test_initial_state
from tests.train.test_initial_state import begin
from tests.train.test_pretrain import assert_same, losses, params


def make_config(**changes):
  """8 steps, a checkpoint after 4."""
  return test_initial_state.make_config(
    **{'optim.mu_dtype': 'bfloat16', **changes}
  )


def moments(state):
  get = optax.tree_utils.tree_get
  return get(state.opt_state, 'mu'), get(state.opt_state, 'nu')


def types(tree):
  return {x.dtype.name for x in jax.tree.leaves(tree)}


def with_float32_mu(state):
  """Every bfloat16 is a float32."""
  mu = jax.tree.map(lambda x: x.astype(np.float32), moments(state)[0])
  opt_state = optax.tree_utils.tree_set(state.opt_state, mu=mu)
  return state.replace(opt_state=opt_state)


@pytest.fixture(scope='module')
def straight(tmp_path_factory, on_one_device):
  """The run without a stop."""
  workdir = tmp_path_factory.mktemp('straight')
  with on_one_device():
    pretrain.run(make_config(), workdir)
  return workdir


@pytest.fixture(scope='module')
def trained(straight, on_one_device):
  with on_one_device():
    return params(make_config(), straight)


@pytest.fixture
def half(straight, tmp_path):
  """The same after 4 steps."""
  shutil.copytree(straight, tmp_path / 'half')
  shutil.rmtree(tmp_path / 'half/checkpoints/8')
  return tmp_path / 'half'


def test_it_goes_on_bit_for_bit(straight, trained, half, one_device):
  mu, nu = moments(trained)
  assert types(mu) == {'bfloat16'}
  assert types((nu, trained.params, trained.target)) == {'float32'}
  assert max(np.abs(x.astype(np.float32)).max() for x in jax.tree.leaves(mu))
  pretrain.run(make_config(), half)
  assert losses(half) == losses(straight)
  assert_same(params(make_config(), half), trained)


def test_another_type_is_refused(half, one_device):
  """In a sentence, also of a run of before the knob; nothing is written."""
  before = (half / 'config.json').read_bytes()
  wrong = make_config(**{'optim.mu_dtype': 'float32'})
  words = r'^optim\.mu_dtype is float32, and .* trained with bfloat16: set it'
  with pytest.raises(UserError, match=words):
    pretrain.run(wrong, half)
  assert (half / 'config.json').read_bytes() == before
  (half / 'config.json').unlink()
  words = r'opt_state/.*/mu/.* is bfloat16\[.* and float32\[.* in the model'
  with pytest.raises(UserError, match=words):
    pretrain.run(wrong, half)
  old = json.loads(before)
  del old['optim']['mu_dtype']
  (half / 'config.json').write_text(json.dumps(old))
  with pytest.raises(UserError, match=r'is bfloat16, .* trained with float32'):
    pretrain.run(make_config(), half)


def test_a_new_run_converts(straight, trained, tmp_path, one_device):
  """By init_optimizer: exactly to float32, and rounded from there."""
  changes = {'init_optimizer': True, 'total_steps': 9}
  exact, _ = begin(
    straight, make_config(**changes, **{'optim.mu_dtype': 'float32'})
  )
  assert_same(jax.device_get(exact), with_float32_mu(trained))
  same, _ = begin(straight, make_config(**changes))
  assert_same(jax.device_get(same), trained)
  mu, nu = moments(with_float32_mu(trained))
  mu = jax.tree.map(lambda x: np.float32(1.001) * x, mu)
  opt_state = optax.tree_utils.tree_set(trained.opt_state, mu=mu)
  wide = make_config(**{'optim.mu_dtype': 'float32'})
  write_config(tmp_path, wide.to_json_best_effort())
  with checkpointer.Checkpointer(tmp_path / 'checkpoints') as checkpoints:
    checkpoints.save(8, trained.replace(opt_state=opt_state))
  rounded, _ = begin(tmp_path, make_config(**changes))
  expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), mu)
  assert_same(jax.device_get(moments(rounded)), (expected, nu))


def test_exports(straight, trained, tmp_path, one_device):
  """To orbax as it is; what is read is float32, and so is a .pth.tar."""
  out = tmp_path / 'whole'
  assert 'bit-equal' in export.export(straight, out, 'orbax', optimizer=True)
  with checkpointer.Checkpointer(out / 'checkpoints') as checkpoints:
    assert_same(checkpoints.restore(trained)[0], trained)
  assert 'first moment in bfloat16' in (out / 'README.md').read_text()
  assert_same(params(make_config(), out), trained)
  optimizer = load.read_weights(out, optimizer=True).optimizer
  assert types((optimizer.mu, optimizer.nu)) == {'float32'}
  assert_same(
    [optimizer.mu, optimizer.nu], [*moments(with_float32_mu(trained))]
  )


def test_by_way_of_torch(straight, trained, tmp_path, one_device):
  torch = pytest.importorskip('torch')
  out = tmp_path / 'a.pth.tar'
  assert 'bit-equal' in export.export(straight, out, 'release', optimizer=True)
  file = torch.load(out, weights_only=True)
  kinds = {x['exp_avg'].dtype for x in file['opt']['state'].values()}
  assert kinds == {torch.float32}
  config = make_config(init_optimizer=True, total_steps=9)
  assert_same(jax.device_get(begin(out, config)[0]), trained)
  export.export(out, tmp_path / 'back', 'orbax', optimizer=True)
  back = load.read_weights(tmp_path / 'back', optimizer=True).optimizer
  assert_same([back.mu, back.nu], [*moments(with_float32_mu(trained))])
