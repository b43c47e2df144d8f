"""The loop of pre-training: the machine around the step, and all its I/O.

What a run is made of stands in `build`, from the config alone and before
anything is compiled or written; the story of a run is `pretrain`.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import signal
import time

import jax
import jax.numpy as jnp
import optax
from absl import logging
from jax.experimental import multihost_utils

from ijepa_jax import (
  checkpoint,
  data,
  ijepa,
  masks,
  metrics,
  optim,
  schedules,
  sharding,
  sources,
  vit,
)
from ijepa_jax.evals import scenes_probe
from ijepa_jax.visualize import curves


class UserError(Exception):
  """A mistake or a fault told in one sentence, for the person at it."""


class NotFinite(UserError):
  """The loss or the gradient is no number any more."""


@contextlib.contextmanager
def told():
  """What a room refuses is the user's mistake; anything else is ours."""
  try:
    yield
  except (ValueError, OSError, checkpoint.CheckpointError) as error:
    raise UserError(str(error)) from error


def start(coordinator: str, num_processes: int, process_id: int) -> None:
  """Joins the processes of this job, and says what there is to compute on."""
  with told():
    sharding.initialise_distributed(coordinator, num_processes, process_id)
  logging.info(
    'Process %d of %d, devices: %s',
    jax.process_index(),
    jax.process_count(),
    ', '.join(f'{d} ({d.device_kind})' for d in jax.local_devices()),
  )


@dataclasses.dataclass(frozen=True)
class Run:
  """What a config means: everything static of a run."""

  model: ijepa.IJEPA
  tx: optax.GradientTransformation
  lr: schedules.Schedule
  weight_decay: schedules.Schedule
  ema_rate: schedules.Schedule
  sampler: object
  mesh: jax.sharding.Mesh


def build(config) -> Run:
  """Makes the static parts, or says what is wrong with the config.

  Raises:
    UserError: one sentence with the value, the limit and what to do.
  """
  with told():
    return _build(config)


def _build(config) -> Run:
  c, d = config.optim, config.data
  if config.total_steps < 1:
    raise ValueError(f'total_steps is {config.total_steps}: take 1 or more.')
  mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
  pieces = config.accumulate * mesh.size
  if config.accumulate < 1 or config.batch_size % pieces:
    raise ValueError(
      f'A batch_size of {config.batch_size} does not divide over {mesh.size} '
      f'devices times accumulate = {config.accumulate}: take a multiple of '
      f'{pieces}.'
    )
  if not len(d.mean) == len(d.std) == d.channels:
    raise ValueError(
      f'data.mean has {len(d.mean)} and data.std {len(d.std)} numbers: '
      f'data.channels = {d.channels} needs as many each.'
    )
  model_config = config.model.to_dict()
  encoder, predictor = vit.make_models(**model_config)
  p = encoder.patch_size
  if d.image_size[0] % p or d.image_size[1] % p:
    raise ValueError(
      f'data.image_size {tuple(d.image_size)} is not a whole number of patches '
      f'of {p} pixels: change one of the two.'
    )
  model = ijepa.IJEPA(
    encoder,
    predictor,
    mean=tuple(d.mean),
    std=tuple(d.std),
    loss=config.loss.kind,
    normalize_targets=config.loss.normalize_targets,
    rescale_init=config.model.init == 'rescaled',
  )
  mask = config.mask.to_dict()
  sampler = masks.make_sampler(
    mask.pop('sampler'),
    grid=(d.image_size[0] // p, d.image_size[1] // p),
    **mask,
  )
  if c.weight_decay_schedule not in schedules.BY_NAME:
    raise ValueError(
      f'optim.weight_decay_schedule is {c.weight_decay_schedule!r}: take one '
      f'of {", ".join(schedules.BY_NAME)}.'
    )
  total = int(c.schedule_scale * config.total_steps)
  if c.warmup_steps >= total:
    logging.warning(
      'optim.warmup_steps = %d is not below the %d steps of the schedule: the '
      'learning rate never reaches its peak.',
      c.warmup_steps,
      total,
    )
  lr = schedules.warmup_cosine(
    c.start_lr, c.peak_lr, c.final_lr, c.warmup_steps, total
  )
  weight_decay = schedules.BY_NAME[c.weight_decay_schedule](
    c.weight_decay, c.final_weight_decay, total
  )
  ema_rate = schedules.linear(1 - config.ema.first, 1 - config.ema.last, total)
  tx = optim.adamw(
    lr=lr,
    weight_decay=weight_decay,
    b1=c.b1,
    b2=c.b2,
    eps=c.eps,
    clip_norm=c.clip_norm,
  )
  if config.probe.every_steps and d.source != 'scenes':
    raise ValueError(
      f'probe.every_steps = {config.probe.every_steps} needs the labels of '
      f"data.source = 'scenes', not {d.source!r}: set it to 0."
    )
  return Run(model, tx, lr, weight_decay, ema_rate, sampler, mesh)


def abstract_state(config, run: Run):
  """The state's shapes, types and shardings, and the function that makes it."""
  make = functools.partial(
    ijepa.init,
    run.model,
    run.tx,
    image_shape=(*config.data.image_size, config.data.channels),
  )
  shapes = jax.eval_shape(make, jax.random.key(config.seed))
  shardings = sharding.state_sharding(shapes, run.mesh)
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )
  return abstract, jax.jit(make, out_shardings=shardings)


