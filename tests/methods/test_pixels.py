"""Claims about the targets of pixels, of the ablation and of MAE."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, tiny
from ijepa_jax.errors import UserError
from ijepa_jax.methods import from_config, train_step
from ijepa_jax.methods.optim import adamw, schedules
from tests.close import close, trees_close
from tests.methods.test_ijepa import moments, step_fn

B, P, SIDE = 8, 8, 48  # images, pixels of a patch and of an image


def make(name, **changes):
  """A method on images of 6 x 6 patches, ready to train."""
  c = tiny.get_config()
  c.method, c.model.depth, c.model.width = name, 2, 32
  c.mask.num_targets = 2
  c.mask.target_scale = (0.25, 0.25)
  c.mask.min_keep = 4
  c.update_from_flattened_dict(changes)
  return from_config.make_method(c, 10)


def make_batch(model):
  r = np.random.default_rng(0)
  context, targets = zip(
    *(model.sampler(0, 0, row) for row in range(B)), strict=True
  )
  return {
    'image': r.integers(0, 256, (B, SIDE, SIDE, 3), np.uint8),
    'context': np.stack(context),
    'targets': np.stack(targets),
  }


@functools.cache
def make_params(model):
  init = jax.jit(lambda key: model.init_params(key, (SIDE, SIDE, 3)))
  return init(jax.random.key(1))


def plain_targets(image, index, mean, std, normalize=True):
  """The pixels that are to be predicted, one patch after the other."""
  rows = []
  for b in range(len(image)):
    x = (image[b].astype(np.float64) / 255 - mean) / std
    for t in index[b].ravel():
      row, column = divmod(int(t), SIDE // P)
      top, left = row * P, column * P
      patch = x[top : top + P, left : left + P].ravel()
      if normalize:
        deviations = patch - sum(patch) / len(patch)
        variance = sum(deviations**2) / (len(patch) - 1)
        patch = deviations / np.sqrt(variance + 1e-6)
      rows.append(patch)
  return np.stack(rows).reshape(*index.shape, -1)


def plain_loss_and_grad(predictions, y):
  """Of predictions [B, E, M, K, P] against y [B, M, K, P]."""
  error = predictions - y[:, None]
  return (error**2).sum() / error.size, 2 * error / error.size


@pytest.mark.parametrize('name', ['pixels', 'mae'])
@pytest.mark.parametrize('normalize', [True, False])
def test_loss_and_gradient_are_the_plain_ones(name, normalize):
  """In float64, of the images and of what is predicted of them."""
  model = make(name, **{'loss.normalize_targets': normalize})
  batch = make_batch(model)
  context, index = batch['context'], batch['targets']
  shape = *context.shape[:2], *index.shape[1:], 3 * P * P
  predictions = np.random.default_rng(1).normal(size=shape)
  mean, std = np.array(model.mean), np.array(model.std)
  y = plain_targets(batch['image'], index, mean, std, normalize)
  expected = plain_loss_and_grad(predictions, y)
  with jax.enable_x64(True):
    image = jnp.asarray((batch['image'] / 255 - mean) / std)
    assert image.dtype == jnp.float64

    def loss(predictions):
      return model.distance(predictions, model.targets(None, image, index)[0])

    actual = jax.value_and_grad(loss)(jnp.asarray(predictions))
  close(actual[0], expected[0], 1e-6)
  close(actual[1], expected[1], 1e-6)


@pytest.mark.parametrize('name', ['pixels', 'mae'])
def test_the_loss_is_of_what_the_networks_predict(name):
  """From bytes to the loss, and to the gradient of the last layer's bias."""
  model = make(name)
  params, batch = make_params(model), make_batch(model)
  (loss, metrics), grad = jax.jit(
    jax.value_and_grad(model.loss, has_aux=True), static_argnums=1
  )(params, None, batch)
  predictions = jax.jit(model.predict)(
    params, batch['image'], batch['context'], batch['targets']
  )
  y = plain_targets(
    batch['image'], batch['targets'], np.array(model.mean), np.array(model.std)
  )
  expected, slope = plain_loss_and_grad(np.float64(predictions), y)
  close(loss, expected)
  assert metrics == {}
  bias = grad['predictor']['proj']['bias']
  close(bias, slope.sum((0, 1, 2, 3)))


