"""Linear probes by multinomial logistic regression.

Full-batch L-BFGS on standardized features with an L2 penalty, as the 1% linear
numbers of the paper's ablations are measured. The penalty is chosen on
held-out TRAINING features; the test features are used once. `quick_probe` is
for while a model trains, `evaluate` is for reports.
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
_MAX_SLOPE = 1e-4  # L-BFGS stops where the norm of the gradient is below this
_EPS = 1e-6  # added to the standard deviation of each feature


@functools.partial(jax.jit, static_argnames=('classes', 'iterations'))
def fit(x_ND, y_N, l2_R, *, classes: int, iterations: int = 100):
  """Fits logistic regressions, one for each penalty, in one batched L-BFGS.

  Minimizes mean cross-entropy + l2 / 2 * |W|^2 (no penalty on the bias); in
  scikit-learn's terms C = 1 / (N * l2).

  Args:
    x_ND: float32 [N, D], standardized.
    y_N: int32 [N] in [0, classes); examples labelled -1 are left out.
    l2_R: float32 [R].
    iterations: at most this many.

  Returns:
    (weights [R, D, classes], biases [R, classes]).
  """
  solver = optax.lbfgs(memory_size=10)
  used_N = y_N >= 0

  def solve(l2):
    def loss(params):
      w, b = params
      # Full precision: TensorFloat-32's noise misleads the line search.
      logits = jnp.matmul(x_ND, w, precision='highest') + b
      error = optax.losses.softmax_cross_entropy_with_integer_labels(
        logits, jnp.maximum(y_N, 0)
      )
      return error.mean(where=used_N) + l2 / 2 * (w**2).sum()

    def step(carry):
      i, _, params, state = carry
      value, grad = optax.value_and_grad_from_state(loss)(params, state=state)
      updates, state = solver.update(
        grad, state, params, value=value, grad=grad, value_fn=loss
      )
      slope = optax.tree.norm(grad)
      return i + 1, slope, optax.apply_updates(params, updates), state

    def unfinished(carry):
      return (carry[0] < iterations) & (carry[1] > _MAX_SLOPE)

    shapes = (x_ND.shape[1], classes), (classes,)
    params = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)
    carry = jnp.int32(0), jnp.float32(jnp.inf), params, solver.init(params)
    return jax.lax.while_loop(unfinished, step, carry)[2]

  return jax.vmap(solve)(l2_R)


@jax.jit
def accuracies(params, x_ND, y_N) -> jax.Array:
  """Returns the accuracy of each of R regressions: float32 [R]."""
  return _count_correct(params, x_ND, y_N).astype(jnp.float32) / len(y_N)


def _count_correct(params, x_ND, y_N) -> jax.Array:
  """Counts correct answers: int32 [R]; an example labelled -1 never is."""
  w, b = params
  logits = jnp.einsum('nd,rdc->rnc', x_ND, w, precision='highest')
  correct = labels.is_correct(logits + b[:, None], y_N)
  return correct.sum(-1, dtype=jnp.int32)


def quick_probe(train_ND, train_y, test_ND, test_y, *, classes: int) -> float:
  """Returns the test accuracy of a linear probe, in [0, 1].

  The penalty, of equals the least, is chosen on the first fifth of the training
  examples, and its regression is not fitted again on all of them.

  Args:
    train_ND, test_ND: float32 features; the training rows in random order.
    train_y, test_y: int [N] in [0, classes).

  Raises:
    UserError: see `labels.check_probe`.
  """
  labels.check_probe(train_y, test_y, classes)
  held_out = int(len(train_y) * labels.HELD_OUT_SHARE)
  mean, std = train_ND.mean(0), train_ND.std(0) + _EPS
  train_ND, test_ND = (train_ND - mean) / std, (test_ND - mean) / std
  l2 = jnp.asarray(L2, jnp.float32)
  params = fit(train_ND[held_out:], train_y[held_out:], l2, classes=classes)
  scores = accuracies(params, train_ND[:held_out], train_y[:held_out])
  return float(accuracies(params, test_ND, test_y)[jnp.argmax(scores)])


@dataclasses.dataclass(frozen=True)
class Result:
  """What `evaluate` returns.

  Attributes:
    accuracy: of the test examples, in [0, 1].
    l2: the penalty of this accuracy.
    held_out: penalty -> accuracy of the held-out training examples; empty if
      there was only one penalty.
  """

  accuracy: float
  l2: float
  held_out: dict[float, float]

  @property
  def selection_note(self) -> str:
    """How the penalty was chosen, as a sentence; '' if there was only one."""
    if not self.held_out:
      return ''
    equal = list(self.held_out.values()).count(max(self.held_out.values()))
    if equal > 1:
      return (
        f'The penalty, {self.l2:g}, is the greatest of {equal} that are '
        'equally good on held-out training images.'
      )
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
  mesh,
  l2s: tuple[float, ...] = L2,
  seed: int = 0,
) -> Result:
  """Measures the linear accuracy with few labels (paper, section 6).

  Features are standardized by the mean and deviation of the training examples.
  Each penalty is tried on a fifth of every class that is held out of them (at
  least one example of two or more). The best one, of equals the greatest, is
  fitted again on ALL training examples, and the test examples are used once.

  Args:
    train_ND, test_ND: float32 features in any order, in memory or mapped from
      disk.
    train_y, test_y: int [N] in [0, classes).
    mesh: devices over which the examples are split.
    l2s: penalties, see `fit`; a single one is used as it is.
    seed: of what is held out.

  Raises:
    UserError: labels or features are wrong (see `labels.check_features`), there
      is no penalty, or one example a class and several penalties.
  """
  labels.check_features(train_ND, train_y, 'training', classes)
  labels.check_features(test_ND, test_y, 'test', classes)
  if not l2s or min(l2s) < 0:
    raise UserError(f'l2s are {tuple(l2s)}: take one or more, 0 or above.')
  train_ND, test_ND = _standardize(mesh)(
    sharding.shard_rows(train_ND, mesh, np.float32),
    sharding.shard_rows(train_y, mesh, np.int32, fill=-1),
    sharding.shard_rows(test_ND, mesh, np.float32),
  )
  fit_and_count = _compile(mesh, classes)

  def accuracy(l2, fitted_y, judged_ND, judged_y):
    """Of the examples that `judged_y` labels; -1 leaves an example out."""
    fitted, judged = (
      sharding.shard_rows(y, mesh, np.int32, fill=-1)
      for y in (fitted_y, judged_y)
    )
    correct = fit_and_count(train_ND, fitted, l2, judged_ND, judged)
    return correct / int((np.asarray(judged_y) >= 0).sum())

  l2, scores = float(l2s[0]), {}
  if len(l2s) > 1:
    held = _hold_out(train_y, seed)
    fitted_y = np.where(held, -1, train_y)
    judged_y = np.where(held, train_y, -1)
    # One after the other: the logits of all penalties on ImageNet together
    # fill any device.
    scores = {float(x): accuracy(x, fitted_y, train_ND, judged_y) for x in l2s}
    l2 = _best_penalty(scores)
  return Result(accuracy(l2, train_y, test_ND, test_y), l2, scores)


def _best_penalty(scores: dict[float, float]) -> float:
  """Returns the penalty of the highest accuracy, of equals the greatest."""
  best = max(scores, key=lambda l2: (scores[l2], l2))
  unique = list(scores.values()).count(scores[best]) == 1
  if unique and best in (min(scores), max(scores)):
    logging.warning(
      'The best penalty, %g, is the last of those tried: try others beyond.',
      best,
    )
  return best


def _hold_out(y_N, seed: int) -> np.ndarray:
  """Returns bool [N]: a fifth of every class, at least one example of two."""
  held = np.zeros(len(y_N), bool)
  for rows in labels.shuffled_by_class(y_N, seed).values():
    if len(rows) > 1:
      held[rows[: max(1, round(labels.HELD_OUT_SHARE * len(rows)))]] = True
  if not held.any():
    raise UserError(
      'With one training example a class none can be held out to choose '
      'among l2s: give one.'
    )
  return held


# Cached, so that one mesh compiles once and not at every call.
@functools.cache
def _standardize(mesh):
  def standardize(train_ND, train_y, test_ND):
    is_example = (train_y >= 0)[:, None]
    mean = train_ND.mean(0, where=is_example)
    std = train_ND.std(0, where=is_example) + _EPS
    return (train_ND - mean) / std, (test_ND - mean) / std

  return jax.jit(standardize, out_shardings=sharding.batch_sharding(mesh))


@functools.cache
def _compile(mesh, classes: int):
  """(x_ND, y_N, l2, judged_ND, judged_y) -> correct answers to `judged_y`."""
  everywhere = sharding.replicated(mesh)
  solve = jax.jit(
    functools.partial(fit, classes=classes, iterations=300),
    out_shardings=everywhere,
  )
  count = jax.jit(_count_correct, out_shardings=everywhere)

  def fit_and_count(x_ND, y_N, l2, judged_ND, judged_y) -> int:
    params = solve(x_ND, y_N, np.float32([l2]))
    return int(count(params, judged_ND, judged_y)[0])

  return fit_and_count
