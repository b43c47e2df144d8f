"""Saving and restoring the state, with Orbax v1.

    directory/1000/          the state after 1000 finished steps
    directory/2000.corrupt/  one that could not be read, moved out of the way
    directory/3000.orbax-checkpoint-tmp/  what a killed save left; ignored, and
                             cleared by the next save

Saves are asynchronous: `save` returns when the state is on the host, so its
buffers may be donated at once. Every checkpoint carries a checksum of each
array, because compressed data with a flipped bit may still decompress.
"""

import contextlib
import math
import os
import time

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files
from ijepa_jax.runtime.checkpoint import checksums

# Several processes agree on the clock only this often: it stalls the devices.
_CLOCK_STEPS = 10
_MISMATCHES_SHOWN = 5
_ORBAX = os.path.dirname(os.path.dirname(ocp.__path__[0])) + os.sep


def _worth_showing(record) -> bool:
  # Orbax logs sixty lines a save, and a failed one's traceback in every thread;
  # the error itself arrives here and is told in a sentence.
  if not record.pathname.startswith(_ORBAX):
    return True
  return record.levelname not in ('DEBUG', 'INFO') and not record.exc_info


logging.get_absl_logger().addFilter(_worth_showing)


class CheckpointError(UserError):
  """A checkpoint could not be written, or none could be read: one sentence."""


class NotFinite(CheckpointError):
  """A state that is not saved, since a number in it is not finite."""


