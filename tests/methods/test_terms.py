"""What may be added to I-JEPA; off, nothing of it is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from ijepa_jax.errors import UserError
from ijepa_jax.methods import from_config, view_losses
from tests.close import FLOAT64, close, trees_close
from tests.methods.test_ijepa import (
  assert_same,
  loss_and_grad,
  make,
  make_batch,
  make_state,
)

KEY = jax.random.key(5)


def loss_with_key(model, state, batch, key):
  (loss, metrics), grad = jax.jit(jax.value_and_grad(model.loss, has_aux=True))(
    state.params, state.target, batch, key
  )
  return loss, grad, metrics


def test_off_the_key_has_no_say():
  model, tx = make()
  state, batch = make_state(model, tx), make_batch()
  without, grad, metrics = loss_and_grad(model, state, batch)
  with_key, other, _ = loss_with_key(model, state, batch, KEY)
  assert without == with_key
  assert_same(grad, other)
  assert set(metrics) == {'feature_std', 'token_std'}


# ---- Variance and covariance of contexts (C-JEPA) ----


def plain_terms(z):
  """(variance, covariance) of tokens float64 [B, E, K, D], one by one."""
  b, e, _, d = z.shape
  variance = covariance = 0.0
  for context in range(e):
    x = z[:, context].mean(1)  # [B, D]
    centered = x - x.mean(0)
    for i in range(d):
      std = np.sqrt((centered[:, i] ** 2).sum() / (b - 1) + 1e-4)
      variance += max(0.0, 1 - std) / d / e
      for j in range(d):
        if i != j:
          product = (centered[:, i] * centered[:, j]).sum() / (b - 1)
          covariance += product**2 / d / e
  return variance, covariance


@pytest.mark.parametrize('contexts', [1, 2])
def test_variance_and_covariance_are_the_plain_ones(contexts):
  """In float64, and their gradient is that of differences."""
  r = np.random.default_rng(0)
  z = r.normal(size=(6, contexts, 3, 5)) * r.uniform(0.5, 3, 5)
  direction = r.normal(size=z.shape)
  with jax.enable_x64(True):
    for i, name in enumerate(('variance_term', 'covariance_term')):

      def term(z, name=name):
        return view_losses.of_contexts(z)[name]

      value, grad = jax.value_and_grad(term)(jnp.asarray(z))
      close(value, plain_terms(z)[i], FLOAT64)
      step = 1e-5
      ends = [plain_terms(z + s * direction)[i] for s in (step, -step)]
      slope = (ends[0] - ends[1]) / (2 * step)
      close((np.asarray(grad) * direction).sum(), slope, 1e-6)


def test_the_terms_are_added_with_their_weights():
  plain, tx = make()
  weighted, _ = make(variance=0.5, covariance=2.0)
  state, batch = make_state(plain, tx), make_batch(contexts=2)
  loss, grad, _ = loss_and_grad(plain, state, batch)
  sum_, other, metrics = loss_and_grad(weighted, state, batch)
  variance, covariance = metrics['variance_term'], metrics['covariance_term']
  assert variance > 0 and covariance > 0
  close(sum_, loss + 0.5 * variance + 2 * covariance)
  # They are of the context encoder alone.
  trees_close(other['predictor'], grad['predictor'])
  blocks = [jax.tree.leaves(g['encoder'])[0] for g in (grad, other)]
  assert np.abs(blocks[0] - blocks[1]).max() > 0


def test_the_terms_are_of_the_batch_that_is_not_cut():
  config = tiny.get_config()
  config.accumulate, config.loss.covariance = 2, 1.0
  with pytest.raises(UserError, match=r'accumulate is 2, and loss\.variance'):
    from_config.make_method(config, 10)


# ---- Stochastic positions (StoP) ----


def test_noise_has_its_variance_and_follows_the_key():
  model, _ = make(position_noise=0.25)
  noise = np.asarray(model.noise(KEY, (40, 5, 10)))
  assert noise.shape == (40, 5, 10, 32)
  close(noise.var(), 0.25, 0.02)
  assert_same(noise, model.noise(KEY, (40, 5, 10)))
  assert (noise != model.noise(jax.random.key(6), (40, 5, 10))).all()
  assert model.noise(None, (40, 5, 10)) is None
  assert make()[0].noise(KEY, (40, 5, 10)) is None


def test_noise_moves_positions_by_the_matrix_of_the_context():
  """The same for all tokens, it is as if the mask token were another one."""
  model, tx = make()
  params, batch = make_state(model, tx).params['predictor'], make_batch()
  r = np.random.default_rng(0)
  z = r.normal(size=(4, 7, 32)).astype(np.float32)
  n = r.normal(size=32).astype(np.float32)
  noise = np.broadcast_to(n, (*batch['targets'].shape, 32))

  @jax.jit
  def apply(params, noise=None):
    return model.predictor.apply(
      {'params': params},
      z,
      batch['context'][:, 0],
      batch['targets'],
      (4, 6),
      noise,
    )

  moved = dict(params)
  moved['mask_token'] = params['mask_token'] + n @ params['embed']['kernel']
  close(apply(params, noise), apply(moved))
  assert np.abs(apply(params, noise) - apply(params)).max() > 1e-3


def test_noise_is_of_the_loss_and_not_of_signals():
  plain, tx = make()
  noisy, _ = make(position_noise=1.0)
  state, batch = make_state(plain, tx), make_batch()
  without = loss_and_grad(plain, state, batch)[0]
  one, other = (
    loss_with_key(noisy, state, batch, jax.random.key(i))[0] for i in range(2)
  )
  assert len({float(without), float(one), float(other)}) == 3
  _, h_BND = plain.targets(state.target, batch['image'], batch['targets'])
  assert_same(
    *(
      m.signals(state.params, state.target, h_BND, batch)
      for m in (plain, noisy)
    )
  )


# ---- Targets of several layers (data2vec) ----


@pytest.mark.parametrize('normalize', [True, False])
def test_targets_are_averages_of_normed_blocks(normalize):
  model, tx = make(target_layers=2, normalize_targets=normalize)
  state, batch = make_state(model, tx), make_batch()
  y, h = model.targets(state.target, batch['image'], batch['targets'])
  tokens, outputs = model.encode(state.target, batch['image'], layers='tokens')
  assert len(outputs) == 2
  close(h, tokens)

  def plain_norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(
      x.var(-1, keepdims=True) + 1e-5
    )

  expected = np.mean([plain_norm(np.float64(x)) for x in outputs[-2:]], 0)
  expected = plain_norm(expected) if normalize else expected
  for b in range(4):
    close(y[b], expected[b][batch['targets'][b]])


def test_signals_are_of_these_targets():
  """Their loss is the loss."""
  model, tx = make(target_layers=2)
  state, batch = make_state(model, tx), make_batch()
  loss, *_ = loss_and_grad(model, state, batch)
  h_BND = model.encode(state.target, batch['image'])
  found = model.signals(state.params, state.target, h_BND, batch)
  close(found['loss'], loss)


def test_more_layers_than_there_are():
  with pytest.raises(UserError, match=r'target_layers is 3: .* has 2 blocks'):
    make(target_layers=3)


def test_a_config_of_old_has_none_of_them():
  config = tiny.get_config()
  config.loss.target_layers = 2
  assert from_config.make_method(config).target_layers == 2
  for name in from_config.IJEPA_TERMS:
    del config.loss[name]
  assert from_config.make_method(config).target_layers == 1
