"""Reading checkpoints: the newest one that is complete and undamaged.

Every checkpoint carries a checksum of each array, because compressed data with
a flipped bit may still decompress. checkpointer.py says what a directory holds.
"""

import dataclasses
import os

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files
from ijepa_jax.runtime.checkpoint import checksums

_MISMATCHES_SHOWN = 5
_MAX_ERROR_LENGTH = 400  # characters
_ORBAX = os.path.dirname(os.path.dirname(ocp.__path__[0])) + os.sep


def _is_worth_showing(record) -> bool:
  # Orbax logs sixty lines a save, and the traceback of a failed one in every
  # thread. The error itself reaches this package, which says it in a sentence.
  if not record.pathname.startswith(_ORBAX):
    return True
  return record.levelname not in ('DEBUG', 'INFO') and not record.exc_info


logging.get_absl_logger().addFilter(_is_worth_showing)


class CheckpointError(UserError):
  """A checkpoint could not be written, or none could be read: one sentence."""


class CheckpointReader:
  """Reads the checkpoints of one run; every process of the run calls alike.

  Args:
    directory: of all checkpoints; it need not exist.
    finite: pass over a checkpoint with a number that is not finite as damaged.

  Raises:
    UserError: Orbax can't read from such a path, see `files.check_checkpoints`.
  """

  def __init__(self, directory, *, finite: bool = True):
    # Orbax takes no relative path.
    directory = files.resolve(directory)
    files.check_checkpoints(directory, save=False)
    self.directory = ocp.path.Path(os.fspath(directory))
    self._finite = finite

  def steps(self) -> list[int]:
    """Returns the finished steps of all complete checkpoints, ascending."""
    names = ocp.path.step.standard_name_format()
    return sorted(entry.step for entry in names.find_all(self.directory))

  def restore(self, abstract_state):
    """Loads the newest checkpoint that can be read.

    A damaged one is logged, passed over and, once another one was loaded,
    renamed to `<step>.corrupt`.

    Args:
      abstract_state: tree of jax.ShapeDtypeStruct with shardings, which may
        differ from those that the checkpoint was saved with.

    Returns:
      (state, step), or None if there is no checkpoint.

    Raises:
      UserError: a checkpoint holds other arrays than the model; none is moved.
      CheckpointError: there are checkpoints, and none can be read.
    """
    steps = self._agreed_steps()
    if not steps:
      return None
    state, step, damaged = self._load_newest(steps, abstract_state)
    self._move_aside(damaged)
    return state, step

  def read(self, abstract_part, step: int | None = None):
    """Loads some of the arrays of a checkpoint, and moves none.

    Args:
      abstract_part: as in `restore`; other arrays are not read.
      step: of the checkpoint; None: the newest that can be read.

    Returns:
      (part, step).

    Raises:
      UserError: there is no such checkpoint, or it holds other arrays.
      CheckpointError: it can't be read.
    """
    steps = self._select_steps(step)
    return self._load_newest(steps, abstract_part, partial=True)[:2]

  def names(self, step: int | None = None) -> set[str]:
    """Returns the names of a checkpoint's arrays: {'target/norm/scale', ...}.

    Args:
      step: of the checkpoint; None: the newest whose list can be read.

    Raises:
      UserError: there is no such checkpoint.
      CheckpointError: it can't be read.
    """
    steps = self._select_steps(step)
    for candidate in reversed(steps):
      with _ReadFailures() as failures:
        stored = ocp.metadata(self.directory / str(candidate)).metadata
      if not failures.reason and (names := checksums.leaves_by_name(stored)):
        return set(names)
    raise CheckpointError(
      f'None of the lists of arrays of the checkpoints {steps} in '
      f'{self.directory} can be read: bring one back.'
    )

  def _agreed_steps(self) -> list[int]:
    """Returns process 0's: a shared disk may show others an older list."""
    steps = self.steps()
    if jax.process_count() == 1:
      return steps
    n = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
    steps = np.resize(np.int32(steps or [0]), n)
    return multihost_utils.broadcast_one_to_all(steps).tolist() if n else []

  def _select_steps(self, step: int | None) -> list[int]:
    """Returns this step, or all steps for None."""
    steps = self._agreed_steps()
    if not steps or step not in (None, *steps):
      raise UserError(
        f'There is no checkpoint {"" if step is None else f"{step} "}in '
        f'{self.directory}; there are: {", ".join(map(str, steps)) or "none"}.'
      )
    return steps if step is None else [step]

  def _load_newest(self, steps, abstract_state, partial=False):
    """-> state, its step, and the steps of newer ones that are damaged."""
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
    """-> (state, None), or (None, why it can't be read) on every process."""
    path = self.directory / str(step)
    with _ReadFailures() as failures:
      stored = ocp.metadata(path)
      expected_sums = (stored.custom_metadata or {}).get('checksums')
      if stored.metadata is None or expected_sums is None:
        raise UserError('its list of arrays or of checksums is unreadable')
    if failures.reason:
      return None, failures.reason
    if differences := _differences(abstract_state, stored.metadata, partial):
      more = len(differences) - _MISMATCHES_SHOWN
      raise UserError(
        f'Checkpoint {step} in {self.directory} is of another model: '
        + '; '.join(differences[:_MISMATCHES_SHOWN])
        + (f'; and {more} more' if more > 0 else '')
        + '. Take the config that it was made with, or another workdir.'
      )
    with _ReadFailures() as failures:
      context = ocp.Context()
      context.pytree.loading.partial_load = partial
      with context:
        present = without_none(abstract_state)
        state = ocp.load(path, present)
      if present is not abstract_state:
        state = dataclasses.replace(abstract_state, **state)
      sums, not_finite = checksums.inspect(state)
      wrong = [k for k, value in sums.items() if expected_sums.get(k) != value]
      if wrong:
        raise UserError(f'wrong checksum of {", ".join(wrong[:3])}')
      if not_finite and self._finite:
        raise UserError(f'not all numbers are finite, as in {not_finite[0]}')
    return (None, failures.reason) if failures.reason else (state, None)

  def _move_aside(self, steps: list[int]) -> None:
    """Renames damaged checkpoints, to leave their place to later saves."""
    for step in steps if jax.process_index() == 0 else ():
      path = self.directory / str(step)
      aside, n = self.directory / f'{step}.corrupt', 1
      while aside.exists():
        aside, n = self.directory / f'{step}.corrupt{n}', n + 1
      path.rename(aside)
      logging.error('Moved the damaged %s to %s.', path, aside)
    if steps and jax.process_count() > 1:
      multihost_utils.sync_global_devices('damaged checkpoints moved')


