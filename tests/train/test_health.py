"""Signals whose values are known, and alarms that ring when they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ijepa_jax.methods import ijepa, masks
from ijepa_jax.models import vit
from ijepa_jax.probes import statistics
from ijepa_jax.train import health
from tests.close import close


def make_model():
  models = vit.make_models(
    size='tiny',
    width=32,
    depth=2,
    heads=2,
    patch_size=4,
    predictor_width=16,
    predictor_depth=1,
    init='fan_in',
  )
  return ijepa.IJEPA(*models)


def make_batch(n=24):
  sampler = masks.make_sampler(
    'uniform',
    grid=(4, 4),
    num_targets=1,
    target_scale=(0.3, 0.3),
    target_aspect=(1.0, 1.0),
    min_keep=2,
  )
  rows = [sampler(0, 0, i) for i in range(n)]
  r = np.random.default_rng(0)
  return {
    'image': r.integers(0, 256, (n, 16, 16, 3), np.uint8),
    'context': np.stack([row[0] for row in rows]),
    'targets': np.stack([row[1] for row in rows]),
  }


@pytest.fixture(scope='module')
def setting():
  model, batch = make_model(), make_batch()
  params = jax.jit(lambda key: model.init_params(key, (16, 16, 3)))(
    jax.random.key(0)
  )
  run = jax.jit(lambda p, t, b: health.signals(model, p, t, b))
  return model, params, batch, run


def test_signals_by_their_definitions(setting):
  model, params, batch, run = setting
  target = params['encoder']
  found = jax.device_get(run(params, target, batch))
  h = np.asarray(jax.jit(model.encode)(target, batch['image']), np.float64)
  x = h.mean(1)
  close(found['rankme'], statistics.rankme(x), 1e-3)  # of all the small values
  close(found['rankme_share'] * 24, found['rankme'])
  close(found['feature_std'], x.std(0).mean(), scale=np.abs(x).max())

  def cosines(rows):
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return (unit @ unit.T)[np.triu_indices(len(rows), 1)].mean()

  close(found['image_cosine'], cosines(x), scale=1)
  tokens = np.mean([cosines(rows) for rows in h])
  close(found['token_cosine'], tokens, scale=1)

  def loss(images):
    y, _ = model.targets(target, images, batch['targets'])
    z = model.predict(
      params, batch['image'], batch['context'], batch['targets']
    )
    return float(model.distance(z, y))

  own = loss(batch['image'])
  other = loss(np.roll(batch['image'], 1, axis=0))
  close(found['loss'], own)
  close(found['gap'], other - own, scale=own)


@pytest.mark.parametrize('rank', [1, 3, 8])
def test_rankme_of_known_rank(rank):
  r = np.random.default_rng(0)
  q = np.linalg.qr(r.normal(size=(64, rank)))[0]
  p = np.linalg.qr(r.normal(size=(16, rank)))[0]
  close(statistics.rankme(q @ p.T), rank, 1e-3)


def test_healthy_values_ring_nothing():
  values = {'rankme_share': 0.4, 'feature_std': 0.4, 'token_cosine': 0.5}
  assert health.alarms(values | {'gap_share': 0.5}, ijepa.IJEPA) == {}


def test_collapse_rings(setting):
  """Features that don't depend on the image, and tokens all alike."""
  model, params, batch, run = setting
  # Position only: patches are not looked at.
  blind = jax.tree.map(jnp.copy, params['encoder'])
  blind['patch_embed'] = jax.tree.map(jnp.zeros_like, blind['patch_embed'])
  found = jax.device_get(run(params, blind, batch))
  rung = health.alarms(found, model)
  assert {'gap_share', 'rankme_share', 'feature_std'} == set(rung)
  assert 'positional collapse' in rung['gap_share']
  assert 'below 0.05' in rung['gap_share']
  # A constant: the last norm gives its offset only.
  constant = jax.tree.map(jnp.copy, params['encoder'])
  constant['norm'] = {'scale': jnp.zeros(32), 'bias': jnp.arange(32.0)}
  rung = health.alarms(jax.device_get(run(params, constant, batch)), model)
  assert {'token_cosine', 'feature_std', 'rankme_share'} <= set(rung)


def test_what_is_no_number_rings():
  values = dict.fromkeys(
    ('rankme_share', 'feature_std', 'token_cosine', 'gap_share'), np.nan
  )
  assert len(health.alarms(values, ijepa.IJEPA)) == 4
