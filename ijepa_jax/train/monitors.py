"""The monitors of a pre-training: the online probe and the signals of health.

A monitor is a function of the state with the `names` of the metrics that it
returns.
"""

import functools

import numpy as np
from absl import logging

from ijepa_jax.data import loader
from ijepa_jax.data.scenes import scene
from ijepa_jax.data.sources import base
from ijepa_jax.data.transforms import crop
from ijepa_jax.errors import UserError
from ijepa_jax.train import health, online_probe
from ijepa_jax.train.pictures import tokens
from ijepa_jax.train.run import PretrainRun


def make_monitors(run: PretrainRun, probe, signals) -> list:
  """Makes what looks at the state every so many steps.

  Args:
    run: of pre-training.
    probe, signals: from `make_probe` and `make_health`.

  Returns:
    [(steps, State -> {metric: float})].

  Raises:
    UserError: `checkpoint.keep_best` is none of the metrics.
  """
  monitors, names = [], []
  if probe:
    monitors.append((run.probe.every_steps, probe.monitor))
    names += probe.names
  if signals:
    monitors.append((run.health.every_steps, signals))
    names += signals.names
  best = run.checkpoint['keep_best']
  if best and best not in names:
    raise UserError(
      f'checkpoint.keep_best is {best!r}: take one of '
      f'{", ".join(names) or "none, with probe and health off"}.'
    )
  return monitors


_PICTURES = 20  # of a training, at the most


def make_pictures(run: PretrainRun, monitors, writer) -> list:
  """Makes what draws masks and tokens of the first images of health.

  Args:
    run: of pre-training.
    monitors: from `make_monitors`; without signals of health there are none.
    writer: metrics.MetricWriter.

  Returns:
    As `make_monitors`: [(steps, State -> {})].
  """
  write = functools.partial(writer.picture, 'tokens')
  drawn = []
  for every, monitor in monitors:
    if isinstance(monitor, health.Health):
      often = every * -(-run.total_steps // (every * _PICTURES))
      picture = tokens.Tokens(run.method, monitor.batch, run.mesh, write)
      drawn.append((often, picture))
  return drawn


def make_probe(run: PretrainRun) -> online_probe.Probe | None:
  """Makes the probe of labelled images.

  Returns:
    None where it is off, or where the images have no labels, which is logged.

  Raises:
    UserError: there are no images to test on, or labels from which no probe
      could follow.
  """
  p, source = run.probe, run.source
  if not p.every_steps:
    return None
  if not source.labels:
    logging.warning(
      'The images have no classes, so that no probe looks at the run: it is '
      'judged by the signals of health alone.'
    )
    return None
  # Scenes are in no order, and images of a folder in that of its classes.
  order = np.arange(len(source))
  if run.source_kind != 'scenes':
    order = np.random.default_rng(0).permutation(len(source))
  held_out = open_held_out(run, p.split, p.test_count, 'probe.split')
  same = run.source_kind != 'scenes' and p.split == run.split
  if same or held_out.identity == source.identity:
    raise UserError(
      f'probe.split {p.split!r} names the images that are trained on: name a '
      'split that is not, or set probe.every_steps=0.'
    )
  transform, channels = center_crop(run), run.image_shape[2]
  train, test = (
    online_probe.load_images(images, rows, transform, channels)
    for images, rows in (
      (source, order[: p.train_count]),
      (held_out, spread_rows(len(held_out), p.test_count)),
    )
  )
  if name := base.class_of_one_only(source, held_out):
    raise UserError(
      f'Only one of the training images and probe.split {p.split!r} has a '
      f'class {name!r}: give both the same folders.'
    )
  if train.names != test.names:
    raise UserError(
      f'probe.split {p.split!r} has labels {test.names} and the training '
      f'images have {train.names}: give both the same classes.'
    )
  try:
    return online_probe.Probe(run.method, run.mesh, train, test)
  except UserError as error:
    raise UserError(
      f'The probe: {error} Give it other images, or set probe.every_steps=0.'
    ) from error


def make_health(run: PretrainRun) -> health.Health | None:
  """Makes the signals on a fixed batch of images, held out where possible.

  Returns:
    None where they are off.

  Raises:
    UserError: there are fewer than two images for each device.
  """
  if not run.health.every_steps:
    return None
  count = -(-run.health.images // run.mesh.size) * run.mesh.size
  images = _images_of_health(run, count)
  # No image twice: signals are of differences between images.
  count = min(count, len(images) // run.mesh.size * run.mesh.size)
  if count < 2:
    raise UserError(
      f'There are {len(images)} images to look at for signals of health, and '
      f'{max(2, run.mesh.size)} are needed on {run.mesh.size} devices: name '
      'another health.split, or set health.every_steps=0.'
    )
  dataset = loader.local_batches(
    images,
    run.method.sampler,
    transform=center_crop(run),
    batch_size=count,
    channels=run.image_shape[2],
  )
  batches = loader.device_batches(dataset, run.mesh, *run.method.batch_keys)
  with batches as batches:
    batch = next(batches)
  return health.Health(run.method, batch, run.mesh, run.health.warmup_steps)


def _images_of_health(run: PretrainRun, count: int):
  """Those of health.split; training images where there is no such split."""
  split = run.health.split or run.split
  if not split and run.source_kind != 'scenes':
    return run.source
  try:
    return open_held_out(run, split, count, 'health.split')
  except UserError as error:
    logging.warning(
      '%s Signals of health are of training images (health.split is %r).',
      error,
      split,
    )
    return run.source


def open_held_out(run: PretrainRun, split: str, count: int, knob: str):
  """Opens images that are not trained on: scenes of another seed, or a split.

  Args:
    run: of pre-training.
    split: of the images; scenes have none.
    count: of scenes.
    knob: the name of the config that gives the split, for the sentence.

  Raises:
    UserError: no split is named, or it can't be had.
  """
  if run.source_kind == 'scenes':
    return run.open_source(list_file='', count=count, seed=scene.TEST_SEED)
  if not split:
    raise UserError(
      f'{knob} is empty: name a split that is not trained on, or set '
      f'{knob.split(".")[0]}.every_steps=0.'
    )
  return run.open_source(list_file='', split=split)


def spread_rows(length: int, count: int) -> np.ndarray:
  """At most `count` rows, evenly from all: a folder's are in class order."""
  return np.linspace(0, length - 1, min(length, count)).astype(int)


def center_crop(run: PretrainRun) -> crop.CenterCrop:
  size = run.image_shape[:2]
  return crop.CenterCrop(size, max(size))
