"""The training step, compiled once for every shape of a batch."""

import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from ijepa_jax.methods import ijepa
from ijepa_jax.methods.schedules import Schedule


@flax.struct.dataclass
class State:
  """All that a step changes; nothing else is in a checkpoint.

  Attributes:
    step: int32 [], finished steps.
    params: {'encoder', 'predictor'}, float32; `encoder` is the context encoder.
    target: the target encoder's parameters, the tree of `params['encoder']`.
    opt_state: AdamW's moments and counts over `params`.
  """

  step: jax.Array
  params: Any
  target: Any
  opt_state: Any


def init(
  model: ijepa.IJEPA, tx: optax.GradientTransformation, key, *, image_shape
) -> State:
  """A fresh state; the target starts as a copy of the encoder (paper 3).

  Made for `jax.jit`, under which the copy is a buffer of its own, as donation
  needs.

  Args:
    model, tx: the static parts.
    key: `jax.random.key`.
    image_shape: (H, W, C).
  """
  params = ijepa.init_params(model, key, image_shape=image_shape)
  return State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    target=jax.tree.map(jnp.copy, params['encoder']),
    opt_state=tx.init(params),
  )


def train_step(
  state: State,
  batch,
  *,
  model: ijepa.IJEPA,
  tx: optax.GradientTransformation,
  ema_rate: Schedule,
  accumulate: int = 1,
) -> tuple[State, dict[str, jax.Array]]:
  """One step of I-JEPA: loss, gradient, AdamW, EMA of the target.

  Args:
    state: donated by the caller.
    batch: as in `loss_and_grad`.
    ema_rate: 1 - momentum as a function of the step counted from 0; one minus
      it loses no digits as the momentum nears 1.
    accumulate: micro-batches that the batch is cut into; their gradients are
      averaged, which equals the whole batch's.

  Returns:
    The next state and float32 [] metrics: loss, grad_norm (of all, and of
    encoder and predictor), momentum, feature_std, token_std.
  """
  compute = functools.partial(
    ijepa.loss_and_grad, model, state.params, state.target
  )
  if accumulate == 1:
    loss, grad, stats = compute(batch)
  else:
    # Every accumulate-th image: each device keeps to its own part of the batch.
    split = jax.tree.map(
      lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0),
      batch,
    )

    def add(total, micro):
      return jax.tree.map(jnp.add, total, compute(micro)), None

    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype),
      jax.eval_shape(compute, jax.tree.map(lambda x: x[0], split)),
    )
    total, _ = jax.lax.scan(add, zeros, split)
    loss, grad, stats = jax.tree.map(lambda x: x / accumulate, total)
  updates, opt_state = tx.update(grad, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  rate = ema_rate(state.step)
  target = optax.incremental_update(params['encoder'], state.target, rate)
  metrics = {
    'loss': loss,
    'grad_norm': optax.tree.norm(grad),
    **{f'grad_norm/{k}': optax.tree.norm(grad[k]) for k in grad},
    'momentum': 1 - rate,
    **stats,
  }
  return State(state.step + 1, params, target, opt_state), metrics
