"""Linear probes by multinomial logistic regression, and RankMe.

Full-batch L-BFGS on standardised features with an L2 penalty, as the 1% linear
numbers of the paper's ablations are taken; the penalty is chosen on a held-out
part of the TRAINING features, the test features are seen once. `quick_probe`
is the quick one for while a model trains, `evaluate` the one to report.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from ijepa_jax.errors import UserError
from ijepa_jax.probes import labels
from ijepa_jax.runtime import sharding

L2 = tuple(10.0 ** np.arange(-5, 1))  # per example and squared weight, halved


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
    y_N: int32 [N] in [0, classes); examples labelled -1 are left out.
    l2_R: float32 [R].
    iterations: at most this many.
    tolerance: stop where the norm of the gradient is below this.

  Returns:
    (weights [R, D, classes], biases [R, classes]).
  """
  solver = optax.lbfgs(memory_size=10)
  known_N = y_N >= 0

  def solve(l2):
    def loss(params):
      w, b = params
      # In full: the line search of L-BFGS gets lost in TensorFloat-32's noise.
      logits = jnp.matmul(x_ND, w, precision='highest') + b
      error = optax.losses.softmax_cross_entropy_with_integer_labels(
        logits, jnp.maximum(y_N, 0)
      )
      return error.mean(where=known_N) + l2 / 2 * (w**2).sum()

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

    shapes = (x_ND.shape[1], classes), (classes,)
    params = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)
    carry = jnp.int32(0), jnp.float32(jnp.inf), params, solver.init(params)
    return jax.lax.while_loop(unfinished, step, carry)[2]

  return jax.vmap(solve)(l2_R)


@jax.jit
def accuracies(params, x_ND, y_N) -> jax.Array:
  """Share of right answers for each of R regressions: [R]."""
  return _count_correct(params, x_ND, y_N).astype(jnp.float32) / len(y_N)


def _count_correct(params, x_ND, y_N) -> jax.Array:
  """How many answers are right: int32 [R]; those to a label of -1 never are."""
  w, b = params
  logits = jnp.einsum('nd,rdc->rnc', x_ND, w, precision='highest')
  right = labels.right(logits + b[:, None], y_N)
  return right.sum(-1, dtype=jnp.int32)


def quick_probe(train_ND, train_y, test_ND, test_y, *, classes: int) -> float:
  """Test accuracy in [0, 1] of a linear probe.

  Args:
    train_ND, test_ND: features, one row an example, the training rows in random
      order.
    train_y, test_y: labels in [0, classes).

  Raises:
    UserError: see `check_probe`.
  """
  labels.check_probe(train_y, test_y, classes)
  held_out = int(len(train_y) * labels.HELD_OUT)
  mean, std = train_ND.mean(0), train_ND.std(0) + 1e-6
  train_ND, test_ND = (train_ND - mean) / std, (test_ND - mean) / std
  l2 = jnp.asarray(L2, jnp.float32)
  params = fit(train_ND[held_out:], train_y[held_out:], l2, classes=classes)
  scores = accuracies(params, train_ND[:held_out], train_y[:held_out])
  return float(accuracies(params, test_ND, test_y)[jnp.argmax(scores)])


@dataclasses.dataclass(frozen=True)
class Result:
  """What `evaluate` found.

  Attributes:
    accuracy: of the test examples, in [0, 1].
    l2: the penalty it was taken with.
    held_out: accuracy of the held-out training examples by penalty; empty where
      there was nothing to choose.
  """

  accuracy: float
  l2: float
  held_out: dict[float, float]

  @property
  def chosen(self) -> str:
    """How the penalty was chosen, in words; '' where there was one alone."""
    if not self.held_out:
      return ''
    return (
      f'The penalty, {self.l2:g}, is the best of {len(self.held_out)}, chosen '
      'on held-out training images.'
    )


