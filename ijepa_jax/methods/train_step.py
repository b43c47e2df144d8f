"""One training step of any method: gradient, optimizer, target.

A step is a pure function of (state, batch); it knows no method, and a method
knows no optimizer.
"""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from ijepa_jax.methods.method import Method


@flax.struct.dataclass
class State:
  """All that a step changes; nothing else is in a checkpoint.

  Attributes:
    step: int32 [], finished steps.
    params: what is trained, float32; {'encoder', 'predictor'} of I-JEPA.
    target: what follows `params` without a gradient, the target encoder's
      parameters of I-JEPA; None where a method has no such thing.
    opt_state: the optimizer's moments and counts over `params`.
  """

  step: jax.Array
  params: Any
  target: Any
  opt_state: Any


def init(method: Method, tx: optax.GradientTransformation, params) -> State:
  """Returns the state before the first step.

  Made for `jax.jit`, under which copies are buffers of their own, as donation
  needs.
  """
  return State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    target=method.init_target(params),
    opt_state=tx.init(params),
  )


def train_step(
  state: State,
  batch,
  *,
  method: Method,
  tx: optax.GradientTransformation,
  seed: int = 0,
  accumulate: int = 1,
) -> tuple[State, dict[str, jax.Array]]:
  """One step: loss and gradient, optimizer, target.

  Args:
    state: donated by the caller.
    batch: what `method.batch_keys` name.
    method, tx: the static parts.
    seed: what is random in the loss is a function of (seed, step).
    accumulate: micro-batches that the batch is cut into; their gradients are
      averaged, which equals the whole batch's.

  Returns:
    The next state and float32 [] metrics: loss, grad_norm (of all, and of each
    part of the parameters), and those of the method.
  """

  def loss_and_grad(batch, key):
    (loss, metrics), grad = jax.value_and_grad(method.loss, has_aux=True)(
      state.params, state.target, batch, key
    )
    return loss, metrics, grad

  key = jax.random.fold_in(jax.random.key(seed), state.step)
  if accumulate == 1:
    loss, metrics, grad = loss_and_grad(batch, key)
  else:
    loss, metrics, grad = _mean(loss_and_grad, batch, key, accumulate)
  with jax.named_scope('optimizer'):
    updates, opt_state = tx.update(grad, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
  with jax.named_scope('update_target'):
    target, target_metrics = method.update_target(
      state.target, params, state.step
    )
  with jax.named_scope('gradient_norms'):
    norms = {f'grad_norm/{k}': optax.tree.norm(grad[k]) for k in grad}
    norms['grad_norm'] = optax.tree.norm(grad)
  metrics = {'loss': loss} | norms | target_metrics | metrics
  return State(state.step + 1, params, target, opt_state), metrics


def _mean(function, batch, key, pieces: int):
  """The mean of function(micro-batch, key) over a batch cut into pieces."""
  # Every n-th image: each device keeps to its own part of the batch.
  batches = jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(-1, pieces, *x.shape[1:]), 1, 0), batch
  )
  micro_batches = batches, jax.random.split(key, pieces)

  def add(total, micro_batch):
    return jax.tree.map(jnp.add, total, function(*micro_batch)), None

  first = jax.tree.map(lambda x: x[0], micro_batches)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *first)
  )
  total, _ = jax.lax.scan(add, zeros, micro_batches)
  return jax.tree.map(lambda x: x / pieces, total)
