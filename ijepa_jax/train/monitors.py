"""What looks at a run while it trains: the probe, the signals of health; and
what is kept of the run when something fails.
"""

import contextlib

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from ijepa_jax.data import loader, sources
from ijepa_jax.data.scenes import scene
from ijepa_jax.data.sources import base
from ijepa_jax.data.transforms import crop
from ijepa_jax.errors import UserError
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.train import health, online_probe
from ijepa_jax.train.run import Run


def make_probe(config, run: Run, source) -> online_probe.Probe | None:
  """The probe of labelled images, or None where it is off.

  Raises:
    UserError: there are no such images, or they have no labels from which a
      probe could follow.
  """
  p = config.probe
  if not p.every_steps:
    return None
  # Pictures are in no order, and images of a folder in that of its classes.
  order = np.arange(len(source))
  if config.data.source != 'scenes':
    order = np.random.default_rng(0).permutation(len(source))
  other = held_out(config, p.split, p.test_count, 'probe.split')
  same = config.data.source != 'scenes' and p.split == config.data.split
  if same or other.identity == source.identity:
    raise UserError(
      f'probe.split {p.split!r} names the images that are trained on: name a '
      'split that is not, or set probe.every_steps=0.'
    )
  train, test = (
    online_probe.load_images(
      images, rows, centre_crop(config), config.data.channels
    )
    for images, rows in (
      (source, order[: p.train_count]),
      (other, spread_rows(len(other), p.test_count)),
    )
  )
  if one := base.class_of_one_only(source, other):
    raise UserError(
      f'Only one of the training images and probe.split {p.split!r} has a '
      f'class {one!r}: give both the same folders.'
    )
  if train.names != test.names:
    raise UserError(
      f'probe.split {p.split!r} has labels {test.names} and the training '
      f'images have {train.names}: give both the same classes.'
    )
  try:
    return online_probe.Probe(run.model, run.mesh, train, test)
  except ValueError as error:
    raise UserError(
      f'The probe: {error} Give it other images, or set probe.every_steps=0.'
    ) from error


def make_monitors(config, run: Run, probe) -> list:
  """What looks at the state every so many steps: [(steps, state -> metrics)].

  Raises:
    UserError: `checkpoint.keep_best` is none of the metrics.
  """
  watchers, names = [], []
  if probe:
    watchers.append((config.probe.every_steps, lambda s: probe(s.target)))
    names += probe.names
  if config.health.every_steps:
    look = make_health(config, run)
    watchers.append((config.health.every_steps, look))
    names += look.names
  best = config.checkpoint.keep_best
  if best and best not in names:
    raise UserError(
      f'checkpoint.keep_best is {best!r}: take one of '
      f'{", ".join(names) or "none, with probe and health off"}.'
    )
  return watchers


def make_health(config, run: Run) -> health.Health:
  """The signals on a fixed batch of images, held out where there are such."""
  h, d = config.health, config.data
  count = -(-h.images // run.mesh.size) * run.mesh.size
  images = held_out(config, h.split or d.split, count, 'health.split')
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
    run.sampler,
    transform=centre_crop(config),
    batch_size=count,
    channels=d.channels,
  )
  keys = 'image', 'context', 'targets'
  with loader.device_batches(dataset, run.mesh, *keys) as batches:
    batch = next(batches)
  return health.Health(run.model, batch, run.mesh, config.optim.warmup_steps)


def held_out(config, split: str, count: int, knob: str):
  """Images that are not trained on: pictures of another seed, or a split."""
  d = config.data
  if d.source == 'scenes':
    return sources.make_source(
      'scenes', flavour=d.flavour, count=count, seed=scene.TEST_SEED
    )
  if not split:
    raise UserError(
      f'{knob} is empty: name a split of {d.path!r} that is not trained on, or '
      f'set {knob.split(".")[0]}.every_steps=0.'
    )
  return sources.make_source(d.source, path=d.path, split=split)


def spread_rows(length: int, count: int) -> np.ndarray:
  """At most `count` rows, evenly from all: a folder's are in class order."""
  return np.linspace(0, length - 1, min(length, count)).astype(int)


def centre_crop(config) -> crop.CenterCrop:
  size = tuple(config.data.image_size)
  return crop.CenterCrop(size, max(size))


class NotFinite(UserError):
  """The loss, the gradient or the state is no number any more."""


class MonitorFailed(Exception):
  """What looks at the run has failed, on every process alike."""


def run_all(state, looks) -> dict[str, float]:
  """What all of `looks` find in a state.

  Raises:
    LookFailed: from the error of one of them, on every process.
  """
  found, reason = {}, None
  try:
    for look in looks:
      found |= look(state)
  except Exception as error:
    reason = error
  failed = reason is not None
  if looks and jax.process_count() > 1:
    failed = multihost_utils.process_allgather(np.int32(failed)).any()
  if failed:
    raise MonitorFailed(
      'The probe or the signals of health failed.'
    ) from reason
  return found


@contextlib.contextmanager
def keeping(keep):
  """Calls `keep` when the loop fails by what is not the state's fault."""
  try:
    yield
  except (NotFinite, checkpointer.CheckpointError):
    raise
  except Exception as error:
    # Of several processes the others join in saving only where all failed.
    if jax.process_count() == 1 or isinstance(error, MonitorFailed):
      try:
        keep()
      except NotFinite:
        raise  # of which the other error is a consequence
      except Exception as another:
        logging.error('What was not saved yet is lost: %s', another)
    raise


def unsaved(checkpoints, state, start: int) -> int:
  """The step of a state that no checkpoint holds; 0: nothing would be lost.

  Args:
    checkpoints: checkpointer.Checkpointer; a save under way is waited for.
    state: with `step`; a step that failed may have taken its arrays.
    start: step that the run began with or goes on from.
  """
  if any(getattr(x, 'is_deleted', bool)() for x in jax.tree.leaves(state)):
    return 0
  checkpoints.wait()
  step = int(state.step)
  return step if step > start and step not in checkpoints.steps() else 0
