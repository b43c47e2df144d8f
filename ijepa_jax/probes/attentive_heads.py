"""The arithmetic of the attentive sweep: many probes as one computation.

A probe pools the tokens of a frozen encoder by cross-attention with one learned
query and classifies what it has read, as V-JEPA evaluates (Bardes et al., 2024,
arXiv 2404.08471, appendix D.1):

    x = LayerNorm of the tokens, without scale and offset
    y = attention of the query q to keys K x and values V x + b
    z = q + y;  z = z + MLP(LayerNorm(z));  logits = W LayerNorm(z) + c

As there q stands in place of a projected query, and the heads' outputs are not
projected again. V-JEPA's text names one LayerNorm, the last; the others, and
the MLP's residual, are those of the transformer block that it adapts.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ijepa_jax.methods.optim import adamw
from ijepa_jax.models import functions, transformer
from ijepa_jax.probes import labels
from ijepa_jax.probes.head_sweep import AttentiveSweep

MLP_RATIO = 4  # of the MLP's width to D, as in the encoder
_EPS = 1e-6  # of LayerNorm


def make_optimizer(lr, weight_decay) -> optax.GradientTransformation:
  """Makes AdamW of one probe, which decays kernels; rates may be traced."""
  return adamw.adamw(lr=lambda _: lr, weight_decay=lambda _: weight_decay)


def init(sweep: AttentiveSweep, key) -> dict[str, Any]:
  """Makes the state of all R probes, which start alike.

  params/query             float32 [R, D]
  params/<layer>/kernel    float32 [R, in, out]; bias [R, out]
  params/<norm>/scale,bias float32 [R, D]
  optimizer                AdamW's state
  """
  runs, (width,) = len(sweep.rates), sweep.widths.values()
  kernel_init = transformer.INITS['fan_in']
  keys = iter(jax.random.split(key, 6))

  def dense(size, out, init=kernel_init):
    kernel = init(next(keys), (size, out), jnp.float32)
    return {'kernel': kernel, 'bias': jnp.zeros(out, jnp.float32)}

  norm = {
    'scale': jnp.ones(width, jnp.float32),
    'bias': jnp.zeros(width, jnp.float32),
  }
  params = {
    # So small that each token has about the same weight at first.
    'query': 0.02 * jax.random.normal(next(keys), (width,), jnp.float32),
    # Its bias would shift all of a query's scores alike.
    'key': {'kernel': kernel_init(next(keys), (width, width), jnp.float32)},
    'value': dense(width, width),
    'norm1': norm,
    'fc1': dense(width, MLP_RATIO * width),
    'fc2': dense(MLP_RATIO * width, width),
    'norm2': norm,
    'classifier': dense(width, sweep.classes, jax.nn.initializers.normal(0.01)),
  }
  params = jax.tree.map(lambda x: jnp.repeat(x[None], runs, 0), params)
  optimizer = jax.vmap(make_optimizer(0.0, 0.0).init)(params)
  return {'params': params, 'optimizer': optimizer}


def update_heads(
  sweep: AttentiveSweep,
  state: dict[str, Any],
  features: Mapping[str, jax.Array],
  labels_B: jax.Array,
  step,
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
  """One step of all probes; pure, as `linear_heads.update_heads`.

  Args:
    features: {'tokens': [B, N, D]}.
    labels_B: int32 [B] in [0, classes); the loss of any other is NaN.
    step: counted from 0.

  Returns:
    The state and {'loss': [probes], 'accuracy': [probes]} of this batch.
  """
  rates = np.float32(sweep.rates)
  lr_R = rates[:, 0] * jnp.float32(sweep.schedule(step))
  x_BND = standardize(features['tokens'].astype(jnp.float32))

  def update(state, lr, weight_decay):
    def loss(params):
      logits_BC = logits(params, x_BND, sweep.attention_heads)
      return labels.cross_entropy(logits_BC, labels_B)

    grad, metrics = jax.grad(loss, has_aux=True)(state['params'])
    updates, optimizer = make_optimizer(lr, weight_decay).update(
      grad, state['optimizer'], state['params']
    )
    params = optax.apply_updates(state['params'], updates)
    return {'params': params, 'optimizer': optimizer}, metrics

  return jax.vmap(update)(state, lr_R, rates[:, 1])


def count_correct(
  sweep: AttentiveSweep,
  state: dict[str, Any],
  features: Mapping[str, jax.Array],
  labels_B: jax.Array,
) -> jax.Array:
  """Counts the correct answers of each probe: int32 [probes].

  An example labelled -1 is never correct, nor is a probe that has diverged.
  """
  x_BND = standardize(features['tokens'].astype(jnp.float32))
  answer = functools.partial(logits, x_BND=x_BND, heads=sweep.attention_heads)
  logits_RBC = jax.vmap(answer)(state['params'])
  return labels.is_correct(logits_RBC, labels_B).sum(-1, dtype=jnp.int32)


def diverged(sweep: AttentiveSweep, state: dict[str, Any]) -> np.ndarray:
  """Returns which probes have a parameter that is not finite: bool [probes]."""
  del sweep
  leaves = jax.tree.leaves(jax.device_get(state['params']))
  finite = [np.isfinite(x).reshape(len(x), -1).all(1) for x in leaves]
  return ~np.all(finite, 0)


def standardize(x: jax.Array) -> jax.Array:
  """LayerNorm over the last axis without scale and offset."""
  centered = x - x.mean(-1, keepdims=True)
  variance = (centered**2).mean(-1, keepdims=True)
  return centered / jnp.sqrt(variance + _EPS)


# Full precision, as for linear heads: what all images have in common would
# hide their differences in TensorFloat-32.
@jax.default_matmul_precision('highest')
def logits(params, x_BND: jax.Array, heads: int) -> jax.Array:
  """The answers of one probe: float [B, classes].

  Args:
    params: of the probe.
    x_BND: tokens, see `standardize`.
    heads: of the attention.
  """
  b, _, d = x_BND.shape
  query_HK = params['query'].reshape(heads, -1)
  key_DHK, value_DHK = (
    params[name]['kernel'].reshape(d, heads, -1) for name in ('key', 'value')
  )
  # q (K x) = (q K) x, and the weights' sum of V x is V of that of x: with one
  # query neither keys nor values of every token have to be made.
  query_HD = jnp.einsum('dhk,hk->hd', key_DHK, query_HK) / math.sqrt(d // heads)
  weight_BHN = jax.nn.softmax(jnp.einsum('bnd,hd->bhn', x_BND, query_HD))
  pooled_BHD = jnp.einsum('bhn,bnd->bhd', weight_BHN, x_BND)
  y_BD = jnp.einsum('bhd,dhk->bhk', pooled_BHD, value_DHK).reshape(b, d)
  z_BD = params['query'] + y_BD + params['value']['bias']
  hidden = _dense(params['fc1'], _norm(params['norm1'], z_BD))
  hidden = functions.gelu(hidden)
  z_BD = z_BD + _dense(params['fc2'], hidden)
  return _dense(params['classifier'], _norm(params['norm2'], z_BD))


def _dense(params, x):
  return x @ params['kernel'] + params['bias']


def _norm(params, x):
  return standardize(x) * params['scale'] + params['bias']
