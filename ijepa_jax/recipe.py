"""What a run is made of: from its config alone, nothing written yet.

The jobs (train.py, evals/) see the config; here it becomes modules, functions
and arrays' shapes, or one sentence about what is wrong with it.
"""

import concurrent.futures
import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import optax
from absl import logging

from ijepa_jax import (
  augment,
  colour,
  data,
  decode,
  ijepa,
  limits,
  masks,
  optim,
  schedules,
  sharding,
  sources,
  vit,
  void,
)
from ijepa_jax.errors import UserError


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
  c, d = config.optim, config.data
  limits.check_all(config)
  mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
  on = mesh.devices.flat[0].platform
  if config.model.attention == 'cudnn' and on != 'gpu':
    raise UserError(
      f"model.attention is 'cudnn' and the devices are of the kind {on}: take "
      'xla.'
    )
  pieces = config.accumulate * mesh.size
  if config.batch_size % pieces:
    raise UserError(
      f'A batch_size of {config.batch_size} does not divide over {mesh.size} '
      f'devices times accumulate = {config.accumulate}: take a multiple of '
      f'{pieces}.'
    )
  model = build_model(config)
  p = model.encoder.patch_size
  mask = config.mask.to_dict()
  sampler = masks.make_sampler(
    mask.pop('sampler'),
    grid=(d.image_size[0] // p, d.image_size[1] // p),
    **mask,
  )
  if c.weight_decay_schedule not in schedules.BY_NAME:
    raise UserError(
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
  return Run(model, tx, lr, weight_decay, ema_rate, sampler, mesh)


def build_model(config) -> ijepa.IJEPA:
  """The modules, from `model`, `data` and `loss` alone."""
  d = config.data
  if not len(d.mean) == len(d.std) == d.channels:
    raise UserError(
      f'data.mean has {len(d.mean)} and data.std {len(d.std)} numbers: '
      f'data.channels = {d.channels} needs as many each.'
    )
  if not all(0 <= x <= 1 for x in d.mean):
    raise UserError(
      f'data.mean is {tuple(d.mean)}: take those of pixels in [0, 1].'
    )
  if not all(0 < x <= 1 for x in d.std):
    raise UserError(
      f'data.std is {tuple(d.std)}: take those of pixels in [0, 1], above 0.'
    )
  size = tuple(d.image_size)
  if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
    raise UserError(
      f'data.image_size is {size}: take a height and a width in pixels.'
    )
  encoder, predictor = vit.make_models(**config.model.to_dict())
  p = encoder.patch_size
  if d.image_size[0] % p or d.image_size[1] % p:
    raise UserError(
      f'data.image_size {size} is not a whole number of patches '
      f'of {p} pixels: change one of the two.'
    )
  return ijepa.IJEPA(
    encoder,
    predictor,
    mean=tuple(d.mean),
    std=tuple(d.std),
    loss=config.loss.kind,
    normalize_targets=config.loss.normalize_targets,
    rescale_init=config.model.init == 'rescaled',
  )


def abstract_state(config, run: Run):
  """The state's shapes, types and shardings, and the function that makes it."""
  make = functools.partial(
    ijepa.init,
    run.model,
    run.tx,
    image_shape=(*config.data.image_size, config.data.channels),
  )
  shapes = jax.eval_shape(make, jax.random.key(config.seed))
  abstract = sharding.abstract(shapes, run.mesh)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
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
  pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
  try:
    return dict(zip(shapes, pool.map(compile_one, shapes), strict=True))
  finally:
    # Who stops the job now does not wait for XLA.
    pool.shutdown(wait=False, cancel_futures=True)


def make_dataset(config, run: Run, source, start: int):
  """This process's batches from step `start`, on the host.

  Raises:
    UserError: the source and the config don't go together.
  """
  d = config.data
  transform = augment.RandomCrop(
    tuple(d.image_size), tuple(d.crop_scale), tuple(d.crop_ratio), d.flip
  )
  if d.jitter or d.grey or d.blur:
    transform = colour.Colour(transform, d.jitter, d.grey, d.blur)
    transform.check(d.channels)
  return own_rows(
    source,
    run.sampler,
    transform=transform,
    batch_size=config.batch_size,
    seed=config.seed,
    channels=d.channels,
    fast=d.fast,
    start=start,
    workers=d.workers,
    max_bad_share=d.max_bad_share,
  )


def own_rows(source, sampler=None, **kwargs):
  """data.make_dataset of this process among all."""
  return data.make_dataset(
    source,
    sampler,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    **kwargs,
  )


def on_devices(dataset, mesh, *keys: str, depth: int = 2):
  """The stream of global batches, with these keys, on the devices of `mesh`."""

  def put(batch):
    return sharding.to_global({k: batch[k] for k in keys}, mesh)

  return data.prefetch(dataset, put, depth)


def make_source(config):
  """The images, as `data` has them; in this process none may be larger.

  Raises:
    UserError: they can't be had; or a knob says what they are, and is void.
  """
  d = config.data
  void.check(config)
  decode.limit_pixels(d.max_pixels)
  return sources.make_source(
    d.source,
    path=d.path,
    split=d.split,
    list_file=d.list_file,
    flavour=d.flavour,
    count=d.count,
  )


def from_manifest(config):
  """The config, with what packed images say of themselves where it asks for it.

  Raises:
    UserError: the images are not packed.
  """
  d = config.data
  if not d.from_manifest:
    return config
  if d.source != 'arrayrecord':
    raise UserError(
      'data.from_manifest needs packed images, and data.source is '
      f'{d.source!r}: take arrayrecord, or set data.mean and data.std.'
    )
  packed = sources.make_source(d.source, path=d.path, split=d.split).manifest
  config = config.copy_and_resolve_references()
  config.data.mean, config.data.std = map(
    tuple, (packed['mean'], packed['std'])
  )
  config.data.channels = packed['channels']
  return config
