"""The loop of pre-training: the machine around the step, and all its I/O.

What a run is made of stands in recipe.py; the story of a run is `pretrain`.
"""

import contextlib
import json
import math
import time

import jax
from absl import logging
from ml_collections import ConfigDict

from ijepa_jax import (
  checkpoint,
  data,
  ijepa,
  interruption,
  locks,
  metrics,
  paths,
  recipe,
)
from ijepa_jax.evals import online, watch
from ijepa_jax.interop.start import first_state
from ijepa_jax.visualize import curves


class NotFinite(recipe.UserError):
  """The loss or the gradient is no number any more."""


class Compilations:
  """Counts what XLA compiles from now on: a step that has to is a mistake."""

  EVENT = '/jax/core/compile/backend_compile_duration'

  def __init__(self):
    self.count = 0
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, event, seconds, **_):
    self.count += event == self.EVENT


def pretrain(config, workdir: str) -> ijepa.State:
  """Trains as `config` says, going on from what `workdir` holds.

  Where it holds nothing yet, config.init_from may say what weights to begin
  with, see interop/start.py.

  Args:
    config: see configs/base.py.
    workdir: receives config.json, images.json, metrics.jsonl, tensorboard/,
      checkpoints/ and, with the probe on, report.json and curves.png; a folder
      or gs://.

  Returns:
    The last state.

  Raises:
    UserError: a mistake in the config, see `recipe.build`; data or checkpoints
      that can't be read, or a disk that is full. NotFinite: the loss was.
    Stopped: SIGTERM or Ctrl-C came before the last step; what was trained is
      saved.
  """
  with interruption.watch() as watched:
    return _pretrain(config, workdir, watched)


def _pretrain(config, workdir, watched) -> ijepa.State:
  began = time.monotonic()
  if not workdir:
    raise recipe.UserError('--workdir is empty: say where the run is kept.')
  config = recipe.from_manifest(config)
  run = recipe.build(config)
  source = recipe.make_source(config)
  with recipe.told():
    workdir = paths.resolve(workdir)
    paths.check_checkpoints(workdir)
    there = metrics.read_config(workdir)
  if there and there.get('job') != 'pretrain':
    raise recipe.UserError(
      f'{workdir} holds something else: its config.json is of no run of '
      'pre-training. Take another --workdir.'
    )
  abstract, make_state = recipe.abstract_state(config, run)
  with recipe.told():
    checkpoints = checkpoint.Checkpointer(
      workdir / 'checkpoints', **config.checkpoint.to_dict()
    )
  with (
    watched.together(),
    recipe.told(checkpoint.CheckpointError, locks.Busy),
    locks.only_writer(workdir, job=True),
    checkpoints,
  ):
    with recipe.told():
      restored = checkpoints.restore(abstract)
    if restored:
      state, start = restored
      check_unchanged(there, run.model)
      logging.info('Going on from step %d of %s.', start, workdir)
    elif config.init_from or config.init_optimizer:
      state = first_state(config.init_from, config, run, abstract, make_state)
      start = int(state.step)
    else:
      state, start = make_state(jax.random.key(config.seed)), 0
    dataset = recipe.make_dataset(config, run, source, start)
    probe = watch.make_probe(config, run, source)
    watchers = watch.make_watchers(config, run, probe)
    count = sum(x.size for x in jax.tree.leaves(state.params['encoder']))
    logging.info(
      'Encoder of %.1f M parameters, %d images, mask shapes %s.',
      count / 1e6,
      len(source),
      run.sampler.shapes,
    )
    first = jax.process_index() == 0
    if first and start < config.total_steps:
      for change in metrics.write_config(workdir, config.to_json_best_effort()):
        logging.warning('Not as in the run so far: %s.', change)
      note_images(workdir, source, start)
    with metrics.Metrics(
      workdir,
      start_step=start,
      tensorboard=config.log.tensorboard,
      enabled=first,
    ) as writer:
      state = loop(
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
      )
  if int(state.step) < config.total_steps:
    watched.check()
  if probe and int(state.step) == config.total_steps:
    report(config, workdir, probe, state, make_state, began)
  return state


def note_images(workdir, source, start: int) -> None:
  """Keeps in images.json which images the run takes, and says a difference.

  The file is a list of {'from_step', 'images', 'listing'}: one for the start
  and one for each time that the images were others than before.
  """
  path = workdir / 'images.json'
  now = {'images': len(source), 'listing': source.listing}
  history = []
  with contextlib.suppress(OSError, ValueError):
    history = [
      x for x in json.loads(path.read_text()) if x['from_step'] < start
    ]
  before = {k: history[-1].get(k) for k in now} if history else now
  if before != now:
    logging.warning(
      'The images are not those of the run so far (%d now, %d before, or other '
      'names, order or labels): from step %d on their order is another, so '
      'that the run is no longer bit for bit that of one start.',
      now['images'],
      before['images'],
      start + 1,
    )
  if not history or before != now:
    history.append({'from_step': start, **now})
    metrics.replace(path, json.dumps(history, indent=2))


