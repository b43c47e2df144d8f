"""The loop of pre-training: the machine around the step, and all its I/O.

What a run is made of stands in train/run.py; the story of a run is `pretrain`.
"""

import contextlib
import json
import time

import jax
from absl import logging
from ml_collections import ConfigDict

from ijepa_jax.errors import UserError
from ijepa_jax.methods import ijepa, method, train_step
from ijepa_jax.runtime import files, locks, metrics, preemption, sharding
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.runtime.config import read_config, write_config
from ijepa_jax.train import compile, loop, monitors, report
from ijepa_jax.train.initial_state import state_from_weights
from ijepa_jax.train.run import (
  build,
  make_dataset,
  make_source,
  with_packed_statistics,
)


def run(config, workdir: str) -> train_step.State:
  """Trains as `config` says, going on from what `workdir` holds.

  Where it holds nothing yet, config.init_from may say what weights to begin
  with, see train/initial_state.py.

  Args:
    config: see configs/base.py.
    workdir: receives config.json, images.json, metrics.jsonl, tensorboard/,
      checkpoints/ and, with the probe on, report.json and curves.png; a folder
      or gs://.

  Returns:
    The last state.

  Raises:
    UserError: a mistake in the config, see `run.build`; data or checkpoints
      that can't be read, or a disk that is full; monitors.NotFinite of them:
      the loss, the gradient or the state was.
    Stopped: SIGTERM or Ctrl-C came before the last step; what was trained is
      saved.
  """
  with preemption.watch() as watched:
    return _run(config, workdir, watched)


def _run(config, workdir, watched) -> train_step.State:
  began = time.monotonic()
  if not workdir:
    raise UserError('--workdir is empty: say where the run is kept.')
  config = with_packed_statistics(config)
  run = build(config)
  source = make_source(config)
  workdir = files.resolve(workdir)
  files.check_checkpoints(workdir)
  sharding.check_alike(source.listing, len(source))
  there = read_config(workdir)
  if there and there.get('job') != 'pretrain':
    raise UserError(
      f'{workdir} holds something else: its config.json is of no run of '
      'pre-training. Take another --workdir.'
    )
  abstract, make_state = compile.abstract_state(config, run)
  checkpoints = checkpointer.Checkpointer(
    workdir / 'checkpoints', **config.checkpoint.to_dict()
  )
  with watched.together(), locks.only_writer(workdir, job=True), checkpoints:
    restored = checkpoints.restore(abstract)
    if restored:
      state, start = restored
      require_same_function(there, run.model)
      logging.info('Going on from step %d of %s.', start, workdir)
    elif config.init_from or config.init_optimizer:
      state = state_from_weights(
        config.init_from, config, run, abstract, make_state
      )
      start = int(state.step)
    else:
      state, start = make_state(jax.random.key(config.seed)), 0
    dataset = make_dataset(config, run, source, start)
    probe = monitors.make_probe(config, run, source)
    watchers = monitors.make_monitors(config, run, probe)
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
      for change in write_config(workdir, config.to_json_best_effort()):
        logging.warning('Not as in the run so far: %s.', change)
      note_images(workdir, source, start)
    with metrics.MetricWriter(
      workdir,
      start_step=start,
      tensorboard=config.log.tensorboard,
      enabled=first,
    ) as writer:
      state = loop.loop(
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
    report.report(config, workdir, probe, state, make_state, began)
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
    files.atomic_write_text(path, json.dumps(history, indent=2))


def require_same_function(there: dict, model: ijepa.IJEPA) -> None:
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
  old = traits(method.build_model(ConfigDict(there)))
  for name, now in traits(model).items():
    if now != old[name]:
      raise UserError(
        f'{name} is {now}, and the run in --workdir was trained with '
        f'{old[name]}: set it to that, or take another --workdir.'
      )
