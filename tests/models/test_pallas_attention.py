"""The TPU kernels of attention, interpreted, beside XLA's attention."""

import functools

import jax
import jax.numpy as jnp
import pytest

from ijepa_jax.errors import UserError
from ijepa_jax.models import functions, kernel_check, pallas_attention, vit
from ijepa_jax.runtime import sharding
from tests.close import close


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
  """A program of two images in place of eight, whose code is as much longer."""
  monkeypatch.setattr(pallas_attention, 'IMAGES', 2)


interpreted = functools.partial(pallas_attention.attention, interpret=True)


def arrays(b, t, width, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(t))
  qkv = jax.random.normal(keys[0], (b, t, 3 * width), dtype)
  return qkv, jax.random.normal(keys[1], (b, t, width), dtype)


def with_gradient(attention, qkv, dy):
  y, back = jax.vjp(attention, qkv)
  return y, *back(dy)


@pytest.mark.parametrize(
  ('heads', 'features', 'dtype', 'room'),
  [
    (4, 32, 'float32', 2**20),  # of a register
    (2, 64, 'bfloat16', 2**20),
    (16, 24, 'float32', 2**20),  # over the border of registers
    (8, 80, 'bfloat16', 2**10),  # a program of one image
    (16, 80, 'float32', 2**20),  # two groups of several registers
  ],
)
def test_kernels_are_attention_and_its_gradient(
  monkeypatch, heads, features, dtype, room
):
  monkeypatch.setattr(pallas_attention, 'ROOM', room)
  qkv, dy = arrays(3, 13, heads * features, dtype)  # two images, and one
  if dtype == 'float32':
    qkv *= 10  # logits whose exponentials overflow
  kernel = with_gradient(lambda x: interpreted(x, heads), qkv, dy)
  exact = with_gradient(
    lambda x: functions.attention(x, heads, 'xla'),
    *(x.astype(jnp.float32) for x in (qkv, dy)),
  )
  for a, b in zip(kernel, exact, strict=True):
    assert a.dtype == dtype
    close(a.astype(jnp.float32), b, 1e-4 if dtype == 'float32' else 2e-2)


@pytest.mark.parametrize('b', [16, 11])
def test_each_device_computes_its_rows(cpus, b):
  mesh = sharding.make_mesh(fsdp=4, devices=cpus)
  qkv, dy = arrays(b, 7, 128)
  exact = with_gradient(lambda x: functions.attention(x, 4, 'xla'), qkv, dy)
  if b == 16:
    rows = sharding.batch_sharding(mesh)
    qkv, dy = jax.device_put((qkv, dy), rows)
  with sharding.gathering(mesh):
    compiled = jax.jit(
      functools.partial(with_gradient, lambda x: interpreted(x, 4))
    )
    results = compiled(qkv, dy)
    text = compiled.lower(qkv, dy).compile().as_text()
  for x, expected in zip(results, exact, strict=True):
    close(x, expected, 1e-5)
    assert x.sharding.shard_shape(x.shape)[0] == (2 if b == 16 else b)
  assert 'all-gather' not in text and 'all-reduce' not in text


def model(attention):
  return vit.make_models(
    size='tiny',
    patch_size=4,
    width=128,
    depth=1,
    heads=4,
    predictor_width=128,
    predictor_depth=1,
    predictor_heads=2,
    attention=attention,
  )


def test_a_model_with_them(monkeypatch):
  monkeypatch.setattr(pallas_attention, 'attention', interpreted)
  images = jax.random.normal(jax.random.key(0), (3, 16, 16, 3))
  (exact, _), (kernel, _) = (model(x) for x in ('xla', 'pallas'))
  params = exact.init(jax.random.key(1), images)
  again = kernel.init(jax.random.key(1), images)
  jax.tree.map(lambda a, b: close(a, b, 0), again, params)

  weights = jax.random.normal(jax.random.key(2), (3, 16, 128))

  def loss(params, encoder):
    return (encoder.apply(params, images) * weights).sum()

  grad = jax.jit(jax.grad(loss), static_argnums=1)
  exact, kernel = (grad(params, x) for x in (exact, kernel))
  jax.tree.map(lambda a, b: close(a, b, 1e-4), kernel, exact)


def test_widths_that_do_not_fill_registers():
  with pytest.raises(UserError, match=r'model\.width 192: .*multiples of 128'):
    vit.make_models(
      size='tiny', patch_size=4, predictor_depth=1, attention='pallas'
    )


class Method:
  encoder, predictor = model('pallas')


def test_checked_where_it_runs(monkeypatch):
  kernel_check.check_attention(Method, interpret=True)
  wrong = lambda x, *_: 1.1 * functions.attention(x, 4, 'xla')  # noqa: E731
  monkeypatch.setattr(pallas_attention, 'attention', wrong)
  with pytest.raises(UserError, match=r"encoder's kernel .*by 0\.1 of"):
    kernel_check.check_attention(Method)
  none = lambda x, *_: jnp.nan * functions.attention(x, 4, 'xla')  # noqa: E731
  monkeypatch.setattr(pallas_attention, 'attention', none)
  with pytest.raises(UserError, match='by nan'):
    kernel_check.check_attention(Method)