def check_unchanged(there: dict, model: ijepa.IJEPA) -> None:
  """Refuses to go on with a model that computes something else with the same
  arrays: those are compared already.

  Args:
    there: the workdir's config.json, {} where it is lost.
  """

  def traits(m):
    return {
      'model.heads': m.encoder.heads,
      'model.predictor_heads': m.predictor.heads,
      'data.mean': m.mean,
      'data.std': m.std,
    }

  if not there:
    return
  with recipe.told():
    old = traits(recipe.build_model(ConfigDict(there)))
  for name, now in traits(model).items():
    if now != old[name]:
      raise recipe.UserError(
        f'{name} is {now}, and the run in --workdir was trained with '
        f'{old[name]}: set it to that, or take another --workdir.'
      )


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
) -> ijepa.State:
  """Steps `start` to `config.total_steps`; returns early when asked to stop."""
  if start >= config.total_steps:
    logging.info('All %d steps are done already.', config.total_steps)
    return state
  watched.check()
  began = time.monotonic()
  compilations = Compilations()
  steps = recipe.compile_steps(config, run, abstract)
  logging.info(
    'Compiled %d steps in %.0f s.', len(steps), time.monotonic() - began
  )
  progress = metrics.Progress(
    config.total_steps, start, enabled=jax.process_index() == 0
  )
  meter = metrics.Meter(config.batch_size)

  def record(step, values, extra):
    """Waits for the metrics of a step; refuses what is no number."""
    values = {k: float(v) for k, v in jax.device_get(values).items()}
    values = {
      'loss': values.pop('loss'),
      'lr': float(run.lr(step)),
      'weight_decay': float(run.weight_decay(step)),
      **values,
      'compilations': compilations.count,
      **extra,
    }
    writer.write(step, values)
    if not (
      math.isfinite(values['loss']) and math.isfinite(values['grad_norm'])
    ):
      raise NotFinite(
        f'At step {step} the loss is {values["loss"]} and the gradient norm '
        f'{values["grad_norm"]}; the last good checkpoint is '
        f'{max(checkpoints.steps(), default="none")}: try a lower '
        'optim.peak_lr, a longer optim.warmup_steps, optim.clip_norm=1 or '
        'model.dtype=float32, and start again to go on from it.'
      )
    progress.update(step, values)

  def save(step, pending):
    """Only a state whose loss and gradient are numbers is worth keeping."""
    if pending:
      record(*pending)
    checkpoints.save(step, state, pending[2] if pending else {})
    writer.sync()

  # The step before is recorded while this one runs.
  pending = None
  keys = 'image', 'context', 'targets'
  depth = config.data.prefetch
  meter.restart()
  watched.check()
  watched.keep()
  with (
    progress,
    recipe.on_devices(dataset, run.mesh, *keys, depth=depth) as batches,
  ):
    for step in range(start + 1, config.total_steps + 1):
      try:
        with meter.waiting(), recipe.told(*data.ERRORS):
          batch = next(batches)
      except Exception:
        # Not of several processes: the others will not join in saving.
        if jax.process_count() == 1 and step > start + 1:
          save(step - 1, pending)
        raise
      shape = batch['context'].shape[-1], batch['targets'].shape[-1]
      state, values = steps[shape](state, batch)
      meter.step()
      if pending:
        record(*pending)
      extra = meter.rates()
      last = step == config.total_steps
      stop = watched.asked() or last
      saving = stop or checkpoints.should_save(step)
      # The best checkpoint is chosen by what its own state is worth.
      wanted = last or (saving and config.checkpoint.keep_best)
      for every, look in watchers:
        if wanted or step % every == 0:
          extra |= look(state)
          meter.restart()
      pending = step, values, extra
      if saving:
        save(step, pending)
        pending = None
      if stop:
        break
  if step < config.total_steps:
    logging.info('Stopped at step %d; the same command goes on from it.', step)
  return state


def report(config, workdir, probe, state, make_state, began) -> None:
  """The table of what was learned, as text, report.json and curves.png."""
  untrained = make_state(jax.random.key(config.seed)).target
  rows = {
    'chance (commonest label)': probe.chance(),
    'raw pixels': probe.pixels(),
    'encoder, untrained': probe(untrained),
    'target encoder, trained': probe(state.target),
  }
  seconds = time.monotonic() - began
  if jax.process_index():
    return
  print(
    f'\nLinear probe on {config.probe.test_count} held-out pictures (accuracy '
    f'in %), after {int(state.step)} steps and {seconds:.0f} s:\n\n'
    f'{online.table(rows)}\n'
  )
  (workdir / 'report.json').write_text(
    json.dumps({**rows, 'seconds': seconds}, indent=2)
  )
  path = workdir / 'curves.png'
  levels = {k: rows[k] for k in ('raw pixels', 'encoder, untrained')}
  picture = curves.draw(
    metrics.read(workdir), title=workdir.name, levels=levels
  )
  path.write_bytes(picture)
  print(f'Checkpoints, metrics.jsonl and the curves: {path}')
