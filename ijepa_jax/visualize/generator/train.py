"""Trains the generator on the one loop."""

import grain
import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax.methods.optim import adamw, schedules
from ijepa_jax.models import functions
from ijepa_jax.models.dit import DiT
from ijepa_jax.runtime import files, locks, metrics, preemption, sharding
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.runtime.timing import starts
from ijepa_jax.train import compile, loop
from ijepa_jax.train.run import Run
from ijepa_jax.visualize.generator.blocks import BlockData
from ijepa_jax.visualize.generator.method import Generator

_HELD_OUT = 512  # blocks whose loss is logged


def make_run(c, data: BlockData, mesh, seed: int) -> Run:
  """Makes everything static of the training.

  Args:
    c: section `generator` of configs/visualize.py.
    data: whose sizes count.
    mesh: the devices.
    seed: of the training.
  """
  total = c.total_steps
  warmup = min(c.warmup_steps, total // 2)
  lr = schedules.warmup_cosine(0.0, c.peak_lr, 0.0, warmup, total)
  regressor_depth = max(c.depth // 4, 1)
  computation = dict(
    dtype=jnp.dtype(c.dtype),
    product_dtype=functions.product_dtype(mesh.devices.flat[0].platform),
  )
  return Run(
    method=Generator(
      DiT(c.patch_size, c.width, c.depth, c.heads, **computation),
      DiT(c.patch_size, c.width, regressor_depth, c.heads, **computation),
      vector_width=data.vector.shape[-1],
      time_mean=c.time_mean,
      ema=c.ema,
    ),
    tx=adamw.adamw(lr=lr, weight_decay=lambda step: 0.0, b2=0.99),
    schedules={'lr': lr},
    mesh=mesh,
    image_shape=data.pixels.shape[2:],
    batch_size=c.batch_size,
    total_steps=total,
    seed=seed,
    advice='try a lower generator.peak_lr.',
  )


def train(run: Run, data: BlockData, held_out, folder, every_steps: int):
  """Trains, going on from what `folder` holds.

  Args:
    run: from `make_run`.
    data: the blocks to learn from.
    held_out: BlockData of other images, whose loss is logged.
    folder: of checkpoints and metrics.jsonl.
    every_steps: of checkpoints, and of that loss.

  Returns:
    The last State; its target is to sample with. A training that was longer
    before is taken as it is.

  Raises:
    Stopped: SIGTERM or Ctrl-C came before the last step; what was trained is
      saved.
  """
  with preemption.watch() as watched, starts.this_start() as this_start:
    abstract, make_state = compile.abstract_state(run)
    checkpoints = checkpointer.Checkpointer(
      folder / 'checkpoints', every_steps=every_steps, keep_last=1
    )
    with (
      watched.together(),
      locks.only_writer(folder, wait=True, job=True),
      checkpoints,
    ):
      state, start = checkpoints.restore(abstract) or (
        make_state(jax.random.key(run.seed)),
        0,
      )
      first_process = jax.process_index() == 0
      if first_process and start < run.total_steps:
        this_start.keep_in(folder)
      with metrics.MetricWriter(
        folder, start_step=start, enabled=first_process
      ) as writer:
        state = loop.train(
          *(run, state, abstract, batches(run, data, start)),
          *(checkpoints, writer, watched),
          [(every_steps, _held_out_loss(run, held_out))],
        )
    if int(state.step) < run.total_steps:
      watched.check()
  return state


def batches(run: Run, data: BlockData, start: int):
  """This process's batches from step `start`: endless, shuffled by the seed."""
  processes = jax.process_count()

  def read(numbers):
    return {
      'image': data.block_pixels(numbers),
      'vector': data.block_vectors(numbers),
    }

  order = grain.MapDataset.range(len(data)).shuffle(run.seed).repeat()
  dataset = order.batch(run.batch_size // processes, batch_fn=list).map(read)
  part = slice(jax.process_index() + start * processes, None, processes)
  return dataset[part].to_iter_dataset()


def _held_out_loss(run: Run, held_out: BlockData):
  """A monitor: State -> the loss on blocks that it is not trained on."""
  n = min(_HELD_OUT, len(held_out)) // run.mesh.size * run.mesh.size
  if not n:
    return lambda state: {}
  numbers = np.arange(n)
  batch = {
    'image': held_out.block_pixels(numbers),
    'vector': held_out.block_vectors(numbers),
  }
  batch = sharding.to_global(batch, run.mesh)

  @jax.jit
  def loss(params, batch):
    _, metrics = run.method.loss(params, None, batch, jax.random.key(0))
    return metrics

  def monitor(state):
    values = jax.device_get(loss(state.target, batch))
    return {f'held_out/{k}': float(v) for k, v in values.items()}

  return monitor


def folder_of(out, data: BlockData, c, seed: int):
  """Where the training is kept: named by all that it depends on.

  But for its length: a longer training goes on from a shorter one.

  Args:
    out: of the page.
    data: what is learned.
    c: section `generator` of the config.
    seed: of the training.
  """
  settings = {k: c[k] for k in c if k not in ('total_steps', 'every_steps')}
  key = files.name_of(blocks=data.key, settings=settings, seed=seed)
  return out / 'generator' / key