class Checkpointer:
  """The checkpoints of one run; every process of the run calls alike.

  Only looks until the first `save`, so an evaluation may watch a running job.
  """

  def __init__(
    self,
    directory,
    *,
    every_steps: int = 0,
    every_minutes: float = 0.0,
    keep_last: int = 3,
    keep_every: int = 0,
    keep_best: str = '',
    keep_best_mode: str = 'max',
    finite: bool = True,
  ):
    """Takes the rules; nothing is written yet.

    Args:
      directory: of all checkpoints; made at the first save.
      every_steps: save when a step is a multiple; 0: not by steps.
      every_minutes: save when the last save is this long ago by the clock of
        process 0; 0: not by time.
      keep_last: newest checkpoints to keep, at least 1; older ones are deleted
        once a newer one is complete.
      keep_every: of those saved, multiples of this are never deleted; 0: none.
      keep_best: name of a metric; of those saved with it the best is kept too;
        '': none.
      keep_best_mode: 'max' or 'min', which is best.
      finite: refuse to save a state with a number that is not finite, and pass
        such a checkpoint over as damaged; False: of a state whose parts may
        diverge alone.

    Raises:
      UserError: a number is too small, or nothing can be read at such a path.
    """
    numbers = every_steps, every_minutes, keep_every
    if min(numbers) < 0 or keep_last < 1:
      raise UserError(
        f'checkpoint: every_steps, every_minutes and keep_every are {numbers}, '
        f'keep_last is {keep_last}: take 0 or more, and 1 or more.'
      )
    if keep_best_mode not in ('max', 'min'):
      raise UserError(
        f'checkpoint.keep_best_mode is {keep_best_mode!r}: take max or min.'
      )
    # Orbax takes no relative one.
    directory = files.resolve(directory)
    files.check_checkpoints(directory, save=False)
    self.directory = ocp.path.Path(os.fspath(directory))
    self._every_steps, self._every_minutes = every_steps, every_minutes
    self._keep_last, self._keep_every = keep_last, keep_every
    self._keep_best, self._keep_best_mode = keep_best, keep_best_mode
    self._finite = finite
    self._orbax = None
    self._pending = None
    self._last_save = time.monotonic()

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    try:
      self.close()
    except CheckpointError as error:
      if kind is None:
        raise
      logging.error('%s', error)  # What is on its way out matters more.

  def steps(self) -> list[int]:
    """Finished steps of all complete checkpoints, ascending."""
    names = ocp.path.step.standard_name_format()
    return sorted(found.step for found in names.find_all(self.directory))

  def _agreed_steps(self) -> list[int]:
    """Process 0's: a shared disk may show the others an older list."""
    steps = self.steps()
    if jax.process_count() == 1:
      return steps
    n = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
    steps = np.resize(np.int32(steps or [0]), n)
    return multihost_utils.broadcast_one_to_all(steps).tolist() if n else []

  @property
  def keeps_best(self) -> bool:
    """Whether the best checkpoint is chosen by a metric saved with it."""
    return bool(self._keep_best)

  def restore(self, abstract_state):
    """Loads the newest checkpoint that can be read.

    One that can't is reported, passed over and, once another one was loaded,
    renamed to `<step>.corrupt`.

    Args:
      abstract_state: tree of jax.ShapeDtypeStruct with shardings, which may
        differ from those that the checkpoint was saved with.

    Returns:
      (state, step), or None where there is no checkpoint.

    Raises:
      UserError: a checkpoint holds other arrays than the model; none is moved.
      CheckpointError: there are checkpoints, and none can be read.
    """
    steps = self._agreed_steps()
    if not steps:
      return None
    state, step, damaged = self._first_readable(steps, abstract_state)
    self._move_aside(damaged)
    return state, step

  def read(self, part, step: int | None = None):
    """Loads some of the arrays of a checkpoint, and moves none.

    Args:
      part: as in `restore`; its leaves' names are looked for, others left.
      step: of the checkpoint; None: the newest that can be read.

    Returns:
      (part, step).

    Raises:
      UserError: there is no such checkpoint, or it holds other arrays.
      CheckpointError: it can't be read.
    """
    return self._first_readable(self._these(step), part, partial=True)[:2]

  def names(self, step: int | None = None) -> set[str]:
    """Of the arrays in a checkpoint: {'target/norm/scale', ...}.

    Args:
      step: of the checkpoint; None: the newest whose list can be read.

    Raises:
      UserError: there is no such checkpoint.
      CheckpointError: it can't be read.
    """
    steps = self._these(step)
    for newest in reversed(steps):
      with _ReadFailures() as reading:
        found = ocp.metadata(self.directory / str(newest)).metadata
      if not reading.reason and (names := set(checksums.leaves_by_name(found))):
        return names
    raise CheckpointError(
      f'None of the lists of arrays of the checkpoints {steps} in '
      f'{self.directory} can be read: bring one back.'
    )

  def _these(self, step: int | None) -> list[int]:
    steps = self._agreed_steps()
    if not steps or step not in (None, *steps):
      raise UserError(
        f'There is no checkpoint {"" if step is None else f"{step} "}in '
        f'{self.directory}; there are: {", ".join(map(str, steps)) or "none"}.'
      )
    return steps if step is None else [step]

  def _first_readable(self, steps, abstract_state, partial=False):
    """(state, its step, steps of newer ones that are damaged)."""
    damaged = []
    for step in reversed(steps):
      state, reason = self._load(step, abstract_state, partial)
      if reason is None:
        return state, step, damaged
      logging.error(
        'Checkpoint %s is damaged: %s.', self.directory / str(step), reason
      )
      damaged.append(step)
    raise CheckpointError(
      f'None of the checkpoints {steps} in {self.directory} can be read (the '
      'log says why): bring one back, or move them away to start over.'
    )

  def _load(self, step: int, abstract_state, partial: bool):
    """(state, None), or (None, why it can't be read) on every process."""
    path = self.directory / str(step)
    with _ReadFailures() as reading:
      found = ocp.metadata(path)
      expected = (found.custom_metadata or {}).get('checksums')
      if found.metadata is None or expected is None:
        raise UserError('its list of arrays or of checksums is unreadable')
    if reading.reason:
      return None, reading.reason
    if differences := _differences(abstract_state, found.metadata, partial):
      more = len(differences) - _MISMATCHES_SHOWN
      raise UserError(
        f'Checkpoint {step} in {self.directory} is of another model: '
        + '; '.join(differences[:_MISMATCHES_SHOWN])
        + (f'; and {more} more' if more > 0 else '')
        + '. Take the config that it was made with, or another workdir.'
      )
    with _ReadFailures() as reading:
      context = ocp.Context()
      context.pytree.loading.partial_load = partial
      with context:
        state = ocp.load(path, abstract_state)
      sums, spoilt = checksums.examined(state)
      wrong = [k for k, value in sums.items() if expected.get(k) != value]
      if wrong:
        raise UserError(f'wrong checksum of {", ".join(wrong[:3])}')
      if spoilt and self._finite:
        raise UserError(f'not all numbers are finite, as in {spoilt[0]}')
    return (None, reading.reason) if reading.reason else (state, None)

  def _move_aside(self, steps: list[int]) -> None:
    # So that a later save of the same step finds its place free.
    for step in steps if jax.process_index() == 0 else ():
      path = self.directory / str(step)
      aside, n = self.directory / f'{step}.corrupt', 1
      while aside.exists():
        aside, n = self.directory / f'{step}.corrupt{n}', n + 1
      path.rename(aside)
      logging.error('Moved the damaged %s to %s.', path, aside)
    if steps and jax.process_count() > 1:
      multihost_utils.sync_global_devices('damaged checkpoints moved')

  def should_save(self, step: int) -> bool:
    """Whether the rules want `step`, finished, to be saved; alike everywhere.

    Several processes look at the clock only every 10 steps.
    """
    if self._every_steps and step % self._every_steps == 0:
      return True
    if not self._every_minutes:
      return False
    due = time.monotonic() - self._last_save >= 60 * self._every_minutes
    if jax.process_count() == 1:
      return due
    if step % _CLOCK_STEPS:
      return False
    return bool(multihost_utils.broadcast_one_to_all(np.int32(due)))

  def save(self, step: int, state, values: dict | None = None) -> None:
    """Starts to save `state`.

    Waits for the save before, and until `state` is on the host.

    Args:
      step: finished steps.
      state: a tree of jax.Array.
      values: metrics of this state, for `keep_best`; one that is not finite
        is never best.

    Raises:
      UserError: nothing can be saved to such a path, see runtime/files.py.
      CheckpointError: this save, or the one before, failed. NotFinite: the
        state is not worth keeping; nothing was written.
    """
    files.check_checkpoints(self.directory)
    self.wait()
    sums, spoilt = checksums.examined(state)
    if spoilt and self._finite:
      there = max(self.steps(), default='none')
      raise NotFinite(
        f'The state after step {step} is not saved: not all of its numbers are '
        f'finite, as in {spoilt[0]}; the last good checkpoint is {there}.'
      )
    with self._telling(step):
      if self._orbax is None:
        self._orbax = self._open()
      best = (values or {}).get(self._keep_best)
      best = best if best is not None and math.isfinite(best) else None
      response = self._orbax.save_async(
        step,
        state,
        force=True,
        metrics=None if best is None else {self._keep_best: float(best)},
        custom_metadata={'checksums': sums},
      )
    self._pending = step, response
    self._last_save = time.monotonic()
    logging.info('Saving checkpoint %d.', step)

  def _open(self) -> ocp.training.Checkpointer:
    saving = ocp.training.save_decision_policies
    keeping = ocp.training.preservation_policies
    kept = [keeping.LatestN(self._keep_last)]
    if self._keep_every:
      kept.append(keeping.EveryNSteps(self._keep_every))
    if self._keep_best:
      lowest = self._keep_best_mode == 'min'
      worst = math.inf if lowest else -math.inf

      def value(values):
        value = values.get(self._keep_best, worst)
        return value if math.isfinite(value) else worst

      best = keeping.BestN(
        get_metric_fn=value,
        reverse=lowest,
        n=1,
        keep_checkpoints_without_metrics=False,
      )
      kept.append(best)
    context = ocp.Context()
    # Else a folder that can't be made is waited for, for five minutes.
    context.asynchronous.create_directories_asynchronously = False
    return ocp.training.Checkpointer(
      self.directory,
      context=context,
      # `should_save` decides; Orbax's default is as often as it can.
      save_decision_policy=saving.FixedIntervalPolicy(1),
      preservation_policy=keeping.AnyPreservationPolicy(kept),
      cleanup_tmp_directories=True,
    )

  def wait(self) -> None:
    """Until the save under way is complete.

    Raises:
      CheckpointError: it failed.
    """
    if self._pending is None:
      return
    (step, response), self._pending = self._pending, None
    try:
      with self._telling(step):
        self._orbax.wait()
    finally:
      with contextlib.suppress(Exception):
        response.result()  # Ends the thread that waits beside this one.

  def close(self) -> None:
    """Waits, and lets Orbax's threads go."""
    try:
      self.wait()
    finally:
      if self._orbax is not None:
        self._orbax.close()
        self._orbax = None

  @contextlib.contextmanager
  def _telling(self, step: int):
    try:
      yield
    except Exception as error:
      there = ', '.join(map(str, self.steps())) or 'none'
      raise CheckpointError(
        f'Checkpoint {step} could not be written to {self.directory} '
        f'({_reason(error)}); what can be loaded: {there}. Make room, and the '
        'same command goes on from the newest.'
      ) from error


