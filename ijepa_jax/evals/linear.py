"""The linear evaluation of the paper as a job: probes/linear_heads.py on a
frozen encoder.

On augmented images the features are made anew each epoch, as the paper does; on
cached ones of the images as they are an epoch takes seconds. After every epoch
the heads are saved, and the same command goes on from there.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from ijepa_jax.data import loader
from ijepa_jax.errors import UserError
from ijepa_jax.evals import evaluation
from ijepa_jax.probes import labels, linear_heads, train_heads
from ijepa_jax.runtime import files, locks, sharding
from ijepa_jax.runtime.checkpoint import checkpointer

VERSION = 1  # raise it whenever the same course gives other heads


def run(config, workdir: str) -> dict:
  """All heads, the best, and the best on the last and on the last 4 layers."""
  c = config.linear
  if not c.inputs or set(c.inputs) - {'last', 'last4'}:
    raise UserError(
      f'linear.inputs are {tuple(c.inputs)}: take last, last4 or both.'
    )
  bench = evaluation.set_up(config, workdir)
  files.check_checkpoints(bench.workdir)
  task, widths = bench.task, bench.widths()
  epochs = c.epochs or task.epochs
  course = dict(
    protocol=c.protocol or task.protocol,
    widths={k: widths[k] for k in c.inputs},
    classes=bench.classes,
    examples=len(bench.train),
    batch_size=c.batch_size or task.batch_size,
    epochs=epochs,
    milestones=[round(m * epochs / task.epochs) for m in task.milestones],
    lrs=tuple(c.lrs) or None,
    weight_decays=tuple(c.weight_decays) or None,
  )
  transforms = bench.task.transforms(bench.frozen.image_size)
  name = files.name_of(
    kind='heads',
    version=VERSION,
    trained_on=bench.depends_on,
    transform=repr(transforms[0 if c.augment else 1]),
    anew=bool(c.augment),  # in another order too
    course=course,
    inputs=list(c.inputs),
    seed=config.seed,
  )
  folder = bench.workdir / 'heads' / sharding.of_first(name)
  sweep = linear_heads.make_sweep(**course, devices=bench.mesh.size)
  test = bench.features(config, bench.test)
  train = None if c.augment else bench.features(config, bench.train)
  test_y = test.labels[:, bench.column]
  inputs = {k: getattr(test, k) for k in c.inputs}
  for x in inputs.values():
    labels.check_features(x, test_y, 'test', bench.classes)
  with locks.only_writer(folder, wait=True, job=True):
    state = _train(config, bench, sweep, train, folder)
  scores = train_heads.accuracies(sweep, state, inputs, test_y, mesh=bench.mesh)
  found = train_heads.report(sweep, scores)
  ours = {'linear': found['best']['accuracy']}
  ours |= {
    f'linear_{k}': found[f'best_{k}']['accuracy']
    for k in inputs
    if f'best_{k}' in found
  }
  return evaluation.report(config, bench, ours, found)


def _train(config, bench, sweep, train, folder):
  """The heads after the last epoch, going on from what is in `folder`."""
  make = train_heads.compiled(sweep, bench.mesh)[0]
  whole = sharding.replicated(bench.mesh)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
    jax.eval_shape(make, jax.random.key(0)),
  )
  # A head may diverge: the others go on.
  with checkpointer.Checkpointer(
    folder, keep_last=1, finite=False
  ) as checkpoints:
    state, start = checkpoints.restore(abstract) or (None, 0)
    if start:
      logging.info('Going on from epoch %d.', start)
    began = time.monotonic()

    def on_epoch(epoch, state, means):
      checkpoints.save(epoch, state)
      left = (time.monotonic() - began) / (epoch - start)
      logging.info(
        'Epoch %d of %d: loss %.3f to %.3f, %.0f s left.',
        epoch,
        sweep.epochs,
        np.nanmin(means['loss']),
        np.nanmax(means['loss']),
        left * (sweep.epochs - epoch),
      )

    if train is None:
      return _train_augmented(config, bench, sweep, state, start, on_epoch)
    return train_heads.train(
      sweep,
      {k: getattr(train, k) for k in sweep.widths},
      train.labels[:, bench.column],
      mesh=bench.mesh,
      seed=config.seed,
      state=state,
      start=start,
      on_epoch=on_epoch,
    )


def _train_augmented(config, bench, sweep, state, start, on_epoch):
  """On features of images that are cropped anew each epoch."""
  frozen, mesh = bench.frozen, bench.mesh
  transform, _ = bench.task.transforms(frozen.image_size)
  steps = sweep.steps_per_epoch
  dataset = loader.local_batches(
    bench.train,
    transform=transform,
    batch_size=sweep.batch_size,
    seed=config.seed,
    channels=frozen.channels,
    start=start * steps,
    workers=config.data.workers,
  ).map(labels.Checked(bench.column, 'training', bench.classes))
  make, _, _ = train_heads.compiled(sweep, mesh)
  if state is None:
    state = make(jax.random.key(config.seed))
  whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  # The largest number of images at a time that divides the batch.
  pieces = -(-sweep.batch_size // max(config.batch_size, mesh.size))
  while sweep.batch_size % (pieces * mesh.size):
    pieces += 1

  @functools.partial(jax.jit, donate_argnums=1, out_shardings=whole)
  def step(params, state, batch, i):
    # Every n-th image: each device keeps to its own part of the batch.
    images = batch['image']
    images = images.reshape(-1, pieces, *images.shape[1:]).swapaxes(0, 1)
    pooled = jax.lax.map(lambda x: frozen.pooled(params, x), images)
    last, last4 = (
      jax.lax.with_sharding_constraint(
        x.swapaxes(0, 1).reshape(sweep.batch_size, -1), split
      )
      for x in pooled
    )
    inputs = {'last': last, 'last4': last4}
    labels_B = batch['label'][:, bench.column]
    return linear_heads.update_heads(sweep, state, inputs, labels_B, i)

  records, diverged = [], set()
  with loader.device_batches(dataset, mesh, 'image', 'label') as batches:
    for i in range(start * steps, sweep.epochs * steps):
      state, values = step(frozen.params, state, next(batches), jnp.int32(i))
      if records:
        jax.block_until_ready(records[-1])
      records.append(values)
      if (i + 1) % steps == 0:
        means = {
          k: np.mean([np.asarray(r[k]) for r in records], 0) for k in values
        }
        train_heads.note_diverged(sweep, means['loss'], diverged)
        on_epoch((i + 1) // steps, state, means)
        records = []
  return state
