"""Job `linear`: the paper's linear evaluation, many heads on a frozen encoder.

With augmentation the features are computed anew each epoch, as the paper does.
Without it they are cached, and an epoch takes seconds. The heads are saved
after an epoch, at most once a minute, and the same command goes on from there.
"""

import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from ijepa_jax.data import loader
from ijepa_jax.errors import UserError
from ijepa_jax.evals.advice import default_task, doubts
from ijepa_jax.evals.evaluation import Evaluation, report
from ijepa_jax.probes import head_sweep, labels, train_heads
from ijepa_jax.runtime import files, locks, sharding
from ijepa_jax.runtime.checkpoint import checkpointer

VERSION = 1  # raise it if the same settings train other heads
_LOG_SECONDS, _SAVE_SECONDS = 10.0, 60.0  # between two of them at least


def run(config, workdir: str) -> dict:
  """Trains all heads; reports the best, and the best of each input.

  Args:
    config: see configs/evals/linear.py.
    workdir: see `Evaluation.from_config`.

  Raises:
    UserError: a mistake in the config, the checkpoint or the images, or all
      heads have diverged.
  """
  config = default_task.complete(config)
  c = config.linear
  if not c.inputs or set(c.inputs) - {'last', 'last4'}:
    raise UserError(
      f'linear.inputs are {tuple(c.inputs)}: take last, last4 or both.'
    )
  evaluation = Evaluation.from_config(config, workdir)
  files.check_checkpoints(evaluation.workdir)
  sweep = make_sweep(config, evaluation)
  folder = _folder(config, evaluation, sweep)
  test = evaluation.features(config, evaluation.test)
  cached = None
  if not c.augment:
    features = evaluation.features(config, evaluation.train)
    cached = (
      {k: getattr(features, k) for k in c.inputs},
      features.labels[:, evaluation.column],
    )
  test_y = test.labels[:, evaluation.column]
  inputs = {k: getattr(test, k) for k in c.inputs}
  # Before the training, which may take days.
  for x_ND in inputs.values():
    labels.check_features(x_ND, test_y, 'test', evaluation.classes)

  encode = make_encode(evaluation.frozen)
  with locks.only_writer(folder, wait=True, job=True):
    state = train(config, evaluation, sweep, folder, encode, cached)
  scores = train_heads.accuracies(
    sweep, state, inputs, test_y, mesh=evaluation.mesh
  )
  result = head_sweep.report(sweep, scores)
  result['advice'] = doubts.of_sweep(sweep, result)
  accuracies = {'linear': result['best']['accuracy']} | {
    f'linear_{k}': result[f'best_{k}']['accuracy']
    for k in inputs
    if f'best_{k}' in result
  }
  return report(config, evaluation, accuracies, result)


def make_encode(frozen):
  """Returns (params, image uint8 [B, H, W, C]) -> the sweep's inputs."""

  def encode(params, image_BHWC):
    last, last4 = frozen.pooled(params, image_BHWC)
    return {'last': last, 'last4': last4}

  return encode


def make_sweep(config, evaluation) -> head_sweep.HeadSweep:
  """Returns the heads that the job trains."""
  protocol, rates, sizes = _course(config, evaluation)
  protocol = head_sweep.get_protocol(protocol, **rates)
  return head_sweep.HeadSweep(protocol, **sizes)


def _course(config, evaluation) -> tuple[str, dict, dict]:
  """Returns the protocol's name, rates in place of its own, and sizes."""
  c, task, widths = config.linear, evaluation.task, evaluation.widths()
  protocol = c.protocol or task.protocol
  epochs = c.epochs or task.epochs_of(len(evaluation.train))
  rates = dict(
    lrs=tuple(c.lrs) or None, weight_decays=tuple(c.weight_decays) or None
  )
  sizes = dict(
    widths={k: widths[k] for k in c.inputs},
    classes=evaluation.classes,
    examples=len(evaluation.train),
    batch_size=c.batch_size or default_batch_size(evaluation),
    epochs=epochs,
    milestones=[round(m * epochs / task.epochs) for m in task.milestones],
  )
  return protocol, rates, sizes


def _folder(config, evaluation, sweep):
  """Returns the folder of the heads, see `folder_of`."""
  protocol, rates, sizes = _course(config, evaluation)
  c = config.linear
  transforms = evaluation.task.transforms(evaluation.frozen.image_size)
  name = files.name_of(
    kind='heads',
    version=VERSION,
    trained_on=evaluation.depends_on,
    transform=repr(transforms[0 if c.augment else 1]),
    anew=bool(c.augment),  # which has another order of the images too
    course={'protocol': protocol, **rates, **sizes},
    inputs=list(c.inputs),
    seed=config.seed,
  )
  return folder_of(evaluation, sweep, name)


