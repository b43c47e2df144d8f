"""The arithmetic of the linear sweep: many linear heads as one computation.

The encoder is frozen, so that one pass of features serves all heads, and heads
that see the same numbers are one matrix product. head_sweep.py says which heads
there are.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ijepa_jax.probes import labels
from ijepa_jax.probes.head_sweep import BATCH_NORM, HeadSweep

MOMENTUM = 0.9
# Of BatchNorm, as in PyTorch: the weight of the newest batch in the statistics
# by which evaluation normalizes.
NORM_MOMENTUM, NORM_EPS = 0.1, 1e-5


def make_optimizer(name: str, lr, weight_decay) -> optax.GradientTransformation:
  """Makes the optimizer of one head; both rates may be traced.

  'lars' (You et al., 2017; trust coefficient .001): biases are neither decayed
  nor adapted, as in BYOL and MAE. 'sgd': Nesterov momentum, and everything is
  decayed, as in PyTorch.
  """
  if name == 'lars':
    kernels = {'kernel': True, 'bias': False}
    return optax.lars(
      lr,
      weight_decay=weight_decay,
      weight_decay_mask=kernels,
      trust_ratio_mask=kernels,
      momentum=MOMENTUM,
    )
  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.sgd(lr, momentum=MOMENTUM, nesterov=True),
  )


def init(sweep: HeadSweep, key) -> dict[str, Any]:
  """Makes the state of all heads; heads with the same input start alike.

  Groups are the R = lrs x weight_decays heads that see the same numbers:

    heads/<group>/params/kernel float32 [R, D, classes], bias [R, classes]
    heads/<group>/optimizer     momentum of the same shapes
    norms/<input>/mean, var     float32 [D], running
  """
  runs = len(sweep.rates)
  optimizer = make_optimizer(sweep.protocol.optimizer, 0.0, 0.0)
  state = {'heads': {}, 'norms': {}}
  for name, width in sweep.widths.items():
    # Not 0: LARS moves in proportion to the weights.
    kernel = 0.01 * jax.random.normal(key, (width, sweep.classes), jnp.float32)
    params = {
      'kernel': jnp.repeat(kernel[None], runs, 0),
      'bias': jnp.zeros((runs, sweep.classes), jnp.float32),
    }
    for norm in BATCH_NORM:
      state['heads'][_group_name(name, norm)] = {
        'params': params,
        'optimizer': jax.vmap(optimizer.init)(params),
      }
    state['norms'][name] = {
      'mean': jnp.zeros(width, jnp.float32),
      'var': jnp.ones(width, jnp.float32),
    }
  return state


def update_heads(
  sweep: HeadSweep,
  state: dict[str, Any],
  features: Mapping[str, jax.Array],
  labels_B: jax.Array,
  step,
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
  """One step of all heads; pure, so that a jitted step may make the features.

  Args:
    features: {'last': [B, D], 'last4': [B, 4 D]}, the sweep's inputs at least.
    labels_B: int32 [B] in [0, classes); the loss of any other is NaN.
    step: counted from 0.

  Returns:
    The state and {'loss': [heads], 'accuracy': [heads]} of this batch.
  """
  factor = jnp.float32(sweep.batch_size / 256 * sweep.schedule(step))
  rates = np.float32(sweep.rates)
  lr_R, decay_R = rates[:, 0] * factor, rates[:, 1]
  new_state, metrics = {'heads': {}, 'norms': {}}, []
  update_group = jax.vmap(
    functools.partial(_update_head, sweep, labels_B), in_axes=(None, 0, 0, 0)
  )
  for name in sweep.widths:
    x_BD = features[name].astype(jnp.float32)
    mean, var = x_BD.mean(0), x_BD.var(0)
    n = len(x_BD)
    new_state['norms'][name] = jax.tree.map(
      lambda old, new: old + NORM_MOMENTUM * (new - old),
      state['norms'][name],
      {'mean': mean, 'var': var * n / (n - 1)},
    )
    for norm in BATCH_NORM:
      group = _group_name(name, norm)
      new_state['heads'][group], values = update_group(
        _normalize(x_BD, mean, var) if norm else x_BD,
        state['heads'][group],
        lr_R,
        decay_R,
      )
      metrics.append(values)
  return new_state, jax.tree.map(lambda *x: jnp.concatenate(x), *metrics)


def _update_head(sweep, labels_B, x_BD, head, lr, weight_decay):
  """-> params and optimizer of one head after a step, and its metrics."""

  def loss(params):
    return labels.cross_entropy(_logits(params, x_BD), labels_B)

  grad, metrics = jax.grad(loss, has_aux=True)(head['params'])
  optimizer = make_optimizer(sweep.protocol.optimizer, lr, weight_decay)
  updates, moments = optimizer.update(grad, head['optimizer'], head['params'])
  params = optax.apply_updates(head['params'], updates)
  return {'params': params, 'optimizer': moments}, metrics


def diverged(sweep: HeadSweep, state: dict[str, Any]) -> np.ndarray:
  """Returns which heads have a parameter that is not finite: bool [heads]."""
  lost = []
  for group in sweep.groups:
    params = jax.device_get(state['heads'][_group_name(*group)]['params'])
    lost.append(
      ~np.isfinite(params['kernel']).all((1, 2))
      | ~np.isfinite(params['bias']).all(1)
    )
  return np.concatenate(lost)


def count_correct(
  sweep: HeadSweep,
  state: dict[str, Any],
  features: Mapping[str, jax.Array],
  labels_B: jax.Array,
) -> jax.Array:
  """Counts the correct answers of each head: int32 [heads].

  An example labelled -1 is never correct, nor is a head that has diverged.
  """
  counts = []
  for name, norm in sweep.groups:
    x_BD = features[name].astype(jnp.float32)
    if norm:
      x_BD = _normalize(x_BD, **state['norms'][name])
    params = state['heads'][_group_name(name, norm)]['params']
    logits_RBC = jax.vmap(_logits, in_axes=(0, None))(params, x_BD)
    correct_RB = labels.is_correct(logits_RBC, labels_B)
    counts.append(correct_RB.sum(-1, dtype=jnp.int32))
  return jnp.concatenate(counts)


def _group_name(name: str, norm: bool) -> str:
  return f'{name}_bn' if norm else name


def _normalize(x_BD, mean, var):
  return (x_BD - mean) * jax.lax.rsqrt(var + NORM_EPS)


def _logits(params, x_BD):
  # Full precision: features that aren't centered lose their differences in
  # TensorFloat-32.
  return (
    jnp.matmul(x_BD, params['kernel'], precision='highest') + params['bias']
  )
