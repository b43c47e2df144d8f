"""VICReg and SIGReg as a method: one step, on one device and on eight."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ijepa_jax.errors import UserError
from ijepa_jax.methods import train_step, vicreg, view_losses
from ijepa_jax.methods.optim import adamw
from ijepa_jax.models import projector, vit
from ijepa_jax.runtime import sharding
from tests.close import close

B, V, SHAPE = 16, 2, (8, 12, 3)
SIGREG = {'regularizer': 'sigreg', 'sigreg': 0.1, 'slices': 16}


def make(**changes):
  encoder, _ = vit.make_models(
    size='tiny',
    width=32,
    depth=1,
    heads=4,
    patch_size=4,
    predictor_depth=1,
    init='fan_in',
  )
  method = vicreg.VICReg(encoder, projector.Projector((24, 20, 16)), **changes)
  tx = adamw.adamw(lr=lambda step: 1e-3, weight_decay=lambda step: 0.0)
  return method, tx


def make_state(method, tx):
  @jax.jit
  def init(key):
    return train_step.init(method, tx, method.init_params(key, SHAPE))

  return init(jax.random.key(0))


def make_batch(views=V):
  """Views that differ less than images do."""
  r = np.random.default_rng(0)
  images = r.integers(0, 200, (B, 1, *SHAPE))
  images = images + r.integers(0, 56, (B, views, *SHAPE))
  return {'image': images.astype(np.uint8)}


def step_fn(method, tx):
  step = functools.partial(train_step.train_step, method=method, tx=tx)
  return jax.jit(step)


def loss_and_grad(method):
  return jax.jit(jax.value_and_grad(method.loss, has_aux=True))


@functools.partial(jax.jit, static_argnums=0)
def embeddings(method, state, batch):
  """Each view encoded by itself."""
  views = jnp.moveaxis(batch['image'], 1, 0)
  x_VBD = jnp.stack(
    [method.encode(state.params['encoder'], view).mean(1) for view in views]
  )
  return method.project(state.params['projector'], x_VBD)


def test_no_target_follows():
  """And the projector keeps no averages: a step changes parameters alone."""
  state = make_state(*make())
  assert state.target is None and set(state.params) == {'encoder', 'projector'}
  names = {
    path[-1].key
    for path, _ in jax.tree_util.tree_leaves_with_path(
      state.params['projector']
    )
  }
  assert names == {'kernel', 'scale', 'bias'}
  state, metrics = step_fn(*make())(state, make_batch())
  assert state.target is None and 'momentum' not in metrics


def test_the_projector():
  """Linear, BatchNorm of each view, ReLU, linear."""
  x = np.random.default_rng(0).normal(size=(V, B, 8)).astype(np.float32)
  model = projector.Projector((6, 4))
  params = model.init(jax.random.key(0), x)['params']
  params['norm1'] = {
    'scale': np.linspace(1, 2, 6, dtype=np.float32),
    'bias': np.linspace(-1, 1, 6, dtype=np.float32),
  }
  expected = []
  for view in x.astype(np.float64):
    h = view @ np.asarray(params['fc1']['kernel'], np.float64)
    h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)
    h = h * params['norm1']['scale'] + params['norm1']['bias']
    expected.append(np.maximum(h, 0) @ params['fc2']['kernel'])
  close(model.apply({'params': params}, x), np.stack(expected))


@pytest.mark.parametrize('views', [2, 3])
def test_the_loss_is_the_weighted_sum_of_its_terms(views):
  method, tx = make(weights=(2.0, 3.0, 5.0), num_views=views)
  state, batch = make_state(method, tx), make_batch(views)
  z = embeddings(method, state, batch)
  (loss, metrics), _ = loss_and_grad(method)(state.params, None, batch, None)
  names = 'invariance', 'variance', 'covariance'
  terms = [getattr(view_losses, name)(z) for name in names]
  close([metrics[f'loss/{name}'] for name in names], terms)
  close(loss, np.dot((2, 3, 5), terms))
  close(metrics['view_share'], view_losses.spread(z) / z.var((0, 1)).mean())

  method, key = make(**SIGREG)[0], jax.random.key(3)
  (loss, _), _ = loss_and_grad(method)(state.params, None, batch, key)
  directions = view_losses.directions(key, 16, 16)
  close(
    loss,
    0.9 * view_losses.spread(z) + 0.1 * view_losses.sigreg(z, directions),
  )


@pytest.mark.parametrize('changes', [{}, SIGREG])
def test_eight_devices_equal_one(changes, cpus):
  """The loss of the whole batch and its gradient: BatchNorm, too, sees all."""
  method, tx = make(**changes)
  state, key = jax.device_get(make_state(method, tx)), jax.random.key(3)
  results = []
  for devices in cpus[:1], cpus:
    mesh = sharding.make_mesh(devices=devices)
    batch = {
      'image': sharding.shard_rows(make_batch()['image'], mesh, np.uint8)
    }
    (loss, metrics), grad = loss_and_grad(method)(
      state.params, None, batch, key
    )
    results.append(jax.device_get((loss, metrics, grad)))
  (one, metrics_one, grad_one), (eight, metrics_eight, grad_eight) = results
  close(eight, one, 1e-5)
  for name, value in metrics_one.items():
    close(metrics_eight[name], value, 1e-5, name=name)
  # Some are zero but for rounding: BatchNorm takes any offset away.
  scale = max(abs(x).max() for x in jax.tree.leaves(grad_one))
  for x, y in zip(*map(jax.tree.leaves, (grad_eight, grad_one)), strict=True):
    close(x, y, 1e-5, scale=scale)


@pytest.mark.parametrize('changes', [{}, SIGREG])
def test_it_learns(changes):
  """The loss falls, and views of an image come nearer to each other."""
  method, tx = make(**changes)
  state, batch = make_state(method, tx), make_batch()
  step, seen = step_fn(method, tx), []
  for _ in range(30):
    state, metrics = step(state, batch)
    seen.append(metrics)
  assert seen[-1]['loss'] < 0.9 * seen[0]['loss']
  assert seen[-1]['view_share'] < seen[0]['view_share']
  assert np.isfinite(seen[-1]['grad_norm/projector'])


def test_directions_are_those_of_the_step():
  """A step that is made again draws the same; the next one others."""
  method, tx = make(**SIGREG)
  state, batch = make_state(method, tx), make_batch()
  step = step_fn(method, tx)
  first, again = (step(state, batch)[1]['loss/sigreg'] for _ in range(2))
  other = step(dataclasses.replace(state, step=state.step + 1), batch)[1]
  assert first == again != other['loss/sigreg']


def test_signals():
  """They tell embeddings that are spread from those that have collapsed."""
  method, tx = make()
  state = make_state(method, tx)
  h_BND = np.random.default_rng(0).normal(size=(B, 6, 32)).astype(np.float32)
  healthy = method.signals(state.params, None, h_BND, None)
  assert set(healthy) == set(method.signal_names)
  z = method.project(state.params['projector'], h_BND.mean(1)[None])[0]
  close(healthy['embedding_std'], np.std(z, 0).mean())
  c = np.corrcoef(np.asarray(z, np.float64).T)
  off_diagonal = c[~np.eye(len(c), dtype=bool)]
  close(
    healthy['embedding_correlation'], np.sqrt((off_diagonal**2).mean()), 1e-4
  )
  same = method.signals(state.params, None, 0 * h_BND, None)
  assert same['embedding_std'] < 1e-3
  kernel = state.params['projector']['fc3']['kernel']
  state.params['projector']['fc3']['kernel'] = 0 * kernel + kernel[:, :1]
  one = method.signals(state.params, None, h_BND, None)
  close(one['embedding_correlation'], 1, 1e-3)


def test_an_unknown_regularizer():
  with pytest.raises(UserError, match=r'vicreg\.regularizer.*, sigreg\.'):
    make(regularizer='barlow')


def test_projector_gathers_no_images_of_other_devices(cpus):
  """Each device computes with the images of its own; gradients are summed."""
  mesh = jax.sharding.Mesh(cpus, ('data',))
  of_images = NamedSharding(mesh, PartitionSpec(None, 'data'))
  on_all = NamedSharding(mesh, PartitionSpec())
  module, x_VBD = projector.Projector((24, 20, 16)), jnp.ones((V, B, 32))
  params = module.init(jax.random.key(0), x_VBD)

  def loss(params, x_VBD):
    return (module.apply(params, x_VBD) ** 2).sum()

  gradient = jax.jit(jax.grad(loss, (0, 1)), in_shardings=(on_all, of_images))
  program = gradient.lower(params, x_VBD).compile().as_text()
  assert 'all-reduce' in program and 'all-gather' not in program