def compile_steps(config, run: Run, abstract, shapes=None) -> dict:
  """One compiled step for each shape of masks: {(Kc, Kt): callable}.

  All that the sampler can draw, unless `shapes` are given; before the first
  step and side by side, so that none stalls the run later.
  """
  step = jax.jit(
    functools.partial(
      ijepa.train_step,
      model=run.model,
      tx=run.tx,
      ema_rate=run.ema_rate,
      accumulate=config.accumulate,
    ),
    out_shardings=(
      jax.tree.map(lambda x: x.sharding, abstract),
      sharding.replicated(run.mesh),
    ),
    donate_argnums=0,
  )
  batch_sharding = sharding.batch_sharding(run.mesh)

  def compile_one(shape):
    b, sampler = config.batch_size, run.sampler
    image = (b, *config.data.image_size, config.data.channels)
    batch = {
      'image': (image, jnp.uint8),
      'context': ((b, sampler.num_contexts, shape[0]), jnp.int32),
      'targets': ((b, sampler.num_targets, shape[1]), jnp.int32),
    }
    batch = {
      k: jax.ShapeDtypeStruct(*v, sharding=batch_sharding)
      for k, v in batch.items()
    }
    return step.lower(abstract, batch).compile()

  shapes = shapes or run.sampler.shapes
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    return dict(zip(shapes, pool.map(compile_one, shapes), strict=True))


def make_batches(config, run: Run, source, start: int):
  """The stream of global batches on the devices, from step `start`."""
  d = config.data
  dataset = data.make_dataset(
    source,
    run.sampler,
    batch_size=config.batch_size,
    seed=config.seed,
    image_size=tuple(d.image_size),
    channels=d.channels,
    crop_scale=tuple(d.crop_scale),
    crop_ratio=tuple(d.crop_ratio),
    flip=d.flip,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    start=start,
    workers=d.workers,
    max_bad_share=d.max_bad_share,
  )

  def put(batch):
    keys = ('image', 'context', 'targets')
    return sharding.to_global({k: batch[k] for k in keys}, run.mesh)

  return data.prefetch(dataset, put, depth=d.prefetch)


def make_source(config):
  d = config.data
  with told():
    return sources.make_source(
      d.source, path=d.path, split=d.split, flavour=d.flavour, count=d.count
    )


class Compilations:
  """Counts what XLA compiles from now on: a step that has to is a mistake."""

  EVENT = '/jax/core/compile/backend_compile_duration'

  def __init__(self):
    self.count = 0
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, event, seconds, **_):
    self.count += event == self.EVENT


