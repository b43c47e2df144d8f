"""Claims about the step: what reaches what, and what it equals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ijepa_jax.errors import UserError
from ijepa_jax.methods import ijepa, train_step
from ijepa_jax.methods.optim import adamw, schedules
from ijepa_jax.models import vit
from tests.close import close, trees_close

B, GRID, P = 4, (4, 6), 4
RATE = schedules.linear(0.004, 0.0, 10)


def make(**kwargs):
  encoder, predictor = vit.make_models(
    size='tiny',
    width=32,
    depth=2,
    heads=4,
    patch_size=P,
    predictor_width=16,
    predictor_depth=2,
    init='fan_in',
  )
  model = ijepa.IJEPA(encoder, predictor, **{'ema_rate': RATE, **kwargs})
  tx = adamw.adamw(
    lr=schedules.warmup_cosine(1e-3, 1e-2, 1e-5, 2, 10),
    weight_decay=schedules.cosine(0.04, 0.4, 10),
  )
  return model, tx


def make_state(model, tx):
  @jax.jit
  def init(key):
    params = model.init_params(key, (GRID[0] * P, GRID[1] * P, 3))
    return train_step.init(model, tx, params)

  return init(jax.random.key(0))


def make_batch(contexts=1):
  r = np.random.default_rng(0)
  tokens = np.stack([r.permutation(24) for _ in range(B)]).astype(np.int32)
  return {
    'image': r.integers(0, 256, (B, 16, 24, 3)).astype(np.uint8),
    'context': np.sort(tokens[:, : 7 * contexts].reshape(B, contexts, 7), -1),
    'targets': np.sort(tokens[:, -8:].reshape(B, 2, 4), -1),
  }


def step_fn(model, tx, **kwargs):
  return jax.jit(
    functools.partial(train_step.train_step, method=model, tx=tx, **kwargs)
  )


@functools.partial(jax.jit, static_argnums=0)
def loss_and_grad(model, state, batch):
  (loss, metrics), grad = jax.value_and_grad(model.loss, has_aux=True)(
    state.params, state.target, batch
  )
  return loss, grad, metrics


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_target_starts_as_a_copy():
  state = make_state(*make())
  assert_same(state.target, state.params['encoder'])


def test_no_gradient_reaches_the_target():
  """The loss depends on the target's parameters, but no gradient is taken."""
  model, tx = make()
  state, batch = make_state(model, tx), make_batch()
  out = loss_and_grad(model, state, batch)
  assert set(out[1]) == {'encoder', 'predictor'}
  # With the targets given as constants the gradient is the same: nothing of it
  # came through them.
  y, _ = model.targets(state.target, batch['image'], batch['targets'])
  y = np.asarray(y)

  def loss(params):
    predictions = model.predict(
      params, batch['image'], batch['context'], batch['targets']
    )
    return model.distance(predictions, y)

  grad = jax.jit(jax.grad(loss))(state.params)
  trees_close(grad, out[1])
  # And the target moves by the average alone, even where the rate is zero.
  model = dataclasses.replace(model, ema_rate=lambda s: 0.0 * s)
  still = step_fn(model, tx)(state, batch)[0]
  assert_same(still.target, state.target)


