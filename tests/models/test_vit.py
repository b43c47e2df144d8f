"""Claims about encoder and predictor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ijepa_jax.errors import UserError
from ijepa_jax.models import positions, transformer, vit
from ijepa_jax.plan.flops import product_flops
from tests.close import BFLOAT16, close, trees_close


def small(**kwargs):
  return vit.make_models(
    **{
      'size': 'tiny',
      'width': 32,
      'depth': 3,
      'heads': 4,
      'patch_size': 4,
      'predictor_width': 16,
      'predictor_depth': 2,
      **kwargs,
    }
  )


def init(encoder, shape):
  image = jax.random.normal(jax.random.key(1), shape)
  return image, jax.jit(encoder.init)(jax.random.key(0), image)


@pytest.mark.parametrize('size', vit.SIZES)
def test_parameter_counts(size):
  """As ViTs of these sizes count without class token and head."""
  encoder, _ = vit.make_models(size=size, patch_size=16, predictor_depth=6)
  shapes = jax.eval_shape(
    encoder.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))
  )
  s = vit.SIZES[size]
  d, m = s['width'], s['mlp_dim']
  block = 4 * d * d + 4 * d + 2 * d * m + m + d + 4 * d
  expected = 16 * 16 * 3 * d + d + s['depth'] * block + 2 * d
  assert sum(x.size for x in jax.tree.leaves(shapes)) == expected


@pytest.mark.parametrize('shape', [(2, 16, 24, 3), (2, 12, 8, 1), (2, 8, 8, 5)])
def test_any_image_shape(shape):
  encoder, _ = small()
  image, params = init(encoder, shape)
  out = encoder.apply(params, image)
  assert out.shape == (2, shape[1] // 4 * shape[2] // 4, 32)
  assert out.dtype == jnp.float32


def test_table():
  table = positions.sincos_table((3, 5), 8)
  # Token 7 stands in row 1, column 2; the column comes first.
  w = 10000.0 ** -np.array([0, 0.5])
  close(
    table[7],
    np.concatenate([np.sin(2 * w), np.cos(2 * w), np.sin(w), np.cos(w)]),
  )


def test_positions_given():
  encoder, _ = small()
  image, params = init(encoder, (2, 8, 12, 3))
  apply = jax.jit(encoder.apply)
  table = positions.sincos_table((2, 3), 32)
  close(apply(params, image, position_ND=table), apply(params, image))
  # Also to a context: patches that change places with their positions.
  turned = image.reshape(2, 2, 4, 12, 3)[:, ::-1].reshape(image.shape)
  order = jnp.array([3, 4, 5, 0, 1, 2])
  close(
    apply(params, turned, jnp.tile(order, (2, 1)), position_ND=table[order]),
    apply(params, image),
  )


def test_patches_are_row_major():
  image = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
  patches = vit.patchify(image, 2)
  np.testing.assert_array_equal(patches[1, 4], image[1, 2:4, 2:4].reshape(-1))


def test_context_of_everything_is_the_full_image():
  encoder, _ = small()
  image, params = init(encoder, (2, 16, 24, 3))
  everything = jnp.tile(jnp.arange(24), (2, 1))
  close(encoder.apply(params, image, everything), encoder.apply(params, image))


def test_order_of_context_does_not_matter():
  encoder, _ = small()
  image, params = init(encoder, (1, 16, 16, 3))
  out = encoder.apply(params, image, jnp.array([[3, 9, 12]]))
  swapped = encoder.apply(params, image, jnp.array([[12, 3, 9]]))
  close(out[:, [2, 0, 1]], swapped)


def test_target_blocks_do_not_see_each_other():
  """A block's prediction is the same whatever other blocks are asked for."""
  _, predictor = small()
  z = jax.random.normal(jax.random.key(2), (2, 5, 32))
  context = jnp.tile(jnp.arange(5), (2, 1))
  targets = jnp.array([[[8, 9], [10, 11], [14, 15]]] * 2)
  params = predictor.init(jax.random.key(0), z, context, targets, (4, 4))
  together = predictor.apply(params, z, context, targets, (4, 4))
  alone = predictor.apply(params, z, context, targets[:, 1:2], (4, 4))
  assert together.shape == (2, 3, 2, 32)
  close(together[:, 1:2], alone)


def test_layers():
  encoder, _ = small()
  image, params = init(encoder, (2, 16, 16, 3))
  out, layers = encoder.apply(params, image, layers='tokens')
  assert layers.shape == (3, 2, 16, 32)
  close(out, encoder.apply(params, image))
  # Pooled while they stream by: what normalising and averaging them gives.
  affine = {'scale': jnp.linspace(0.5, 2, 32), 'bias': jnp.linspace(-1, 1, 32)}
  params['params']['norm'] = affine
  out, pooled = encoder.apply(params, image, layers='pooled')
  assert pooled.shape == (3, 2, 32)
  normed = nn.LayerNorm(1e-6).apply({'params': affine}, layers)
  close(pooled, normed.mean(2))
  close(pooled[-1], out.mean(1))


@pytest.mark.parametrize(
  'kwargs', [{'remat': 'dots'}, {'remat': 'full'}, {'unroll': 3}]
)
def test_remat_and_unroll_change_nothing(kwargs):
  encoder, _ = small()
  other, _ = small(**kwargs)
  image, params = init(encoder, (2, 16, 16, 3))

  def loss(params, module):
    return (module.apply(params, image) ** 3).mean()

  trees_close(jax.grad(loss)(params, encoder), jax.grad(loss)(params, other))


