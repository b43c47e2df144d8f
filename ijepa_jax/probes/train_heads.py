"""Training and judging of a sweep's heads, on cached features or on others."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import tqdm
from absl import logging

from ijepa_jax.errors import UserError
from ijepa_jax.probes import attentive_heads, labels, linear_heads
from ijepa_jax.probes.head_sweep import HeadSweep
from ijepa_jax.runtime import sharding

# init, update_heads, count_correct and diverged of each kind of sweep.
ARITHMETIC = {'linear': linear_heads, 'attentive': attentive_heads}
_BLOCK = 4096  # examples that are judged at a time, over all devices


# Cached by sweep, so that it compiles once and not at every call.
@functools.lru_cache(maxsize=4)
def compiled(sweep: HeadSweep, mesh) -> tuple[Callable, Callable, Callable]:
  """Returns `init`, `update_heads` and `count_correct` of a sweep on a mesh.

  Batches are split over all devices, and each holds the whole state. An update
  donates the state.
  """
  everywhere = sharding.replicated(mesh)
  by_rows = sharding.batch_sharding(mesh)
  heads = ARITHMETIC[sweep.kind]
  return (
    jax.jit(functools.partial(heads.init, sweep), out_shardings=everywhere),
    jax.jit(
      functools.partial(heads.update_heads, sweep),
      in_shardings=(everywhere, by_rows, by_rows, everywhere),
      out_shardings=everywhere,
      donate_argnums=0,
    ),
    jax.jit(
      functools.partial(heads.count_correct, sweep),
      in_shardings=(everywhere, by_rows, by_rows),
      out_shardings=everywhere,
    ),
  )


def train(
  sweep: HeadSweep,
  features: Mapping[str, np.ndarray],
  labels_N: np.ndarray,
  *,
  mesh,
  seed: int = 0,
  state=None,
  start: int = 0,
  on_epoch: Callable[[int, dict, dict], None] = lambda *_: None,
) -> dict[str, Any]:
  """Trains on features that don't change, in an order by (seed, epoch).

  Args:
    features: float32 {'last': [N, D], ...} or {'tokens': [N, T, D]}, in memory
      or mapped from disk.
    labels_N: int [N] in [0, classes).
    mesh: devices that share each batch.
    seed: of the first state and of the orders.
    state: after `start` epochs, to go on from; its buffers are donated.
    on_epoch: see `run_epochs`.

  Returns:
    The state after `sweep.epochs`; heads may have diverged, see `accuracies`.

  Raises:
    UserError: features or labels are wrong (see `labels.check_features`), or
      the sweep was made for another number of examples.
  """
  _check(sweep, features, labels_N, 'training')
  n, size, steps = len(labels_N), sweep.batch_size, sweep.steps_per_epoch
  if n != sweep.examples:
    raise UserError(
      f'There are {n} training examples and the sweep was made for '
      f'{sweep.examples}: make it with examples={n}.'
    )

  def batches(epoch):
    order = np.random.default_rng((seed, epoch)).permutation(n)
    for rows_B in order[: steps * size].reshape(steps, size):
      yield _rows(sweep, features, labels_N, rows_B, mesh)

  init, update, _ = compiled(sweep, mesh)
  if state is None:
    state = init(jax.random.key(seed))
  else:
    state = jax.device_put(state, sharding.replicated(mesh))
  return run_epochs(
    sweep,
    lambda state, batch, step: update(state, *batch, step),
    batches,
    state,
    start=start,
    on_epoch=on_epoch,
  )


def run_epochs(
  sweep: HeadSweep,
  update: Callable,
  batches: Callable[[int], Iterable],
  state: dict[str, Any],
  *,
  start: int,
  on_epoch: Callable[[int, dict, dict], None],
) -> dict[str, Any]:
  """Trains all heads from epoch `start` to the last.

  Args:
    update: (state, batch, step) -> state and metrics, step counted from 0.
    batches: epoch, counted from 0 -> its batches.
    state: its buffers may be donated by `update`.
    on_epoch: called with the number of finished epochs, the state, whose
      buffers the next step donates, and {'loss': [heads], 'accuracy': [heads]}
      averaged over the epoch.

  Raises:
    UserError: all heads have diverged.
  """
  diverged = set()
  with tqdm.tqdm(
    total=sweep.epochs,
    initial=start,
    desc=f'{sweep.kind} heads',
    unit='epoch',
    disable=None,
  ) as bar:
    for epoch in range(start, sweep.epochs):
      first_step = epoch * sweep.steps_per_epoch
      state, means = _one_epoch(update, batches(epoch), state, first_step)
      _warn_diverged(sweep, means['loss'], diverged)
      on_epoch(epoch + 1, state, means)
      bar.update()
  return state


def _one_epoch(update, batches, state, first_step: int):
  """-> the state after these batches, and the means of their metrics."""
  records = []
  for step, batch in enumerate(batches, first_step):
    state, metrics = update(state, batch, step)
    # While one step runs one batch waits on the device, and not all of them.
    if records:
      jax.block_until_ready(records[-1])
    records.append(metrics)
  return state, {
    k: np.mean([np.asarray(r[k]) for r in records], 0) for k in records[0]
  }


def _warn_diverged(sweep, loss_H, warned: set) -> None:
  """Warns once of each head whose loss is not finite.

  Args:
    loss_H: [heads], of an epoch.
    warned: heads that were warned of; grows.

  Raises:
    UserError: no head is left.
  """
  for head, loss in zip(sweep.heads, loss_H, strict=True):
    if not np.isfinite(loss) and head not in warned:
      warned.add(head)
      logging.warning('Head %s has diverged: take lower lrs.', head.name)
  if not np.isfinite(loss_H).any():
    raise sweep.all_diverged()


def accuracies(
  sweep: HeadSweep,
  state: dict[str, Any],
  features: Mapping[str, np.ndarray],
  labels_N: np.ndarray,
  *,
  mesh,
) -> np.ndarray:
  """Returns the accuracy of each head, in [0, 1]: float64 [heads].

  A head that has diverged has NaN.

  Args:
    features, labels_N, mesh: as for `train`.

  Raises:
    UserError: features or labels are wrong, see `labels.check_features`.
  """
  _check(sweep, features, labels_N, 'test')
  n = len(labels_N)
  block = -(-min(_BLOCK, n) // mesh.size) * mesh.size

  def batches():
    for start in range(0, n, block):
      rows_B = np.arange(start, start + block)
      rows_B[rows_B >= n] = -1  # one shape, one compilation
      yield _rows(sweep, features, labels_N, rows_B, mesh)

  return judge(sweep, state, batches(), n, mesh)


def judge(
  sweep: HeadSweep, state: dict[str, Any], batches: Iterable, n: int, mesh
) -> np.ndarray:
  """The same, of features that come in batches.

  Args:
    batches: features and labels, split over all devices; a label of -1 is no
      example.
    n: examples of all batches.
  """
  count_correct = compiled(sweep, mesh)[2]
  state = jax.device_put(state, sharding.replicated(mesh))
  correct_H = np.zeros(len(sweep.heads), np.int64)
  for features, labels_B in batches:
    correct_H += np.asarray(count_correct(state, features, labels_B))
  lost_H = ARITHMETIC[sweep.kind].diverged(sweep, state)
  return np.where(lost_H, np.nan, correct_H / n)


def _rows(sweep, features, labels_N, rows_B, mesh):
  """-> features and labels of these rows, split over all devices.

  Each process reads the rows of its own devices only. A row of -1 is any
  example, labelled -1.
  """
  by_rows = sharding.batch_sharding(mesh)

  def take(x, dtype, mask=False):
    def read(index):
      rows = rows_B[index[0]]
      values = np.asarray(x[rows], dtype)
      return np.where(rows < 0, -1, values).astype(dtype) if mask else values

    shape = len(rows_B), *np.shape(x)[1:]
    return jax.make_array_from_callback(shape, by_rows, read)

  return {
    name: take(features[name], np.float32) for name in sweep.widths
  }, take(np.asarray(labels_N), np.int32, mask=True)


def _check(sweep, features, labels_N, split: str):
  for name, width in sweep.widths.items():
    shapes, axes = (
      {k: np.shape(x) for k, x in features.items()},
      sweep.input_axes,
    )
    shape = shapes.get(name, ())
    if shape[-1:] != (width,) or len(shape) != len(axes) + 1:
      raise UserError(
        f'The {split} features are {shapes}: the sweep needs {name!r} as '
        f'[{", ".join(axes)}, {width}].'
      )
    # Of no rows, -1 would be no number.
    rows_NF = np.reshape(features[name], (shape[0], math.prod(shape[1:])))
    labels.check_features(rows_NF, labels_N, split, sweep.classes)
