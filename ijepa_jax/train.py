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
  ijepa,
  interruption,
  locks,
  metrics,
  paths,
  recipe,
  sharding,
)
from ijepa_jax.errors import UserError
from ijepa_jax.evals import online, watch
from ijepa_jax.interop.start import first_state
from ijepa_jax.visualize import curves

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
      that can't be read, or a disk that is full; watch.NotFinite of them: the
      loss, the gradient or the state was.
    Stopped: SIGTERM or Ctrl-C came before the last step; what was trained is
      saved.
  """
  with interruption.watch() as watched:
    return _pretrain(config, workdir, watched)


def _pretrain(config, workdir, watched) -> ijepa.State:
  began = time.monotonic()
  if not workdir:
    raise UserError('--workdir is empty: say where the run is kept.')
  config = recipe.from_manifest(config)
  run = recipe.build(config)
  source = recipe.make_source(config)
  workdir = paths.resolve(workdir)
  paths.check_checkpoints(workdir)
  sharding.check_alike(source.listing, len(source))
  there = metrics.read_config(workdir)
  if there and there.get('job') != 'pretrain':
    raise UserError(
      f'{workdir} holds something else: its config.json is of no run of '
      'pre-training. Take another --workdir.'
    )
  abstract, make_state = recipe.abstract_state(config, run)
  checkpoints = checkpoint.Checkpointer(
    workdir / 'checkpoints', **config.checkpoint.to_dict()
  )
  with watched.together(), locks.only_writer(workdir, job=True), checkpoints:
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
    if len(source) < config.batch_size:
      logging.warning(
        '%d training images are fewer than a batch of %d: a batch has some of '
        'them several times.',
        len(source),
        config.batch_size,
      )
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
  old = traits(recipe.build_model(ConfigDict(there)))
  for name, now in traits(model).items():
    if now != old[name]:
      raise UserError(
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
    logging.info(
      'Step %d is done already, and total_steps is %d.',
      start,
      config.total_steps,
    )
    return state
  watched.check()
  began = time.monotonic()
  compilations = Compilations()
  steps = recipe.compile_steps(config, run, abstract)
  logging.info(
    'Compiled the step for %d shapes of masks in %.0f s.',
    len(steps),
    time.monotonic() - began,
  )
  progress = metrics.Progress(
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
      raise watch.NotFinite(
        f'At step {step} the loss is {values["loss"]} and the gradient norm '
        f'{values["grad_norm"]}; the last good checkpoint is '
        f'{max(checkpoints.steps(), default="none")}: {_MEND}'
      )
    found = {}
    try:
      with meter.pausing():
        found = watch.look_at(state, looks)
    finally:
      writer.write(step, values | found)
      progress.update(step, values)
    return found

  def save(step, found):
    """Only a state of finite numbers is worth keeping."""
    try:
      checkpoints.save(step, state, found)
    except checkpoint.NotFinite as error:
      raise watch.NotFinite(f'{error} To go on: {_MEND}') from error
    writer.sync()

  def keep():
    """Saves what an error that is on its way out would lose."""
    with contextlib.suppress(OSError):  # of a full disk, perhaps
      if pending:
        record(*pending)
    if step := watch.unsaved(checkpoints, state, start):
      save(step, {})

  # The step before is recorded while this one runs.
  pending = None
  keys = 'image', 'context', 'targets'
  depth = config.data.prefetch
  watched.check()
  watched.keep()
  with (
    progress,
    recipe.on_devices(dataset, run.mesh, *keys, depth=depth) as batches,
    watch.keeping(keep),
  ):
    meter = metrics.Meter(config.batch_size)
    for step in range(start + 1, config.total_steps + 1):
      with meter.waiting():
        batch = next(batches)
      shape = batch['context'].shape[-1], batch['targets'].shape[-1]
      state, values = steps[shape](state, batch)
      if pending:
        before, pending = pending, None
        record(*before)
      last = step == config.total_steps
      stop = watched.asked() or last
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
  n, steps = len(probe.test.images), int(state.step)
  print(
    f'\nLinear probe and kNN on {n} held-out images (accuracy in %), learned '
    f'from {len(probe.train.images)} training images; after {steps} steps, '
    f'{seconds:.0f} s since the last start:\n\n{online.table(rows)}\n'
  )
  counts = {
    'steps': steps,
    'training_images': len(probe.train.images),
    'held_out_images': n,
    'seconds_since_last_start': seconds,
  }
  metrics.replace(workdir / 'report.json', json.dumps(rows | counts, indent=2))
  path = workdir / 'curves.png'
  levels = {k: rows[k] for k in ('raw pixels', 'encoder, untrained')}
  picture = curves.draw(
    metrics.read(workdir), title=workdir.name, levels=levels
  )
  path.write_bytes(picture)
  print(f'Checkpoints, metrics.jsonl and {path.name} lie in {workdir}')