@pytest.mark.parametrize('name', ['pixels', 'mae'])
def test_no_hidden_pixel_reaches_the_predictions(name):
  model = make(name)
  params, batch = make_params(model), make_batch(model)
  seen = np.zeros((B, (SIDE // P) ** 2), bool)
  np.put_along_axis(seen, batch['context'][:, 0], True, axis=1)
  seen = seen.reshape(B, SIDE // P, SIDE // P).repeat(P, 1).repeat(P, 2)
  image = np.where(seen[..., None], batch['image'], batch['image'] ^ 255)
  predict = jax.jit(model.predict)
  one, other = (
    predict(params, x, batch['context'], batch['targets'])
    for x in (batch['image'], image)
  )
  np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
  'name', ['pixels', pytest.param('mae', marks=pytest.mark.slow)]
)
def test_accumulation_equals_the_whole_batch(name):
  model = make(name)
  tx = adamw.adamw(
    lr=schedules.warmup_cosine(1e-3, 1e-2, 1e-5, 2, 10),
    weight_decay=schedules.cosine(0.04, 0.4, 10),
  )
  state, batch = (
    train_step.init(model, tx, make_params(model)),
    make_batch(model),
  )
  assert state.target is None
  one, metrics = step_fn(model, tx)(state, batch)
  parts, other = step_fn(model, tx, accumulate=4)(state, batch)
  assert parts.target is None
  for key in 'loss', 'grad_norm':
    close(metrics[key], other[key])
  trees_close(moments(parts), moments(one))


@pytest.mark.parametrize('name', ['pixels', 'mae'])
def test_signals(name):
  """What is explained: all of it by the targets themselves, nothing by zero."""
  model = make(name)
  params, batch = make_params(model), make_batch(model)
  found = jax.jit(model.signals, static_argnums=1)(params, None, None, batch)
  assert set(found) == set(model.signal_names)
  loss, _ = jax.jit(model.loss, static_argnums=1)(params, None, batch)
  close(found['loss'], loss)
  # A last layer of zeros predicts the mean of each patch, which is zero.
  zeros = jax.tree.map(jnp.zeros_like, params['predictor']['proj'])
  params = params | {'predictor': params['predictor'] | {'proj': zeros}}
  blind = jax.jit(model.signals, static_argnums=1)(params, None, None, batch)
  assert abs(blind['explained']) < 0.05
  close(blind['loss'], 1, 0.01)  # less 1 / (numbers of a patch)


def test_a_patch_of_one_number_is_refused():
  changes = {'model.patch_size': 1, 'data.channels': 1}
  changes |= {'data.mean': (0.5,), 'data.std': (0.2,)}
  with pytest.raises(UserError, match='one number has no variance'):
    make('pixels', **changes)


# ---- MAE ----


def test_masks_of_mae():
  """75% hidden, all of the rest visible, others for each image and step."""
  model = make('mae')
  visible, hidden = model.sampler(0, 0, 0)
  assert visible.shape == (1, 9) and hidden.shape == (1, 27)
  assert sorted([*visible[0], *hidden[0]]) == list(range(36))
  counts = np.zeros(36)
  for step in range(40):
    for row in range(10):
      counts[model.sampler(0, step, row)[1][0]] += 1
  close(counts / 400, 0.75, within=0.12)  # 5 standard deviations
  assert make('mae', **{'mae.mask_ratio': 0.5}).sampler.shapes == ((18, 18),)


def test_the_published_decoder_is_the_default():
  config = base.get_config()
  config.method = 'mae'
  model = from_config.make_method(config, 10)
  d = model.predictor
  assert (d.width, d.depth, d.heads, d.mlp_dim) == (512, 8, 16, 2048)
  assert d.out_width == 16 * 16 * 3
  assert model.sampler.shapes == ((49, 147),)
  # And no knob of I-JEPA's predictor and masks has a say.
  config.model.predictor_depth, config.mask.num_targets = 3, 2
  assert from_config.make_method(config, 10) == model


def test_the_decoder_sees_all_tokens():
  """Every hidden patch is predicted from the visible and the hidden ones."""
  model = make('mae')
  params, batch = make_params(model), make_batch(model)
  predict = jax.jit(model.predict)
  whole = predict(params, batch['image'], batch['context'], batch['targets'])
  fewer = predict(
    params, batch['image'], batch['context'], batch['targets'][..., :-1]
  )
  assert np.abs(whole[..., :-1, :] - fewer).max() > 1e-4
  # In whatever order they come.
  r = np.random.default_rng(2).permutation(27)
  mixed = predict(
    params, batch['image'], batch['context'], batch['targets'][..., r]
  )
  close(mixed, np.asarray(whole)[..., r, :])


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'mae.decoder_width': 50, 'mae.decoder_heads': 4}, 'decoder_width is 50'),
    ({'mae.mask_ratio': 1.0}, r'mask_ratio is 1\.0.* some of 36 patches'),
    ({'mae.mask_ratio': 0.0}, r'mask_ratio is 0\.0'),
  ],
)
def test_mistakes(changes, words):
  with pytest.raises(UserError, match=words):
    make('mae', **changes)


def test_heads_of_the_decoder_have_their_own_name():
  settings = make('mae').settings()
  assert settings['mae.decoder_heads'] == 2
  assert 'model.predictor_heads' not in settings
  assert make('pixels').settings()['model.predictor_heads'] == 2


def test_a_method_is_hashable_and_static():
  model = make('mae')
  assert hash(model) == hash(dataclasses.replace(model))
