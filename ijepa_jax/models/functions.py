"""Layers as plain functions, written for what compilers make of them.

Shapes in names: B images, T tokens, D features, F features of the output.
"""

import functools

import jax
import jax.numpy as jnp


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
  """Exact GELU, x Phi(x), computed in float32 as PyTorch does, by erf.

  `jax.nn.gelu` takes erfc, which is exact where Phi(x) is below 1e-7 and costs
  2 to 3 times as much. Of bfloat16, Phi is within a third of its rounding, see
  `_normal_cdf`. Where it is differentiated, the slope is computed beside the
  value, so that the backward pass keeps one array and computes neither.
  """
  # Else TPUs' compiler moves it into the product that follows, and computes it
  # for every tile of that anew. Where the value is kept, it can't.
  return jax.lax.optimization_barrier(_gelu(x.astype(jnp.float32), x.dtype))


@gelu.defjvp
def _(primals, tangents):
  (x,), (t,) = primals, tangents
  z = x.astype(jnp.float32)
  density = jnp.exp(-0.5 * z**2) * (0.5 / jnp.pi) ** 0.5
  slope = _normal_cdf(z, x.dtype) + z * density
  return _gelu(z, x.dtype), slope.astype(x.dtype) * t


def _gelu(z: jax.Array, dtype) -> jax.Array:
  return (z * _normal_cdf(z, dtype)).astype(dtype)


def _normal_cdf(z: jax.Array, dtype) -> jax.Array:
  """Phi(z) in float32, as exact as numbers of `dtype` can tell."""
  if dtype != jnp.bfloat16:
    return 0.5 * (1 + jax.lax.erf(z * 0.5**0.5))
  # On TPU v4 erf, two polynomials and a division, takes longer than the product
  # before it. This is the logistic function of an odd polynomial, fitted to
  # |z| < 5: the relative error of Phi, and of 1 - Phi, is below .0012. By tanh
  # it would be as fast, but XLA for GPUs keeps the result of tanh in memory.
  square = z**2
  p = -9.2025060e-6
  for coefficient in (9.9425508e-4, -7.5924838e-2, -1.5922742):
    p = p * square + coefficient
  return 1 / (1 + jnp.exp(p * z))


@jax.custom_vjp
def layer_norm(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array):
  """LayerNorm over the last axis, epsilon 1e-6, in float32: [..., D].

  Its gradient is written out: derived from the code, it sums over the features
  what is zero, the deviations from their average.
  """
  return _normalize(x, scale_D, bias_D)[0]


def _normalize(x, scale_D, bias_D):
  z = x.astype(jnp.float32)
  mean = z.mean(-1, keepdims=True)
  if x.dtype == jnp.bfloat16:
    # Summed beside the average. Where this loses digits, the average being far
    # from zero, rounding x to 8 bits has lost more.
    variance = jnp.maximum((z**2).mean(-1, keepdims=True) - mean**2, 0)
  else:
    variance = ((z - mean) ** 2).mean(-1, keepdims=True)
  inverse = jax.lax.rsqrt(variance + 1e-6)
  y = (z - mean) * (inverse * scale_D) + bias_D
  return y, (x, scale_D, mean, inverse)


def _gradients_of_layer_norm(kept, dy):
  x, scale_D, mean, inverse = kept
  deviation = (x.astype(jnp.float32) - mean) * inverse
  g = dy * scale_D
  g_mean = g.mean(-1, keepdims=True)
  slope = (g * deviation).mean(-1, keepdims=True)
  dx = inverse * (g - g_mean - deviation * slope)
  rows = tuple(range(x.ndim - 1))
  return dx.astype(x.dtype), (dy * deviation).sum(rows), dy.sum(rows)


layer_norm.defvjp(_normalize, _gradients_of_layer_norm)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x: jax.Array, kernel_DF: jax.Array, product_dtype=None) -> jax.Array:
  """The product of a linear layer: [..., D] to [..., F].

  Of its axes only the first may be split over devices. The kernel's gradient is
  the transposed product of two matrices, all images' tokens being their rows.
  Left to itself XLA for CPUs first writes the gradient of the output
  transposed, and computes all that it comes from anew for it. With another
  `product_dtype` the rows keep their axes: a product of bfloat16 over the first
  axis of two matrices XLA for CPUs computes in float32, which is slower.

  Args:
    product_dtype: of the product before it is rounded to the type of x, see
      `product_dtype`; None: that type.
  """
  return _product(x, kernel_DF, (x.ndim - 1,), (0,), product_dtype)


def _linear_and_arguments(x, kernel_DF, dtype):
  return linear(x, kernel_DF, dtype), (x, kernel_DF)


def _gradients_of_linear(dtype, arguments, dy):
  x, kernel_DF = arguments
  dx = _product(dy, kernel_DF, (dy.ndim - 1,), (1,), dtype)
  if dtype in (None, x.dtype):
    x, dy = (y.reshape(-1, y.shape[-1]) for y in (x, dy))
  rows = tuple(range(x.ndim - 1))
  return dx, _product(x, dy, rows, rows, dtype)


def _product(x, y, i: tuple, j: tuple, dtype) -> jax.Array:
  """Sums over axes i of x and axes j of y."""
  product = jax.lax.dot_general(
    x, y, ((i, j), ((), ())), preferred_element_type=dtype
  )
  return product.astype(x.dtype)


linear.defvjp(_linear_and_arguments, _gradients_of_linear)


