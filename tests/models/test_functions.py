"""Layers as functions beside float64 and those of JAX and Flax."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ijepa_jax.models import functions
from tests.close import close


def test_gelu_and_its_slope():
  x = np.linspace(-9, 9, 20_001).astype(np.float32)
  z = x.astype(np.float64)
  cdf = 0.5 * (1 + np.vectorize(math.erf)(z / 2**0.5))
  slope = cdf + z * np.exp(-0.5 * z**2) / (2 * math.pi) ** 0.5
  close(functions.gelu(x), z * cdf, 1e-6)
  close(jax.grad(lambda x: functions.gelu(x).sum())(x), slope, 1e-6)


def test_gelu_of_every_bfloat16():
  bits = jnp.arange(2**16, dtype=jnp.uint16)
  x = jax.lax.bitcast_convert_type(bits, jnp.bfloat16)
  x = x[jnp.isfinite(x)]
  z = np.asarray(x, np.float64)
  cdf = 0.5 * (1 + np.vectorize(math.erf)(z / 2**0.5))
  slope = cdf + z * np.exp(-0.5 * np.minimum(z**2, 1e3)) / (2 * math.pi) ** 0.5
  y = functions.gelu(x)
  gradient = jax.grad(lambda x: functions.gelu(x).astype(float).sum())(x)
  # Rounding, a third of it besides, and float32's of 1 - Phi(x) where it is 0.
  for result, exact, beside in (
    (y, z * cdf, 0),
    (gradient, slope, 1.2e-3 * cdf),
  ):
    assert result.dtype == jnp.bfloat16
    error = np.abs(np.asarray(result, np.float64) - exact)
    assert (error <= 4 / 3 * 2.0**-8 * np.abs(exact) + beside + 1e-6).all()


def layer_norm_of_flax(x, scale, bias):
  layer = nn.LayerNorm(1e-6, use_fast_variance=False)
  return layer.apply({'params': {'scale': scale, 'bias': bias}}, x)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_layer_norm_and_its_gradients_are_those_of_flax(dtype):
  keys = jax.random.split(jax.random.key(0), 4)
  x = (2 + jax.random.normal(keys[0], (3, 5, 24))).astype(dtype)
  scale, bias = (jax.random.normal(k, (24,)) for k in keys[1:3])
  dy = jax.random.normal(keys[3], x.shape)
  y, back = jax.vjp(functions.layer_norm, x, scale, bias)
  expected, back_of_expected = jax.vjp(layer_norm_of_flax, x, scale, bias)
  assert y.dtype == jnp.float32
  close(y, expected)
  for a, b in zip(back(dy), back_of_expected(dy), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape
    tolerance = 1e-2 if a.dtype == jnp.bfloat16 else 2e-5
    close(a.astype(jnp.float32), b.astype(jnp.float32), tolerance)


@pytest.mark.parametrize('offset', [0, 3, 30, 300])
def test_layer_norm_of_bfloat16_loses_less_than_its_rounding_has(offset):
  exact = offset + np.random.default_rng(0).normal(size=(64, 384))
  x = jnp.asarray(exact, jnp.bfloat16)
  y = functions.layer_norm(x, jnp.ones(384), jnp.zeros(384))

  def normed(x):
    z = x - x.mean(-1, keepdims=True)
    return z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-6)

  of_rounded = normed(np.asarray(x, np.float64))
  lost = np.abs(np.asarray(y) - of_rounded).max()
  assert lost < 0.1 * np.abs(of_rounded - normed(exact)).max()


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_linear_is_a_product_and_its_gradients(dtype, platform):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (2, 3, 5, 8), dtype)
  kernel = jax.random.normal(keys[1], (8, 4), dtype)
  dy = jax.random.normal(keys[2], (2, 3, 5, 4), dtype)
  product_dtype = functions.product_dtype(platform)
  y, back = jax.vjp(
    lambda *args: functions.linear(*args, product_dtype), x, kernel
  )
  expected, back_of_expected = jax.vjp(jnp.matmul, x, kernel)
  tolerance = 1e-6 if dtype == jnp.float32 else 2e-2
  expected = (expected, *back_of_expected(dy))
  for a, b in zip((y, *back(dy)), expected, strict=True):
    assert a.dtype == dtype and a.shape == b.shape
    close(a.astype(jnp.float32), b.astype(jnp.float32), tolerance)
  # Images and tokens are one axis, but for bfloat16 on CPUs.
  merged = 'reshape' in str(jax.make_jaxpr(back)(dy))
  assert merged == (product_dtype in (None, dtype))


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_add_bias_and_its_gradient(dtype):
  keys = jax.random.split(jax.random.key(0), 3)
  x, dy = (jax.random.normal(k, (7, 5, 6), dtype) for k in keys[:2])
  bias = jax.random.normal(keys[2], (6,), dtype)
  y, back = jax.vjp(functions.add_bias, x, bias)
  close(y.astype(jnp.float32), (x + bias).astype(jnp.float32), 0)
  dx, dbias = back(dy)
  close(dx.astype(jnp.float32), dy.astype(jnp.float32), 0)
  assert dbias.dtype == dtype
  exact = dy.astype(jnp.float32).sum((0, 1))
  close(
    dbias.astype(jnp.float32), exact, 1e-6 if dtype == jnp.float32 else 1e-2
  )


def test_attention_is_that_of_jax():
  heads, d = 3, 24
  key = jax.random.split(jax.random.key(0))
  qkv = jax.random.normal(key[0], (2, 7, 3 * d), jnp.float32)
  cotangent = jax.random.normal(key[1], (2, 7, d), jnp.float32)

  def reference(qkv):
    q, k, v = (x.reshape(2, 7, heads, -1) for x in jnp.split(qkv, 3, axis=-1))
    return jax.nn.dot_product_attention(q, k, v).reshape(2, 7, d)

  y, back = jax.vjp(lambda x: functions.attention(x, heads, 'xla'), qkv)
  expected, back_of_expected = jax.vjp(reference, qkv)
  close(y, expected)
  close(back(cotangent)[0], back_of_expected(cotangent)[0])
  # Where nothing is differentiated another program computes the same.
  close(functions.attention(qkv, heads, 'xla'), expected)
  half = functions.attention(qkv.astype(jnp.bfloat16), heads, 'xla')
  assert half.dtype == jnp.bfloat16
  close(half.astype(jnp.float32), expected, 2e-2)
  # Queries of the last tokens alone.
  last, back = jax.vjp(lambda x: functions.attention(x, heads, 'xla', 2), qkv)
  close(last, expected[:, -2:])
  zeros = jnp.zeros((2, 5, d))
  of_last = jnp.concatenate([zeros, cotangent[:, -2:]], axis=1)
  close(back(cotangent[:, -2:])[0], back_of_expected(of_last)[0])


@pytest.mark.parametrize(
  ('trained', 'platform', 'looked_at'),
  [
    ('cudnn', 'gpu', 'cudnn'),
    ('cudnn', 'cpu', 'xla'),
    ('pallas', 'tpu', 'xla'),
    ('xla', 'gpu', 'xla'),
  ],
)
def test_attention_of_a_model_that_is_looked_at(trained, platform, looked_at):
  assert functions.inference_attention(trained, platform) == looked_at
