"""Everything static of a training, made from its config once.

After `make_run` the config goes no further: modules, functions, shapes and
settings go down instead.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from absl import logging

from ijepa_jax.data import decode, loader, sources
from ijepa_jax.data.batch import Reading
from ijepa_jax.data.transforms import color_jitter, crop, views
from ijepa_jax.errors import UserError, one_of
from ijepa_jax.methods import from_config
from ijepa_jax.methods.method import Method
from ijepa_jax.methods.optim import adamw, schedules
from ijepa_jax.runtime import sharding
from ijepa_jax.runtime.config_checks import check_numbers, check_void

_ADVICE = (
  'try a lower optim.peak_lr, a longer optim.warmup_steps, optim.clip_norm=1 '
  'or model.dtype=float32, and start again to go on from it.'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """What the loop needs to know of a training, of any method.

  Attributes:
    method, tx: what is learned, and by which optimizer.
    schedules: name -> function of the step from 1, for the log.
    mesh: the devices.
    image_shape: (H, W, C) of a batch.
    batch_size: images a step, over all devices.
    total_steps: of the whole training.
    seed: of all that is random.
    accumulate: micro-batches of a step.
    prefetch: batches on the devices ahead of the step.
    advice: what to try where the loss is not finite.
    profile_steps: first and last step of a trace; (0, 0): none.
  """

  method: Method
  tx: optax.GradientTransformation
  schedules: Mapping[str, schedules.Schedule]
  mesh: jax.sharding.Mesh
  image_shape: tuple[int, int, int]
  batch_size: int
  total_steps: int
  seed: int
  advice: str
  accumulate: int = 1
  prefetch: int = 2
  profile_steps: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True)
class ProbeSettings:
  """The section `probe` of a config, see configs/base.py."""

  every_steps: int
  train_count: int
  test_count: int
  split: str


@dataclasses.dataclass(frozen=True)
class HealthSettings:
  """The section `health` of a config; no alarm before `warmup_steps`."""

  every_steps: int
  images: int
  split: str
  warmup_steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainRun(Run):
  """A pre-training: also its images, and what is kept and looked at.

  Attributes:
    open_source: opens the images, or others like them by arguments of
      sources.make_source that take the place of the run's.
    source: the images; None where they were not opened.
    source_kind, split: data.source and data.split.
    reading: how images become rows of a batch.
    checkpoint: arguments of checkpointer.Checkpointer.
    probe, health: what looks at the run.
    init_from, init_optimizer: weights to begin with.
    mu_dtype: of AdamW's first moment.
    tensorboard: whether scalars are written for it too.
    model: the section of the config, as it is written in an export.
    config_json: the config that config.json keeps.
  """

  open_source: Callable
  source: Any
  source_kind: str
  split: str
  reading: Reading
  checkpoint: Mapping[str, Any]
  probe: ProbeSettings
  health: HealthSettings
  init_from: str
  init_optimizer: bool
  mu_dtype: str
  tensorboard: bool
  model: Mapping[str, Any]
  config_json: str

  def batches(self, start: int):
    """This process's batches from step `start`, on the host.

    Raises:
      UserError: the source and the settings don't go together.
    """
    return loader.local_batches(
      self.source,
      self.method.sampler,
      batch_size=self.batch_size,
      seed=self.seed,
      start=start,
      **vars(self.reading),
    )


def make_run(config, devices=None, *, open_images: bool = True) -> PretrainRun:
  """Makes a pre-training from its config; nothing is written.

  Args:
    config: see configs/base.py.
    devices: to train on; None: all that are here.
    open_images: False leaves the images alone: for a plan. Packed images whose
      statistics are asked for are opened all the same.

  Raises:
    UserError: one sentence with the value, the limit and what to do.
  """
  check_numbers(config)
  if open_images:
    check_void(config)
  open_source = _opener(config.data)
  source = None
  if config.data.from_manifest:
    _check_packed(config.data)
    source = open_source()
    config = _with_statistics(config, source.manifest)
  d = config.data
  mesh = sharding.make_mesh(
    data=config.mesh.data, fsdp=config.mesh.fsdp, devices=devices
  )
  _check_steps(config, mesh)
  total = int(config.optim.schedule_scale * config.total_steps)
  method = from_config.make_method(config, total, mesh.devices.flat[0].platform)
  lr, weight_decay = _make_schedules(config.optim, total)
  mu_dtype = one_of('optim.mu_dtype', config.optim.mu_dtype, adamw.MU_DTYPES)
  if open_images:
    decode.limit_pixels(d.max_pixels)  # in this process
    source = open_source() if source is None else source
  return PretrainRun(
    method=method,
    tx=adamw.adamw(
      lr=lr,
      weight_decay=weight_decay,
      mu_dtype=mu_dtype,
      **_pick(config.optim, 'b1', 'b2', 'eps', 'clip_norm'),
    ),
    mu_dtype=mu_dtype,
    schedules={'lr': lr, 'weight_decay': weight_decay},
    mesh=mesh,
    image_shape=(*d.image_size, d.channels),
    **_pick(config, 'batch_size', 'total_steps', 'seed', 'accumulate'),
    **_pick(config, 'init_from', 'init_optimizer'),
    prefetch=d.prefetch,
    advice=_ADVICE,
    profile_steps=tuple(config.profile.steps),
    open_source=open_source,
    source=source,
    source_kind=d.source,
    split=d.split,
    reading=Reading(
      _make_transform(config, method.num_views),
      **_pick(d, 'channels', 'fast', 'workers', 'max_bad_share'),
    ),
    checkpoint=config.checkpoint.to_dict(),
    probe=ProbeSettings(**config.probe),
    health=HealthSettings(
      **config.health, warmup_steps=config.optim.warmup_steps
    ),
    tensorboard=config.log.tensorboard,
    model=config.model.to_dict(),
    config_json=config.to_json_best_effort(),
  )


def _pick(section, *knobs: str) -> dict:
  return {knob: section[knob] for knob in knobs}


def _check_steps(config, mesh) -> None:
  """Whether the devices can make the steps, and which are traced."""
  first, last = config.profile.steps
  if first > last:
    raise UserError(
      f'profile.steps is {(first, last)}: take a first and a last step.'
    )
  platform, c = mesh.devices.flat[0].platform, config.model
  if platform != {'cudnn': 'gpu', 'pallas': 'tpu'}.get(c.attention, platform):
    raise UserError(
      f'model.attention is {c.attention!r} and the devices are of the kind '
      f'{platform}: take xla.'
    )
  if platform == 'cpu' and c.remat != 'none' and c.unroll > 1:
    logging.warning(
      'model.remat = %s saves memory on CPUs with model.unroll=1 alone.',
      c.remat,
    )
  pieces = config.accumulate * mesh.size
  if config.batch_size % pieces:
    raise UserError(
      f'A batch_size of {config.batch_size} does not divide over {mesh.size} '
      f'devices times accumulate = {config.accumulate}: take a multiple of '
      f'{pieces}.'
    )


def _make_schedules(c, total: int):
  """Learning rate and weight decay over `total` steps."""
  name, kinds = 'optim.weight_decay_schedule', schedules.BY_NAME
  decay = kinds[one_of(name, c.weight_decay_schedule, kinds)]
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
  return lr, decay(c.weight_decay, c.final_weight_decay, total)


def _make_transform(config, num_views: int):
  """From an image to the pixels of a batch: crop, flip, colors; or views."""
  d = config.data
  if num_views > 1:
    return views.make_views(
      tuple(d.image_size), d.channels, **_pick(config.vicreg, *views.KNOBS)
    )
  transform = crop.RandomResizedCrop(
    tuple(d.image_size), tuple(d.crop_scale), tuple(d.crop_ratio), d.flip
  )
  if d.jitter or d.grey or d.blur:
    transform = color_jitter.ColorJitter(transform, d.jitter, d.grey, d.blur)
    transform.check(d.channels)
  return transform


def _opener(d) -> Callable:
  """A function that opens the images of the config, or others like them."""
  settings = {
    'kind': d.source,
    **_pick(d, 'path', 'split', 'list_file', 'flavour', 'count'),
  }
  opened = {}

  def open_source(**changes):
    arguments = settings | changes
    key = tuple(arguments.items())
    if key not in opened:  # the same images are opened once
      opened[key] = sources.make_source(**arguments)
    return opened[key]

  return open_source


def _check_packed(d) -> None:
  """Whether there are statistics as `data.from_manifest` asks for."""
  if d.source != 'arrayrecord':
    raise UserError(
      'data.from_manifest needs packed images, and data.source is '
      f'{d.source!r}: take arrayrecord, or set data.mean and data.std.'
    )


def _with_statistics(config, manifest):
  """The config, with what packed images say of themselves."""
  config = config.copy_and_resolve_references()
  config.data.mean, config.data.std = map(
    tuple, (manifest['mean'], manifest['std'])
  )
  config.data.channels = manifest['channels']
  return config
