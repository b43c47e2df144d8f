"""Saving the state by rules, and restoring it, with Orbax v1.

    directory/1000/          the state after 1000 finished steps
    directory/2000.corrupt/  one that could not be read, moved out of the way
    directory/3000.orbax-checkpoint-tmp/  what a killed save left; ignored, and
                             cleared by the next save

Saves are asynchronous: `save` returns when the state is on the host, so that
its buffers may be donated at once. reader.py reads.
"""

import contextlib
import dataclasses
import math
import sys
import threading
import time

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost
from orbax.checkpoint import v1 as ocp

from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files
from ijepa_jax.runtime.checkpoint import checksums
from ijepa_jax.runtime.checkpoint.reader import (
  CheckpointError,
  CheckpointReader,
  describe,
  without_none,
)

# Several processes agree on the clock only this often: it stalls the devices.
_CLOCK_STEPS = 10


def _barrier(*, key: str, timeout_ms: int) -> None:
  """Waits for the other processes, but not with a save that failed in this one.

  Orbax would wait five minutes for them, which wait for this one.
  """
  # In Orbax's thread, of the `finally` that calls this. The main thread may
  # save for the reason that something else has failed.
  error = sys.exc_info()[1]
  if error and threading.current_thread() is not threading.main_thread():
    raise error
  multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


class NotFinite(CheckpointError):
  """A state is not saved, since a number in it is not finite."""


class Checkpointer(CheckpointReader):
  """The checkpoints of one run; every process of the run calls alike.

  Writes nothing until the first `save`, so that an evaluation may read the
  checkpoints of a running job.
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
    """Takes the rules of config.checkpoint.

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
        over such a checkpoint as damaged; False: for a state whose parts may
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
    super().__init__(directory, finite=finite)
    self._every_steps, self._every_minutes = every_steps, every_minutes
    self._keep_last, self._keep_every = keep_last, keep_every
    self._keep_best, self._keep_best_mode = keep_best, keep_best_mode
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
      logging.error('%s', error)  # The error that is raised matters more.

  @property
  def keeps_best(self) -> bool:
    """Whether the best checkpoint is chosen by a metric."""
    return bool(self._keep_best)

  def should_save(self, step: int) -> bool:
    """Returns whether the rules say to save finished `step`, alike everywhere.

    Several processes ask the clock every 10 steps only.
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
      CheckpointError: this save, or the one before, failed.
      NotFinite: the state is not worth keeping; nothing was written.
    """
    files.check_checkpoints(self.directory)
    self.wait()
    sums, not_finite = checksums.inspect(state)
    if not_finite and self._finite:
      raise NotFinite(
        f'The state after step {step} is not saved: not all of its numbers are '
        f'finite, as in {not_finite[0]}; the last good checkpoint is '
        f'{max(self.steps(), default="none")}.'
      )
    with self._as_checkpoint_error(step):
      if self._orbax is None:
        self._orbax = self._open_orbax()
      best = (values or {}).get(self._keep_best)
      best = best if best is not None and math.isfinite(best) else None
      response = self._orbax.save_async(
        step,
        without_none(state),
        force=True,
        metrics=None if best is None else {self._keep_best: float(best)},
        custom_metadata={'checksums': sums},
      )
    self._pending = step, response
    self._last_save = time.monotonic()
    logging.info('Saving checkpoint %d.', step)

  def _open_orbax(self) -> ocp.training.Checkpointer:
    """Makes Orbax's own checkpointer, which deletes by the rules."""
    saving = ocp.training.save_decision_policies
    keeping = ocp.training.preservation_policies
    policies = [keeping.LatestN(self._keep_last)]
    if self._keep_every:
      policies.append(keeping.EveryNSteps(self._keep_every))
    if self._keep_best:
      lowest = self._keep_best_mode == 'min'
      worst = math.inf if lowest else -math.inf

      def metric(values):
        value = values.get(self._keep_best, worst)
        return value if math.isfinite(value) else worst

      best = keeping.BestN(
        get_metric_fn=metric,
        reverse=lowest,
        n=1,
        keep_checkpoints_without_metrics=False,
      )
      policies.append(best)
    context = ocp.Context()
    options = context.asynchronous
    # If True, Orbax waits five minutes for a folder that can't be made.
    options.create_directories_asynchronously = False
    of_orbax = options.v0
    options.v0 = lambda: dataclasses.replace(
      of_orbax(), barrier_sync_fn=_barrier
    )
    return ocp.training.Checkpointer(
      self.directory,
      context=context,
      # `should_save` decides; Orbax's default is as often as it can.
      save_decision_policy=saving.FixedIntervalPolicy(1),
      preservation_policy=keeping.AnyPreservationPolicy(policies),
      cleanup_tmp_directories=True,
    )

  def wait(self) -> None:
    """Waits until the save under way is complete.

    Raises:
      CheckpointError: it failed.
    """
    if self._pending is None:
      return
    (step, response), self._pending = self._pending, None
    try:
      with self._as_checkpoint_error(step):
        self._orbax.wait()
    finally:
      with contextlib.suppress(Exception):
        response.result()  # Joins the background thread of the save.

  def close(self) -> None:
    """Waits, and ends Orbax's threads."""
    try:
      self.wait()
    finally:
      orbax, self._orbax = self._orbax, None
      try:
        if orbax is not None:
          orbax.close()
      except Exception as error:  # of a save that `wait` has told of
        logging.error('Orbax ended with an error: %s', describe(error))

  @contextlib.contextmanager
  def _as_checkpoint_error(self, step: int):
    """Turns any error of a save into one sentence: Orbax raises many kinds."""
    try:
      yield
    except Exception as error:
      loadable = 'unknown'
      with contextlib.suppress(Exception):  # of a bucket that is still away
        loadable = ', '.join(map(str, self.steps())) or 'none'
      raise CheckpointError(
        f'Checkpoint {step} could not be written to {self.directory} '
        f'({describe(error)}); what can be loaded: {loadable}. Once there is '
        'room again, or the bucket, the same command goes on from the newest.'
      ) from error