def default_batch_size(evaluation, limit: int | None = None) -> int:
  """Returns the task's, or of fewer images as many as there are.

  Args:
    limit: of it, if any.
  """
  size, devices = evaluation.task.batch_size, evaluation.mesh.size
  size = min(size, limit or size)
  return min(size, len(evaluation.train) // devices * devices or size)


def folder_of(evaluation, sweep: head_sweep.HeadSweep, name: str):
  """Returns the folder of a sweep's heads.

  Args:
    name: a hash of all that they depend on.

  Raises:
    UserError: the devices don't divide the sweep's batch.
  """
  if sweep.batch_size % evaluation.mesh.size:
    raise UserError(
      f'{sweep.kind}.batch_size is {sweep.batch_size}: take a multiple of the '
      f'{evaluation.mesh.size} devices.'
    )
  return evaluation.workdir / 'heads' / sharding.of_first(name)


def train(
  config, evaluation, sweep: head_sweep.HeadSweep, folder, encode, cached
) -> dict:
  """Trains the heads of any sweep, going on from what `folder` holds.

  Args:
    config: of the job.
    encode: (the encoder's params, image uint8 [B, H, W, C]) -> the sweep's
      inputs.
    cached: these inputs of all training images, and labels int [N]; None: they
      are computed anew each epoch.

  Returns:
    The state after the last epoch.

  Raises:
    UserError: an image or a label is wrong, or all heads have diverged.
  """
  init = train_heads.compiled(sweep, evaluation.mesh)[0]
  everywhere = sharding.replicated(evaluation.mesh)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
    jax.eval_shape(init, jax.random.key(0)),
  )
  # finite=False: a head may diverge while the others go on.
  with checkpointer.Checkpointer(
    folder, keep_last=1, finite=False
  ) as checkpoints:
    state, start = checkpoints.restore(abstract) or (None, 0)
    if start:
      logging.info('Going on from epoch %d.', start)
    began = saved = logged = time.monotonic()

    def on_epoch(epoch, state, means):
      nonlocal saved, logged
      last, now = epoch == sweep.epochs, time.monotonic()
      if last or now - saved >= _SAVE_SECONDS:
        checkpoints.save(epoch, state)
        saved = now
      if not last and now - logged < _LOG_SECONDS:
        return
      logged = now
      seconds = (now - began) / (epoch - start)
      logging.info(
        'Epoch %d of %d: loss %.3f to %.3f, %.0f s left.',
        epoch,
        sweep.epochs,
        np.nanmin(means['loss']),
        np.nanmax(means['loss']),
        seconds * (sweep.epochs - epoch),
      )

    progress = dict(state=state, start=start, on_epoch=on_epoch)
    if cached is None:
      return _train_augmented(config, evaluation, sweep, encode, **progress)
    return train_heads.train(
      sweep, *cached, mesh=evaluation.mesh, seed=config.seed, **progress
    )


def _train_augmented(
  config, evaluation, sweep, encode, *, state, start, on_epoch
):
  """Trains on inputs of images that are cropped anew each epoch."""
  frozen, mesh = evaluation.frozen, evaluation.mesh
  transform, _ = evaluation.task.transforms(frozen.image_size)
  dataset = loader.local_batches(
    evaluation.train,
    transform=transform,
    batch_size=sweep.batch_size,
    seed=config.seed,
    channels=frozen.channels,
    start=start * sweep.steps_per_epoch,
    workers=config.data.workers,
  ).map(labels.CheckBatch(evaluation.column, 'training', evaluation.classes))
  if state is None:
    init, _, _ = train_heads.compiled(sweep, mesh)
    state = init(jax.random.key(config.seed))
  update = make_update(config, evaluation, sweep, encode)
  with loader.device_batches(dataset, mesh, 'image', 'label') as batches:
    return train_heads.run_epochs(
      sweep,
      lambda state, batch, step: update(
        frozen.params, state, batch, jnp.int32(step)
      ),
      lambda _: itertools.islice(batches, sweep.steps_per_epoch),
      state,
      start=start,
      on_epoch=on_epoch,
    )


def make_update(config, evaluation, sweep: head_sweep.HeadSweep, encode):
  """Returns a step of the heads on images, which donates their state.

  (the encoder's params, state, batch of image and label, step) -> the state,
  and the means that `run_epochs` has.

  Args:
    config, encode: see `train`.
  """
  mesh = evaluation.mesh
  by_rows = sharding.batch_sharding(mesh)
  # The largest number of images at a time that divides the batch.
  pieces = -(-sweep.batch_size // max(config.batch_size, mesh.size))
  while sweep.batch_size % (pieces * mesh.size):
    pieces += 1

  @functools.partial(
    jax.jit, donate_argnums=1, out_shardings=sharding.replicated(mesh)
  )
  def update(params, state, batch, step):
    # Every n-th image: each device keeps to its own part of the batch.
    images = batch['image']
    images = images.reshape(-1, pieces, *images.shape[1:]).swapaxes(0, 1)
    inputs = jax.lax.map(functools.partial(encode, params), images)
    inputs = jax.tree.map(
      lambda x: jax.lax.with_sharding_constraint(
        x.swapaxes(0, 1).reshape(sweep.batch_size, *x.shape[2:]), by_rows
      ),
      inputs,
    )
    labels_B = batch['label'][:, evaluation.column]
    heads = train_heads.ARITHMETIC[sweep.kind]
    return heads.update_heads(sweep, state, inputs, labels_B, step)

  return update