def evaluate(
  train_ND,
  train_y,
  test_ND,
  test_y,
  *,
  classes: int,
  l2s: tuple[float, ...] = L2,
  mesh=None,
  seed: int = 0,
  iterations: int = 300,
) -> Result:
  """The linear accuracy that few labels are judged by (paper, section 6).

  Features are standardised by the training examples'. Each penalty is tried on
  a fifth of every class that is held out of the training examples (one example
  at least of two or more), the best one, of equals the greatest, is fitted
  again on ALL of them, and the test examples are looked at once.

  Args:
    train_ND, test_ND: float32 features in any order, numpy or mapped from disk.
    train_y, test_y: int [N] in [0, classes).
    l2s: penalties, see `fit`; one alone is taken as it is.
    mesh: devices over which the examples are split; None: all.
    seed: of what is held out.
    iterations: of L-BFGS at most, for each penalty.

  Raises:
    UserError: labels or features that can't be (see `check`), no penalty, or
      one example a class and still several penalties.
  """
  labels.check_features(train_ND, train_y, 'training', classes)
  labels.check_features(test_ND, test_y, 'test', classes)
  if not l2s or min(l2s) < 0:
    raise UserError(f'l2s are {tuple(l2s)}: take one or more, 0 or above.')
  mesh = mesh or sharding.make_mesh()
  train_ND, test_ND = _standardised(mesh)(
    sharding.shard_rows(train_ND, mesh, np.float32),
    sharding.shard_rows(train_y, mesh, np.int32, fill=-1),
    sharding.shard_rows(test_ND, mesh, np.float32),
  )

  solve, judge = _compiled(mesh, classes, iterations)

  def accuracy(l2, fitted_y, judged_ND, judged_y):
    fitted_y, judged = (
      sharding.shard_rows(y, mesh, np.int32, fill=-1)
      for y in (fitted_y, judged_y)
    )
    params = solve(train_ND, fitted_y, np.float32([l2]))
    right = judge(params, judged_ND, judged)
    return int(right[0]) / int((np.asarray(judged_y) >= 0).sum())

  scores = {}
  l2 = float(l2s[0])
  if len(l2s) > 1:
    held = _hold_out(train_y, seed)
    fitted_y, judged_y = (
      np.where(held, -1, train_y),
      np.where(held, train_y, -1),
    )
    # One after the other: all at once the logits of ImageNet fill any device.
    scores = {float(r): accuracy(r, fitted_y, train_ND, judged_y) for r in l2s}
    l2 = max(scores, key=lambda r: (scores[r], r))
    alone = list(scores.values()).count(scores[l2]) == 1
    if alone and l2 in (min(scores), max(scores)):
      logging.warning(
        'The best penalty, %g, is the last of those tried: try others beyond.',
        l2,
      )
  return Result(accuracy(l2, train_y, test_ND, test_y), l2, scores)


def _hold_out(y_N, seed: int) -> np.ndarray:
  """bool [N]: a fifth of every class, one at least of two or more examples."""
  held = np.zeros(len(y_N), bool)
  for rows in labels.shuffled_by_class(y_N, seed).values():
    if len(rows) > 1:
      held[rows[: max(1, round(labels.HELD_OUT * len(rows)))]] = True
  if not held.any():
    raise UserError(
      'With one training example a class none can be held out to choose '
      'among l2s: give one.'
    )
  return held


# Made once, not at every call, so that they compile once.
@functools.cache
def _standardised(mesh):
  def run(train_ND, train_y, test_ND):
    known = (train_y >= 0)[:, None]
    mean = train_ND.mean(0, where=known)
    std = train_ND.std(0, where=known) + 1e-6
    return (train_ND - mean) / std, (test_ND - mean) / std

  return jax.jit(run, out_shardings=sharding.batch_sharding(mesh))


@functools.cache
def _compiled(mesh, classes, iterations):
  """-> `fit` and `_count_correct` with results that every process has."""
  whole = sharding.replicated(mesh)
  solve = functools.partial(fit, classes=classes, iterations=iterations)
  return jax.jit(solve, out_shardings=whole), jax.jit(
    _count_correct, out_shardings=whole
  )
