"""Heads trained on cached features, and judged."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from absl import logging

from ijepa_jax.errors import UserError
from ijepa_jax.probes import labels, linear_heads
from ijepa_jax.runtime import sharding

_ALL_DIVERGED = 'All of the {} linear heads have diverged: take lower lrs.'


# Made once for each sweep, not at every call, so that they compile once.
@functools.lru_cache(maxsize=4)
def compiled(
  sweep: linear_heads.HeadSweep, mesh
) -> tuple[Callable, Callable, Callable]:
  """-> `init`, `update` and `count_correct` of one sweep, over a mesh.

  Batches are split over all devices, the state is on each of them; `update`
  takes the place of the state that it is given.
  """
  whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  return (
    jax.jit(functools.partial(linear_heads.init, sweep), out_shardings=whole),
    jax.jit(
      functools.partial(linear_heads.update_heads, sweep),
      in_shardings=(whole, split, split, whole),
      out_shardings=whole,
      donate_argnums=0,
    ),
    jax.jit(
      functools.partial(linear_heads.count_correct, sweep),
      in_shardings=(whole, split, split),
      out_shardings=whole,
    ),
  )


def train(
  sweep: linear_heads.HeadSweep,
  features: Mapping[str, np.ndarray],
  labels_N: np.ndarray,
  *,
  mesh=None,
  seed: int = 0,
  state=None,
  start: int = 0,
  on_epoch: Callable[[int, dict, dict], None] | None = None,
) -> dict[str, Any]:
  """Trains on features that don't change, in an order by (seed, epoch).

  Args:
    features: float32 {'last': [N, D], ...}, numpy or mapped from disk.
    labels_N: int [N] in [0, classes).
    mesh: devices that share each batch; None: all.
    seed: of the start and of the orders.
    state: after `start` epochs, to go on from; it is used up.
    on_epoch: called with the number of epochs done, the state, which the next
      step uses up, and {'loss': [heads], 'accuracy': [heads]} averaged over
      the epoch.

  Returns:
    The state after `sweep.epochs`; heads may have diverged, see `accuracies`.

  Raises:
    UserError: features or labels that can't be (see `labels.check_features`),
      another number of them than the sweep was made for, or a batch that
      doesn't divide over the devices.
  """
  mesh = mesh or sharding.make_mesh()
  _check(sweep, features, labels_N, 'training')
  n, size, steps = len(labels_N), sweep.batch_size, sweep.steps_per_epoch
  if n // size != steps:
    raise UserError(
      f'{n} training examples make {n // size} batches of {size} and the sweep '
      f'was made for {steps}: give make_sweep examples={n}.'
    )
  if size % mesh.size:
    raise UserError(
      f'batch_size is {size}: take a multiple of the {mesh.size} devices.'
    )
  make, step, _ = compiled(sweep, mesh)
  if state is None:
    state = make(jax.random.key(seed))
  else:
    state = jax.device_put(state, sharding.replicated(mesh))
  diverged = set()
  with tqdm.tqdm(
    total=sweep.epochs,
    initial=start,
    desc='linear heads',
    unit='epoch',
    disable=None,
  ) as bar:
    for epoch in range(start, sweep.epochs):
      order = np.random.default_rng((seed, epoch)).permutation(n)
      records = []
      for i in range(steps):
        batch = _rows(
          sweep, features, labels_N, order[i * size : (i + 1) * size], mesh
        )
        state, values = step(state, *batch, epoch * steps + i)
        # One batch waits on the device while one runs, not all of them.
        if records:
          jax.block_until_ready(records[-1])
        records.append(values)
      means = {
        k: np.mean([np.asarray(r[k]) for r in records], 0) for k in records[0]
      }
      note_diverged(sweep, means['loss'], diverged)
      if on_epoch:
        on_epoch(epoch + 1, state, means)
      bar.update()
  return state


def note_diverged(sweep: linear_heads.HeadSweep, losses, noted: set) -> None:
  """Names each head whose loss is no number in the log, once.

  Args:
    losses: [heads], of an epoch.
    noted: heads that were named before; grows.

  Raises:
    UserError: no head is left: nothing could come of the rest.
  """
  for head, loss in zip(sweep.heads, losses, strict=True):
    if not np.isfinite(loss) and head not in noted:
      noted.add(head)
      logging.warning('Head %s has diverged: take lower lrs.', head.name)
  if not np.isfinite(losses).any():
    raise UserError(_ALL_DIVERGED.format(len(losses)))


def accuracies(
  sweep: linear_heads.HeadSweep,
  state: dict[str, Any],
  features: Mapping[str, np.ndarray],
  labels_N: np.ndarray,
  *,
  mesh=None,
  block: int = 4096,
) -> np.ndarray:
  """Accuracy of each head, in [0, 1]: float64 [heads]; NaN: it has diverged.

  Args:
    features, labels_N, mesh: as for `train`.
    block: examples at a time, over all devices.

  Raises:
    UserError: features or labels that can't be, see `labels.check_features`.
  """
  mesh = mesh or sharding.make_mesh()
  _check(sweep, features, labels_N, 'test')
  judge = compiled(sweep, mesh)[2]
  state = jax.device_put(state, sharding.replicated(mesh))
  n = len(labels_N)
  block = -(-min(block, n) // mesh.size) * mesh.size
  right = np.zeros(len(sweep.heads), np.int64)
  for start in range(0, n, block):
    rows = np.arange(start, start + block)
    rows[rows >= n] = -1  # one shape, one compilation
    right += np.asarray(
      judge(state, *_rows(sweep, features, labels_N, rows, mesh))
    )
  lost = linear_heads.diverged(sweep, state)
  return np.where(lost, np.nan, right / n)


def report(
  sweep: linear_heads.HeadSweep, accuracies: Sequence[float]
) -> dict[str, Any]:
  """Every head, the best, and the best of each input.

  The best are chosen on what they are reported on, as the paper's are.

  Args:
    accuracies: one for each head; NaN: it has diverged.

  Returns:
    {'chosen': how, in words, 'heads': {name: accuracy, or None of one that
    has diverged}, 'best': {'head': name, 'accuracy': ...}, 'best_last': ...,
    'best_last4': ...}; of equals the first; without the best of an input of
    which all heads have diverged.

  Raises:
    UserError: all heads have diverged.
  """
  scores = {
    head: float(a) if np.isfinite(a) else None
    for head, a in zip(sweep.heads, accuracies, strict=True)
  }

  def best(among):
    head = max(among, key=scores.get)
    return {'head': head.name, 'accuracy': scores[head]}

  kept = [head for head in scores if scores[head] is not None]
  if not kept:
    raise UserError(_ALL_DIVERGED.format(len(scores)))
  counts = {'linear': len(kept)}
  for name in sweep.widths:
    counts[f'linear_{name}'] = sum(h.input == name for h in kept)
  return {
    'chosen': _chosen(counts),
    'heads': {head.name: score for head, score in scores.items()},
    'best': best(kept),
    **{
      f'best_{name}': best([h for h in kept if h.input == name])
      for name in sweep.widths
      if name in {h.input for h in kept}
    },
  }


def _chosen(counts: Mapping[str, int]) -> str:
  """How the best were chosen, in words; '' where each is the only one."""
  if max(counts.values()) < 2:
    return ''
  each = [f'{k} is the best of {n} heads' for k, n in counts.items() if n]
  return f'{", ".join(each)}: chosen on the test images, as in the paper.'


def _rows(sweep, features, labels_N, rows_B, mesh):
  """-> features and labels at these rows, split over all devices.

  Each process reads its own devices' rows only; a row of -1 is any example,
  labelled -1.
  """
  split = sharding.batch_sharding(mesh)

  def take(x, dtype, mask=False):
    def part(index):
      rows = rows_B[index[0]]
      values = np.asarray(x[rows], dtype)
      return np.where(rows < 0, -1, values).astype(dtype) if mask else values

    shape = len(rows_B), *np.shape(x)[1:]
    return jax.make_array_from_callback(shape, split, part)

  return {
    name: take(features[name], np.float32) for name in sweep.widths
  }, take(np.asarray(labels_N), np.int32, mask=True)


def _check(sweep, features, labels_N, which):
  for name, width in sweep.widths.items():
    if name not in features or np.shape(features[name])[1:] != (width,):
      there = {k: np.shape(x) for k, x in features.items()}
      raise UserError(
        f'The {which} features are {there}: the sweep needs {name!r} as '
        f'[N, {width}].'
      )
    labels.check_features(features[name], labels_N, which, sweep.classes)
