"""The state in shapes, and the compiled steps."""

import concurrent.futures
import functools
import os

import jax
import jax.numpy as jnp

from ijepa_jax.methods import train_step
from ijepa_jax.runtime import sharding
from ijepa_jax.train.run import Run


def abstract_state(config, run: Run):
  """The state's shapes, types and shardings, and the function that makes it."""
  make = functools.partial(
    train_step.init,
    run.model,
    run.tx,
    image_shape=(*config.data.image_size, config.data.channels),
  )
  shapes = jax.eval_shape(make, jax.random.key(config.seed))
  abstract = sharding.with_shardings(shapes, run.mesh)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  return abstract, jax.jit(make, out_shardings=shardings)


def compile_steps(config, run: Run, abstract, shapes=None) -> dict:
  """One compiled step for each shape of masks: {(Kc, Kt): callable}.

  All that the sampler can draw, unless `shapes` are given; before the first
  step and side by side, so that none stalls the run later.
  """
  step = jax.jit(
    functools.partial(
      train_step.train_step,
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