class _ReadFailures:
  """Turns what fails while reading a checkpoint into a reason for everybody.

  `reason` is None where no process failed. What is not the checkpoint's fault
  passes through: calling it damaged would throw away good work.
  """

  reason: str | None = None

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    if error is not None:
      root = _root(error)
      if not isinstance(root, Exception) or isinstance(
        root, (MemoryError, PermissionError, jax.errors.JaxRuntimeError)
      ):
        return False
      self.reason = _reason(error)
    if jax.process_count() > 1:
      failed = multihost_utils.process_allgather(np.int32(error is not None))
      if failed.any() and self.reason is None:
        self.reason = f'process {failed.argmax()} could not read it'
    return True


def _root(error: BaseException) -> BaseException:
  # Orbax wraps whatever happened in 'incompatible handler'.
  while error.__cause__ is not None:
    error = error.__cause__
  return error


def _reason(error: BaseException) -> str:
  root = _root(error)
  words = ' '.join(str(root).split())
  words = words if len(words) <= 400 else words[:400] + '...'
  return f'{type(root).__name__}: {words}'


def _differences(wanted, found, partial: bool) -> list[str]:
  """What two trees of shaped leaves don't have in common, in words."""

  def kind(leaf):
    if leaf is None:
      return 'missing'
    return f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'

  wanted, found = (
    checksums.leaves_by_name(wanted),
    checksums.leaves_by_name(found),
  )
  return [
    f'{name} is {kind(found.get(name))} there and {kind(wanted.get(name))} in '
    'the model'
    for name in (wanted if partial else wanted | found)
    if kind(found.get(name)) != kind(wanted.get(name))
  ]
