"""What a run is made of: from its config alone, nothing written yet.

The jobs (train/pretrain.py, evals/) see the config; here it becomes modules,
functions and arrays' shapes, or one sentence about what is wrong with it.
"""

import dataclasses

import jax
import optax
from absl import logging

from ijepa_jax.data import decode, loader, sources
from ijepa_jax.data.transforms import color_jitter, crop
from ijepa_jax.errors import UserError
from ijepa_jax.methods import ijepa, masks, method, optim, schedules
from ijepa_jax.runtime import sharding
from ijepa_jax.runtime.config_checks import check_numbers, check_void


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
  check_numbers(config)
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
  model = method.build_model(config)
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


def make_dataset(config, run: Run, source, start: int):
  """This process's batches from step `start`, on the host.

  Raises:
    UserError: the source and the config don't go together.
  """
  d = config.data
  transform = crop.RandomResizedCrop(
    tuple(d.image_size), tuple(d.crop_scale), tuple(d.crop_ratio), d.flip
  )
  if d.jitter or d.grey or d.blur:
    transform = color_jitter.ColorJitter(transform, d.jitter, d.grey, d.blur)
    transform.check(d.channels)
  return loader.local_batches(
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


def make_source(config):
  """The images, as `data` has them; in this process none may be larger.

  Raises:
    UserError: they can't be had; or a knob says what they are, and is void.
  """
  d = config.data
  check_void(config)
  decode.limit_pixels(d.max_pixels)
  return sources.make_source(
    d.source,
    path=d.path,
    split=d.split,
    list_file=d.list_file,
    flavour=d.flavour,
    count=d.count,
  )


def with_packed_statistics(config):
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