def test_no_target_pixel_reaches_the_predictor():
  """Perturb every patch outside the context: predictions are unchanged."""
  model, tx = make()
  state, batch = make_state(model, tx), make_batch()
  predictions = model.predict(
    state.params, batch['image'], batch['context'], batch['targets']
  )
  image = batch['image'].copy()
  for b in range(B):
    for t in set(range(24)) - set(batch['context'][b].ravel()):
      row, column = divmod(t, GRID[1])
      image[b, row * P : row * P + P, column * P : column * P + P] ^= 255
  changed = model.predict(
    state.params, image, batch['context'], batch['targets']
  )
  np.testing.assert_array_equal(predictions, changed)
  # While a context pixel does reach it, and a target pixel the target.
  t = batch['context'][0, 0, 0]
  image = batch['image'].copy()
  image[0, t // GRID[1] * P, t % GRID[1] * P] ^= 255
  seen = model.predict(state.params, image, batch['context'], batch['targets'])
  assert np.abs(seen[0] - predictions[0]).max() > 1e-4
  np.testing.assert_array_equal(seen[1:], predictions[1:])


def test_targets_are_layer_normed_full_image_features():
  model, tx = make()
  state, batch = make_state(model, tx), make_batch()
  y, h = model.targets(state.target, batch['image'], batch['targets'])
  assert h.shape == (B, 24, 32)
  close(np.mean(y, -1), 0, scale=1)
  close(np.std(y, -1), 1, 1e-4)  # LayerNorm adds an epsilon
  raw, h = make(normalize_targets=False)[0].targets(
    state.target, batch['image'], batch['targets']
  )
  np.testing.assert_array_equal(raw[1, 1, 2], h[1, batch['targets'][1, 1, 2]])


def test_ema():
  """target <- m target + (1 - m) encoder, after the update, m from step 0."""
  # A hundred times the usual rate, to be seen above rounding.
  model, tx = make(ema_rate=schedules.linear(0.4, 0.0, 10))
  state, batch = make_state(model, tx), make_batch()
  step = step_fn(model, tx)
  for s in range(3):
    m = 0.6 + s * 0.04
    before = jax.device_get(state.target)
    state, metrics = step(state, batch)
    close(metrics['momentum'], m)
    expected = jax.tree.map(
      lambda t, e, m=m: m * t + (1 - m) * e, before, state.params['encoder']
    )
    trees_close(state.target, expected)
  assert state.step == 3


def moments(state):
  return optax.tree_utils.tree_get(state.opt_state, 'mu')


@pytest.mark.parametrize('accumulate', [2, 4])
def test_accumulation_equals_the_whole_batch(accumulate):
  model, tx = make()
  state, batch = make_state(model, tx), make_batch()
  whole, metrics = step_fn(model, tx)(state, batch)
  parts, other = step_fn(model, tx, accumulate=accumulate)(state, batch)
  for name in 'loss', 'grad_norm':
    close(metrics[name], other[name])
  # The first moment is a tenth of the gradient; what AdamW makes of elements
  # near zero is as good as random.
  trees_close(moments(parts), moments(whole))


def test_several_contexts():
  """Two contexts: the loss is the mean of each alone."""
  model, tx = make()
  state, batch = make_state(model, tx), make_batch(contexts=2)
  both, *_ = loss_and_grad(model, state, batch)
  alone = [
    loss_and_grad(
      model, state, batch | {'context': batch['context'][:, e : e + 1]}
    )[0]
    for e in range(2)
  ]
  close(both, np.mean(alone))


def test_losses():
  predictions = jnp.array([0.5, 3.0]).reshape(1, 1, 1, 1, 2)
  targets = jnp.zeros((1, 1, 1, 2))
  smooth = make()[0].distance(predictions, targets)
  close(smooth, (0.125 + 2.5) / 2)
  l2 = make(loss_kind='l2')[0].distance(predictions, targets)
  close(l2, (0.25 + 9) / 2)
  with pytest.raises(UserError, match=r"'l1'.*smooth_l1"):
    make(loss_kind='l1')


def test_pixels_are_normalised_on_the_device():
  model, _ = make()
  white = model.normalize(jnp.full((1, 1, 1, 3), 255, jnp.uint8))
  close(white[0, 0, 0], (1 - np.array(vit.IMAGENET_MEAN)) / vit.IMAGENET_STD)
  image = jnp.ones((1, 1, 1, 3), jnp.float32)
  assert model.normalize(image) is image


def test_it_learns():
  """The loss on one batch falls: gradients point the right way."""
  model, tx = make()
  state, batch = make_state(model, tx), make_batch()
  step = step_fn(model, tx)
  losses = []
  for _ in range(10):
    state, metrics = step(state, batch)
    losses.append(float(metrics['loss']))
  assert losses[-1] < 0.9 * losses[0]


def test_masked_input():
  """Each block by itself: cut out, encoded, normed, in a loop."""
  model, tx = make(mask_input=True)
  state, batch = make_state(model, tx), make_batch()
  index = batch['targets']

  @jax.jit
  def encode(image, tokens):
    # What is not of the block is not even there: zeros, which are not encoded.
    image = model.normalize(image[None])
    return model.encoder.apply({'params': state.target}, image, tokens[None])[0]

  def plain(images):
    rows = []
    for image, blocks in zip(images, index, strict=True):
      for tokens in blocks:
        seen = np.zeros(24, bool)
        seen[tokens] = True
        seen = seen.reshape(GRID).repeat(P, 0).repeat(P, 1)
        h = np.float64(encode(image * seen[..., None], tokens))
        h = h - h.mean(-1, keepdims=True)
        rows.append(h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-5))
    return np.reshape(rows, (*index.shape, 32))

  y, h = jax.jit(model.targets)(state.target, batch['image'], index)
  expected = plain(batch['image'])
  close(y, expected)
  assert h.shape == (B, 8, 32)
  predictions = jax.jit(model.predict)(
    state.params, batch['image'], batch['context'], index
  )

  def distance(y):
    error = np.abs(np.float64(predictions) - y[:, None])
    return np.where(error < 1, error**2 / 2, error - 0.5).mean()

  loss, *_ = loss_and_grad(model, state, batch)
  close(loss, distance(expected))
  found = jax.jit(model.signals)(state.params, state.target, h, batch)
  close(found['loss'], loss)
  other = distance(plain(np.roll(batch['image'], 1, axis=0)))
  close(found['gap_share'], (other - loss) / other, scale=1)
