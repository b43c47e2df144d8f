"""The loop of every training."""

import contextlib
import math
import time

import jax
from absl import logging

from ijepa_jax.data import loader
from ijepa_jax.methods import train_step
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.runtime.progress import Progress, Throughput
from ijepa_jax.train import compile, monitors

_MEND = (
  'try a lower optim.peak_lr, a longer optim.warmup_steps, optim.clip_norm=1 '
  'or model.dtype=float32, and start again to go on from it.'
)


class Compilations:
  """Counts what XLA compiles from now on: a step that has to is a mistake."""

  EVENT = '/jax/core/compile/backend_compile_duration'

  def __init__(self):
    self.count = 0
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, event, seconds, **_):
    self.count += event == self.EVENT


def loop(
  config,
  run,
  dataset,
  state,
  start,
  abstract,
  checkpoints,
  writer,
  watchers,
  watched,
) -> train_step.State:
  """Steps `start` to `config.total_steps`; returns early when asked to stop."""
  if start >= config.total_steps:
    logging.info(
      'Step %d is done already, and total_steps is %d.',
      start,
      config.total_steps,
    )
    return state
  watched.check()
  began = time.monotonic()
  compilations = Compilations()
  steps = compile.compile_steps(config, run, abstract)
  logging.info(
    'Compiled the step for %d shapes of masks in %.0f s.',
    len(steps),
    time.monotonic() - began,
  )
  progress = Progress(
    config.total_steps, start, enabled=jax.process_index() == 0
  )

  def record(step, values, looks=()):
    """Waits for the metrics of a step; refuses what is no number.

    Returns:
      What `looks` find in the state, which is that after this step.
    """
    values = {k: float(v) for k, v in jax.device_get(values).items()}
    meter.step()
    values = {
      'loss': values.pop('loss'),
      'lr': float(run.lr(step)),
      'weight_decay': float(run.weight_decay(step)),
      **values,
      'compilations': compilations.count,
      **meter.rates(),
    }
    if not (
      math.isfinite(values['loss']) and math.isfinite(values['grad_norm'])
    ):
      writer.write(step, values)
      raise monitors.NotFinite(
        f'At step {step} the loss is {values["loss"]} and the gradient norm '
        f'{values["grad_norm"]}; the last good checkpoint is '
        f'{max(checkpoints.steps(), default="none")}: {_MEND}'
      )
    found = {}
    try:
      with meter.pausing():
        found = monitors.run_all(state, looks)
    finally:
      writer.write(step, values | found)
      progress.update(step, values)
    return found

  def save(step, found):
    """Only a state of finite numbers is worth keeping."""
    try:
      checkpoints.save(step, state, found)
    except checkpointer.NotFinite as error:
      raise monitors.NotFinite(f'{error} To go on: {_MEND}') from error
    writer.sync()

  def keep():
    """Saves what an error that is on its way out would lose."""
    with contextlib.suppress(OSError):  # of a full disk, perhaps
      if pending:
        record(*pending)
    if step := monitors.unsaved(checkpoints, state, start):
      save(step, {})

  # The step before is recorded while this one runs.
  pending = None
  keys = 'image', 'context', 'targets'
  depth = config.data.prefetch
  watched.check()
  watched.keep()
  with (
    progress,
    loader.device_batches(dataset, run.mesh, *keys, depth=depth) as batches,
    monitors.keeping(keep),
  ):
    meter = Throughput(config.batch_size)
    for step in range(start + 1, config.total_steps + 1):
      with meter.waiting():
        batch = next(batches)
      shape = batch['context'].shape[-1], batch['targets'].shape[-1]
      state, values = steps[shape](state, batch)
      if pending:
        before, pending = pending, None
        record(*before)
      last = step == config.total_steps
      stop = watched.requested() or last
      saving = stop or checkpoints.should_save(step)
      # The best checkpoint is chosen by what its own state is worth.
      wanted = last or (saving and config.checkpoint.keep_best)
      looks = [look for n, look in watchers if wanted or step % n == 0]
      if not looks and not saving:
        pending = step, values
        continue
      found = record(step, values, looks)
      if saving:
        with meter.pausing():
          save(step, found)
      if stop:
        break
  if step < config.total_steps:
    logging.info('Stopped at step %d; the same command goes on from it.', step)
  return state