class _ReadFailures:
  """Collects a read error of any process, so that all processes agree.

  `reason` is None if no process failed. Errors that are not the checkpoint's
  fault pass through: calling it damaged would throw away good work.
  """

  reason: str | None = None

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    if error is not None:
      root = _root_cause(error)
      if not isinstance(root, Exception) or isinstance(
        root, (MemoryError, PermissionError, jax.errors.JaxRuntimeError)
      ):
        return False
      self.reason = describe(error)
    if jax.process_count() > 1:
      failed = multihost_utils.process_allgather(np.int32(error is not None))
      if failed.any() and self.reason is None:
        self.reason = f'process {failed.argmax()} could not read it'
    return True


def _root_cause(error: BaseException) -> BaseException:
  # Orbax wraps any error in 'incompatible handler'.
  while error.__cause__ is not None:
    error = error.__cause__
  return error


def describe(error: BaseException) -> str:
  """Returns the type and words of an error's root cause, on one line."""
  root = _root_cause(error)
  words = ' '.join(str(root).split())
  if len(words) > _MAX_ERROR_LENGTH:
    words = words[:_MAX_ERROR_LENGTH] + '...'
  return f'{type(root).__name__}: {words}'


def without_none(state):
  """Returns a state as it is stored: without the fields that are None.

  Orbax would store that there is nothing, and refuse checkpoints without it.
  """
  if not dataclasses.is_dataclass(state):
    return state
  fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
  present = {name: x for name, x in fields.items() if x is not None}
  return state if present.keys() == fields.keys() else present


def _differences(abstract_state, stored, partial: bool) -> list[str]:
  """Returns how two trees of shaped leaves differ, a clause for each leaf.

  Args:
    partial: leaves that only `stored` has are no difference.
  """

  def kind(leaf):
    if leaf is None:
      return 'missing'
    return f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'

  model = checksums.leaves_by_name(abstract_state)
  stored = checksums.leaves_by_name(stored)
  return [
    f'{name} is {kind(stored.get(name))} there and {kind(model.get(name))} in '
    'the model'
    for name in (model if partial else model | stored)
    if kind(stored.get(name)) != kind(model.get(name))
  ]
