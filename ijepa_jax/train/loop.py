"""The loop of every training: batches, steps, records, saves."""

import contextlib
import math
import time

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from ijepa_jax.data import loader
from ijepa_jax.errors import UserError
from ijepa_jax.methods.train_step import State
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.runtime.progress import Progress, Throughput
from ijepa_jax.runtime.timing import starts
from ijepa_jax.train import compile
from ijepa_jax.train.run import Run


class NotFinite(UserError):
  """The loss, the gradient or the state is no finite number any more."""


class MonitorFailed(Exception):
  """A monitor of the run has failed, on every process alike."""


def train(
  run: Run,
  state: State,
  abstract: State,
  dataset,
  checkpoints,
  writer,
  preemption,
  monitors=(),
) -> State:
  """Trains from the state's step to `run.total_steps`.

  Args:
    run, abstract: of any method; abstract is from `compile.abstract_state`.
    state: on the devices; its buffers are taken over.
    dataset: of batches from the state's step on, on the host.
    checkpoints, writer: checkpointer.Checkpointer and metrics.MetricWriter.
    preemption: from preemption.watch.
    monitors: [(every so many steps, State -> {metric: float})].

  Returns:
    The last state; that of an earlier step when the job is asked to stop.

  Raises:
    NotFinite: a number of the training is not finite; the last good
      checkpoint stays.
    UserError: the images or the disk are at fault.
  """
  start = int(state.step)
  if start >= run.total_steps:
    logging.info(
      'Step %d is done already, and total_steps is %d.', start, run.total_steps
    )
    return state
  preemption.check()
  journal = _Journal(run, checkpoints, writer, start)
  clock = journal.clock
  steps = _compile(run, abstract, clock)
  preemption.check()
  preemption.keep()
  batches = loader.device_batches(
    dataset, run.mesh, *run.method.batch_keys, depth=run.prefetch
  )
  profiler = _profiler(run, writer)
  with batches as batches, profiler as profiler, journal, clock.loop():
    for step in range(start + 1, run.total_steps + 1):
      # The order of these lines is relied upon: by who goes on from a save, and
      # by several processes, which have to agree.
      with clock.waiting_for_data():
        batch = next(batches)
      compiled = steps[compile.batch_shape(run, batch)]
      with profiler(step), jax.transfer_guard('disallow'):
        state, metrics = compiled(state, batch)
      # The step before is recorded while this one runs.
      journal.record_pending(state)
      last = step == run.total_steps
      stop = preemption.requested() or last
      saving = stop or checkpoints.should_save(step)
      # The best checkpoint is chosen by what its own state is worth.
      all_due = last or (saving and checkpoints.keeps_best)
      due = [m for every, m in monitors if all_due or step % every == 0]
      if not due and not saving:
        journal.pending = step, metrics
        clock.in_flight(metrics)
        continue
      values = journal.record(step, metrics, due)
      if saving:
        journal.save(step, values)
      if stop:
        break
  if step < run.total_steps:
    logging.info('Stopped at step %d; the same command goes on from it.', step)
  return state


def _compile(run: Run, abstract: State, clock) -> dict:
  began = time.monotonic()
  logging.info(
    'Compiling the step: seconds for a small model, some minutes for a large '
    'one.'
  )
  with clock.part('compile'):
    steps = compile.compile_steps(run, abstract)
  logging.info(
    'Compiled the step for %d shapes of a batch in %.1f s.',
    len(steps),
    time.monotonic() - began,
  )
  return steps