def product_dtype(platform: str):
  """Returns the type of products before they are rounded, for `linear`.

  Of bfloat16, XLA for CPUs computes a product by fast instructions and
  libraries only if its result is float32. GPUs and TPUs round it by themselves.

  Args:
    platform: of the devices, jax.Device.platform.
  """
  return jnp.float32 if platform == 'cpu' else None


def dense_product(
  x: jax.Array, kernel_DF: jax.Array, dimension_numbers, precision=None
) -> jax.Array:
  """`linear` as what nn.Dense takes for its `dot_general`.

  Raises:
    NotImplementedError: a precision is asked for, or another product.
  """
  if precision or dimension_numbers != (((x.ndim - 1,), (0,)), ((), ())):
    raise NotImplementedError(f'{dimension_numbers}, precision {precision}')
  return linear(x, kernel_DF)


@jax.custom_vjp
def add_bias(x: jax.Array, bias_F: jax.Array) -> jax.Array:
  """Adds the bias of a linear layer to [..., F].

  The gradient of the bias is a product with ones. On TPUs this is faster than a
  sum over rows that XLA can't fuse with another operation.
  """
  return x + bias_F


def _gradients_of_add_bias(_, dy):
  axes = tuple(range(dy.ndim - 1))
  # Eight rows of them: of one alone XLA makes a sum again.
  ones = jnp.ones((8, *dy.shape[:-1]), dy.dtype)
  over = tuple(i + 1 for i in axes), axes
  return dy, jax.lax.dot_general(ones, dy, (over, ((), ())))[0]


add_bias.defvjp(
  lambda x, bias_F: (add_bias(x, bias_F), None), _gradients_of_add_bias
)


def inference_attention(attention: str, platform: str) -> str:
  """Returns the implementation for a model that is evaluated, not trained.

  The devices may differ from those of the training, and the kernel of TPUs is
  for training alone. All implementations compute the same.

  Args:
    attention: the implementation that the model was trained with.
    platform: of the devices of the evaluation, jax.Device.platform.
  """
  return 'cudnn' if (attention, platform) == ('cudnn', 'gpu') else 'xla'


def attention(
  qkv_BTD: jax.Array,
  heads: int,
  implementation: str,
  queries: int | None = None,
) -> jax.Array:
  """Self-attention of fused queries, keys and values.

  Args:
    qkv_BTD: [B, T, 3 D], queries of all heads first, then keys, then values.
    heads: of D / heads features each.
    implementation: 'xla'; 'cudnn', a fused kernel of GPUs; 'pallas', one of
      TPUs, of pallas_attention.py.
    queries: how many of the last tokens attend to all; None: every token.

  Returns:
    [B, T or queries, D] of the same type; the softmax is in float32.
  """
  b, t, _ = qkv_BTD.shape
  first = 0 if queries is None else t - queries
  if implementation == 'pallas':
    # Importing Pallas takes a third of a second, which only TPUs need.
    from ijepa_jax.models import pallas_attention

    return pallas_attention.attention(qkv_BTD, heads)[:, first:]
  # Split before heads are: a stack of three is moved about as a whole.
  q, k, v = (x.reshape(b, t, heads, -1) for x in jnp.split(qkv_BTD, 3, axis=-1))
  q = q[:, first:]
  if implementation == 'cudnn':
    y = jax.nn.dot_product_attention(q, k, v, implementation='cudnn')
    return y.reshape(b, t - first, -1)
  # Heads before tokens, as the products batch them, here and in the gradient.
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  y = _softmax_attention(q, k, v)
  return jnp.swapaxes(y, 1, 2).reshape(b, t - first, -1)


@jax.custom_vjp
def _softmax_attention(q_BHQF, k_BHTF, v_BHTF) -> jax.Array:
  """softmax(q k^T / sqrt(F)) v of each head, where nothing is differentiated.

  What is divided by the sum of the weights is the output, not the weights: they
  are passed over once less.
  """
  logits, scale = _logits(q_BHQF, k_BHTF)
  weights = jnp.exp((logits - logits.max(-1, keepdims=True)) * scale)
  y = jnp.einsum(
    'bhqk,bhkd->bhqd',
    weights.astype(v_BHTF.dtype),
    v_BHTF,
    preferred_element_type=jnp.float32,
  )
  return (y / weights.sum(-1, keepdims=True)).astype(v_BHTF.dtype)


def _differentiated_attention(q_BHQF, k_BHTF, v_BHTF):
  logits, scale = _logits(q_BHQF, k_BHTF)
  weights = jax.nn.softmax(logits * scale)
  return jnp.einsum('bhqk,bhkd->bhqd', weights.astype(v_BHTF.dtype), v_BHTF)


def _logits(q_BHQF, k_BHTF):
  """Returns q k^T in float32, and what is left to multiply it by.

  Of float32 the queries are multiplied, which are fewer: XLA for CPUs passes
  over the logits once more for it. Of bfloat16 this would round them anew.
  """
  scale = q_BHQF.shape[-1] ** -0.5
  if q_BHQF.dtype == jnp.float32:
    q_BHQF, scale = q_BHQF * scale, 1
  logits = jnp.einsum(
    'bhqd,bhkd->bhqk', q_BHQF, k_BHTF, preferred_element_type=jnp.float32
  )
  return logits, scale


_softmax_attention.defvjp(
  lambda *qkv: jax.vjp(_differentiated_attention, *qkv),
  lambda transposed, dy: transposed(dy),
)