@pytest.mark.parametrize('depth', [1, 2])
def test_predictor_without_a_loop_computes_only_what_is_used(depth):
  """Its last block leaves the context's tokens out; nothing else changes."""
  key = jax.random.split(jax.random.key(2), 3)
  z = jax.random.normal(key[0], (2, 5, 32))
  context = jnp.tile(jnp.arange(5), (2, 1))
  targets = jnp.array([[[8, 9], [10, 11], [14, 15]]] * 2)
  rest = context, targets, (4, 4)
  (_, looped), (_, predictor) = (
    small(predictor_depth=depth, unroll=unroll) for unroll in (0, 2)
  )
  params = looped.init(key[1], z, *rest)

  def loss(params, z, module):
    return (module.apply(params, z, *rest) ** 3).mean()

  gradient = jax.grad(loss, argnums=(0, 1))
  trees_close(gradient(params, z, predictor), gradient(params, z, looped))

  def flops(module):
    jaxpr = jax.make_jaxpr(lambda *args: module.apply(*args, *rest))(params, z)
    return product_flops(jaxpr.jaxpr)

  assert flops(predictor) < flops(looped)


def test_parameters_are_drawn_in_a_loop():
  """Whatever `unroll` says of the steps; the first state compiles sooner."""
  image = jnp.zeros((1, 16, 16, 3))
  programs = {
    jax.jit(encoder.init).lower(jax.random.key(0), image).as_text()
    for encoder, _ in (small(), small(unroll=3))
  }
  assert len(programs) == 1


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
  encoder, _ = small(dtype='bfloat16')
  image, params = init(encoder, (2, 16, 16, 3))
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  out = encoder.apply(params, image)
  assert out.dtype == jnp.float32
  exact = small()[0].apply(params, image)
  close(out, exact, BFLOAT16)
  assert np.abs(out - exact).max() > 1e-6


def test_initialisations():
  kernels = {}
  for name in transformer.INITS:
    encoder, _ = small(init=name, width=64)
    _, params = init(encoder, (1, 8, 8, 3))
    kernels[name] = params['params']['blocks']['fc2']['kernel']
    assert not params['params']['blocks']['qkv']['bias'].any()
  close(np.std(kernels['release']), 0.02, 0.05)  # of a sample
  close(np.std(kernels['fan_in']), 256**-0.5, 0.05)


def test_rescaled_residuals():
  encoder, _ = small()
  _, params = init(encoder, (1, 8, 8, 3))
  rescaled = vit.rescale_residuals(params)
  factor = np.sqrt(2 * np.arange(1, 4))[:, None, None]
  for layer in 'proj', 'fc2':
    close(
      rescaled['params']['blocks'][layer]['kernel'] * factor,
      params['params']['blocks'][layer]['kernel'],
    )
  np.testing.assert_array_equal(
    params['params']['blocks']['fc1']['kernel'],
    rescaled['params']['blocks']['fc1']['kernel'],
  )


@pytest.mark.parametrize(
  ('kwargs', 'words'),
  [
    ({'size': 'vast'}, "'vast'.*giant"),
    ({'heads': 5}, '32.*5 heads'),
    ({'predictor_width': 18, 'predictor_heads': 1}, 'predictor.width is 18'),
    ({'remat': 'some'}, 'none, dots, full'),
    ({'dtype': 'float16'}, 'bfloat16'),
    ({'init': 'xavier'}, 'fan_in'),
  ],
)
def test_mistakes_are_told(kwargs, words):
  with pytest.raises(UserError, match=words):
    small(**kwargs)


def test_image_that_is_no_whole_number_of_patches():
  encoder, _ = small()
  with pytest.raises(UserError, match='17 x 16'):
    init(encoder, (1, 17, 16, 3))


@pytest.mark.parametrize('remat', transformer.REMAT)
@pytest.mark.parametrize('unroll', [1, 3])
def test_remat_waits_for_the_backward_pass(remat, unroll):
  """Without a loop a barrier keeps XLA from computing a block again early.

  What this saves is not seen here: XLA for CPUs removes the barrier. The
  planner shows it, of GPUs and TPUs (docs/performance.md).
  """
  encoder, _ = small(remat=remat, unroll=unroll)
  image, params = init(encoder, (2, 16, 16, 3))
  gradient = jax.jit(jax.grad(lambda p: encoder.apply(p, image).sum()))
  barred = 'optimization_barrier' in gradient.lower(params).as_text()
  assert barred == (remat != 'none' and unroll == 3)


def test_drop_path_is_off_unless_asked_for_and_alike_under_remat():
  image = jax.random.normal(jax.random.key(1), (8, 8, 8, 3))
  size = dict(width=16, depth=3, heads=2, patch_size=4, predictor_depth=1)

  def run(remat):
    encoder, _ = vit.make_models(size='tiny', remat=remat, **size)
    params = jax.jit(encoder.init)(jax.random.key(0), image)
    assert 'random' not in str(jax.make_jaxpr(encoder.apply)(params, image))

    def loss(params):
      rngs = {'drop_path': jax.random.key(2)}
      x = encoder.apply(params, image, drop_path=0.5, rngs=rngs)
      return (x**2 * jnp.arange(16)).mean()

    return jax.jit(jax.value_and_grad(loss))(params)

  # The backward pass draws again what the forward pass drew.
  trees_close(run('none'), run('full'))