class _Journal:
  """Records steps and saves states; on its exit by an error, what was lost.

  Attributes:
    clock: of this start.
    pending: (step, its metrics) not yet recorded, or None.
  """

  def __init__(self, run, checkpoints, writer, start):
    self._run, self._checkpoints, self._writer = run, checkpoints, writer
    self._this_start, self._start = starts.current(), start
    self._this_start.begin(start)
    self.clock = self._this_start.clock
    self._compilations = self.clock.compilations  # before the loop
    self._state = None  # after the newest step
    self._progress = Progress(
      run.total_steps, start, run.batch_size, enabled=jax.process_index() == 0
    )
    self.pending = None

  def __enter__(self):
    self._progress.__enter__()
    self._throughput = Throughput(self._run.batch_size, self.clock)
    return self

  def record_pending(self, state) -> None:
    """Records the step before `state`'s, where it is not yet."""
    self._state = state
    if self.pending:
      before, self.pending = self.pending, None
      self.record(*before)

  def record(self, step: int, metrics, monitors=None) -> dict[str, float]:
    """Waits for the metrics of a step and writes them down.

    Rows of saves and monitors, and one in ten seconds, have seconds/<part>.

    Returns:
      What `monitors` say of the state, taken after this step.

    Raises:
      NotFinite: the loss or the gradient is.
    """
    metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
    self._throughput.step()
    self._this_start.step = step
    values = {
      'loss': metrics.pop('loss'),
      **{k: float(f(step)) for k, f in self._run.schedules.items()},
      **metrics,
      'compilations': self.clock.compilations - self._compilations,
      **self._throughput.rates(),
      **self._this_start.row(always=monitors is not None),
    }
    # Of the gradient too: it may spoil the state that is saved next.
    if not math.isfinite(values['loss'] + values['grad_norm']):
      self._writer.write(step, values)
      raise NotFinite(
        f'At step {step} the loss is {values["loss"]} and the gradient norm '
        f'{values["grad_norm"]}; the last good checkpoint is '
        f'{max(self._checkpoints.steps(), default="none")}: {self._run.advice}'
      )
    monitored = {}
    try:
      with self.clock.part('evaluate'):
        monitored = run_monitors(self._state, monitors or ())
    finally:
      self._writer.write(step, values | monitored)
      self._progress.update(step, values)
    return monitored

  def save(self, step: int, values: dict[str, float]) -> None:
    """Saves the state after `step`; only finite numbers are worth keeping."""
    with self.clock.part('save'):
      try:
        self._checkpoints.save(step, self._state, values)
      except checkpointer.NotFinite as error:
        raise NotFinite(f'{error} To go on: {self._run.advice}') from error
      self._writer.sync()
    self._this_start.saved(step)

  def __exit__(self, kind, error, traceback):
    self._progress.__exit__(kind, error, traceback)
    if error is None:
      with self.clock.part('save'):
        self._checkpoints.wait()
    if not isinstance(error, Exception) or isinstance(
      error, (NotFinite, checkpointer.CheckpointError)
    ):
      return
    # Of several processes the others join in saving only where all failed.
    if jax.process_count() > 1 and not isinstance(error, MonitorFailed):
      return
    try:
      self._save_what_is_not()
    except NotFinite:
      raise  # of which the other error is a consequence
    except Exception as another:
      logging.error('What was not saved yet is lost: %s', another)

  def _save_what_is_not(self) -> None:
    with contextlib.suppress(OSError):  # of a full disk, perhaps
      if self.pending:
        self.record(*self.pending)
    if step := unsaved_step(self._checkpoints, self._state, self._start):
      self.save(step, {})


def unsaved_step(checkpoints, state, start: int) -> int:
  """The step of a state that no checkpoint holds; 0: nothing would be lost.

  Args:
    checkpoints: checkpointer.Checkpointer; a save under way is waited for.
    state: a step that failed may have taken its arrays; None: no step was made.
    start: step that the run began with or goes on from.
  """
  leaves = jax.tree.leaves(state)
  if not leaves or any(getattr(x, 'is_deleted', bool)() for x in leaves):
    return 0
  checkpoints.wait()
  step = int(state.step)
  return step if step > start and step not in checkpoints.steps() else 0


def run_monitors(state, monitors) -> dict[str, float]:
  """What all of `monitors` say of a state.

  Raises:
    MonitorFailed: from the error of one of them, on every process.
  """
  values, reason = {}, None
  try:
    for monitor in monitors:
      values |= monitor(state)
  except Exception as error:
    reason = error
  failed = reason is not None
  if monitors and jax.process_count() > 1:
    failed = multihost_utils.process_allgather(np.int32(failed)).any()
  if failed:
    raise MonitorFailed(
      'The probe or the signals of health failed.'
    ) from reason
  return values


@contextlib.contextmanager
def _profiler(run, writer):
  """Traces `run.profile_steps` into <workdir>/profile, on process 0.

  TensorBoard's profile plugin opens that folder, and Perfetto the
  perfetto_trace.json.gz in it.

  Yields:
    step -> a context manager around the start of that step.
  """
  first, last = run.profile_steps
  tracing = False

  @contextlib.contextmanager
  def around(step):
    nonlocal tracing
    if tracing and step > last:
      jax.profiler.stop_trace()
      tracing = False
    if first and step == first and writer.folder:
      jax.profiler.start_trace(
        str(writer.folder / 'profile'), create_perfetto_trace=True
      )
      tracing = True
    with jax.profiler.StepTraceAnnotation('train', step_num=step):
      yield

  try:
    yield around
  finally:
    if tracing:
      jax.profiler.stop_trace()