class Interruption:
  """Whether SIGTERM or Ctrl-C asked the run to stop, alike on every process.

  Several processes agree through JAX's coordination service, which watches for
  SIGTERM itself; one process has a handler of its own.
  """

  def __enter__(self):
    self._asked = False
    self._many = jax.process_count() > 1
    self._before = {}
    signals = [signal.SIGINT] if self._many else [signal.SIGINT, signal.SIGTERM]
    for number in () if self._many else signals:
      self._before[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _ask(self, number, frame):
    self._asked = True
    # A second signal does what it always did.
    signal.signal(number, self._before[number])

  def asked(self, step: int) -> bool:
    if self._many:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked


def pretrain(config, workdir: str) -> ijepa.State:
  """Trains as `config` says, going on from what `workdir` holds.

  Args:
    config: see configs/base.py.
    workdir: receives config.json, metrics.jsonl, tensorboard/, checkpoints/
      and, with the probe on, report.json and curves.png.

  Returns:
    The last state.

  Raises:
    UserError: see `build`; NotFinite: the loss or gradient was.
  """
  began = time.monotonic()
  run = build(config)
  source = make_source(config)
  workdir = pathlib.Path(workdir).absolute()
  first = jax.process_index() == 0
  abstract, make_state = abstract_state(config, run)
  with checkpoint.Checkpointer(
    workdir / 'checkpoints', **config.checkpoint.to_dict()
  ) as checkpoints:
    with told():
      restored = checkpoints.restore(abstract)
    if restored is None:
      state, start = make_state(jax.random.key(config.seed)), 0
    else:
      state, start = restored
      logging.info('Going on from step %d of %s.', start, workdir)
    if first:
      metrics.write_config(workdir, config.to_json_best_effort(indent=2))
    count = sum(x.size for x in jax.tree.leaves(state.params['encoder']))
    logging.info(
      'Encoder of %.1f M parameters, %d images, mask shapes %s.',
      count / 1e6,
      len(source),
      run.sampler.shapes,
    )
    with metrics.Metrics(
      workdir,
      start_step=start,
      tensorboard=config.log.tensorboard,
      enabled=first,
    ) as writer:
      probe = make_probe(config, run)
      state = loop(
        config, run, source, state, start, abstract, checkpoints, writer, probe
      )
  if probe and int(state.step) == config.total_steps:
    report(config, workdir, probe, state, make_state, began)
  return state


def loop(
  config, run, source, state, start, abstract, checkpoints, writer, probe
) -> ijepa.State:
  """Steps `start` to `config.total_steps`; returns early when asked to stop."""
  if start >= config.total_steps:
    logging.info('All %d steps are done already.', config.total_steps)
    return state
  began = time.monotonic()
  compilations = Compilations()
  steps = compile_steps(config, run, abstract)
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

  # The step before is recorded while this one runs.
  pending = None
  meter.restart()
  with (
    progress,
    Interruption() as interruption,
    make_batches(config, run, source, start) as batches,
  ):
    for step in range(start + 1, config.total_steps + 1):
      with meter.waiting():
        batch = next(batches)
      shape = batch['context'].shape[-1], batch['targets'].shape[-1]
      state, values = steps[shape](state, batch)
      meter.step()
      if pending:
        record(*pending)
      extra = {}
      extra = meter.rates()
      if probe and (
        step % config.probe.every_steps == 0 or step == config.total_steps
      ):
        extra |= probe(state.target)
        meter.restart()
      pending = step, values, extra
      stop = interruption.asked(step) or step == config.total_steps
      if stop or checkpoints.should_save(step):
        # Only a state whose loss and gradient are numbers is worth keeping.
        record(*pending)
        pending = None
        checkpoints.save(step, state)
      if stop:
        break
  if step < config.total_steps:
    logging.info('Stopped at step %d; the same command goes on from it.', step)
  return state


def make_probe(config, run: Run):
  """The probe of the embedded pictures, or None where it is off."""
  if not config.probe.every_steps:
    return None
  return scenes_probe.ScenesProbe(
    run.model,
    run.mesh,
    flavour=config.data.flavour,
    train_count=config.probe.train_count,
    test_count=config.probe.test_count,
    count=config.data.count,
  )


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
    f'{scenes_probe.table(rows)}\n'
  )
  (workdir / 'report.json').write_text(
    json.dumps({**rows, 'seconds': seconds}, indent=2)
  )
  path = workdir / 'curves.png'
  curves.draw(metrics.read(workdir), path, title=workdir.name, levels=rows)
  print(f'Checkpoints, metrics.jsonl and the curves: {path}')


JOBS = {'pretrain': pretrain}


def job(name: str):
  """The function that a config's `job` names."""
  if name not in JOBS:
    raise UserError(f'job is {name!r}: take one of {", ".join(JOBS)}.')
  return JOBS[name]
