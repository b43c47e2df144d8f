"""Linear probes by multinomial logistic regression, and RankMe.

Full-batch L-BFGS on standardised features with an L2 penalty, as the 1% linear
numbers of the paper's ablations are taken; the penalty is chosen on a held-out
part of the TRAINING features, the test features are seen once.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

L2 = tuple(10.0 ** np.arange(-5, 1))  # per example and squared weight, halved
HELD_OUT = 0.2


@functools.partial(jax.jit, static_argnames=('classes', 'iterations'))
def fit(
  x_ND,
  y_N,
  l2_R,
  *,
  classes: int,
  iterations: int = 100,
  tolerance: float = 1e-4,
):
  """Logistic regressions, one for each penalty, in one batched L-BFGS.

  Minimises mean cross-entropy + l2 / 2 * |W|^2 (no penalty on the bias); in
  scikit-learn's terms C = 1 / (N * l2).

  Args:
    x_ND: float32 [N, D], standardised.
    y_N: int32 [N] in [0, classes).
    l2_R: float32 [R].
    iterations: at most this many.
    tolerance: stop where the norm of the gradient is below this.

  Returns:
    (weights [R, D, classes], biases [R, classes]).
  """
  solver = optax.lbfgs(memory_size=10)

  def solve(l2):
    def loss(params):
      w, b = params
      logits = x_ND @ w + b
      error = optax.losses.softmax_cross_entropy_with_integer_labels(
        logits, y_N
      )
      return error.mean() + l2 / 2 * (w**2).sum()

    def step(carry):
      i, _, params, state = carry
      value, grad = optax.value_and_grad_from_state(loss)(params, state=state)
      updates, state = solver.update(
        grad, state, params, value=value, grad=grad, value_fn=loss
      )
      slope = optax.tree.norm(grad)
      return i + 1, slope, optax.apply_updates(params, updates), state

    def unfinished(carry):
      return (carry[0] < iterations) & (carry[1] > tolerance)

    params = jnp.zeros((x_ND.shape[1], classes)), jnp.zeros(classes)
    carry = 0, jnp.inf, params, solver.init(params)
    return jax.lax.while_loop(unfinished, step, carry)[2]

  return jax.vmap(solve)(l2_R)


@jax.jit
def accuracies(params, x_ND, y_N) -> jax.Array:
  """Share of right answers for each of R regressions: [R]."""
  w, b = params
  logits = jnp.einsum('nd,rdc->rnc', x_ND, w) + b[:, None]
  return (logits.argmax(-1) == y_N).mean(-1)


def probe(train_ND, train_y, test_ND, test_y, *, classes: int) -> float:
  """Test accuracy in [0, 1] of a linear probe.

  Args:
    train_ND, test_ND: features, one row an example, the training rows in random
      order.
    train_y, test_y: labels in [0, classes).

  Raises:
    ValueError: a label is out of range, or there are too few examples.
  """
  for y in (train_y, test_y):
    if y.size and not 0 <= y.min() <= y.max() < classes:
      raise ValueError(
        f'Labels run from {y.min()} to {y.max()}: {classes} classes need '
        f'0 to {classes - 1}.'
      )
  held_out = int(len(train_y) * HELD_OUT)
  if held_out < 1 or not len(test_y):
    raise ValueError(
      f'{len(train_y)} training and {len(test_y)} test examples are too few '
      'for a probe: take at least 5 and 1.'
    )
  mean, std = train_ND.mean(0), train_ND.std(0) + 1e-6
  train_ND, test_ND = (train_ND - mean) / std, (test_ND - mean) / std
  l2 = jnp.asarray(L2, jnp.float32)
  params = fit(train_ND[held_out:], train_y[held_out:], l2, classes=classes)
  scores = accuracies(params, train_ND[:held_out], train_y[:held_out])
  return float(accuracies(params, test_ND, test_y)[jnp.argmax(scores)])


def majority(train_y, test_y) -> float:
  """Test accuracy of always answering the commonest training label."""
  return float((test_y == np.bincount(train_y).argmax()).mean())


def rankme(x_ND) -> float:
  """The effective rank of features (Garrido et al., ICML 2023).

  exp of the entropy of the normalised singular values of the matrix: from 1,
  all on one line, to min(N, D).
  """
  s = np.linalg.svd(np.asarray(x_ND, np.float64), compute_uv=False)
  p = s / max(s.sum(), 1e-12) + 1e-7
  return float(np.exp(-(p * np.log(p)).sum()))
