"""The state in shapes, and the compiled steps."""

import concurrent.futures
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from ijepa_jax.errors import UserError
from ijepa_jax.methods import train_step
from ijepa_jax.models import functions
from ijepa_jax.runtime import sharding
from ijepa_jax.train.run import Run


def abstract_state(run: Run, make_params=None, *args):
  """Returns the state's shapes and shardings, and the function that makes it.

  Args:
    run: of any method.
    make_params: args -> parameters; None: fresh ones of a `jax.random.key`.
    *args: arrays, or their shapes, that the function takes.

  Returns:
    A State of jax.ShapeDtypeStruct, and args -> State on the devices.
  """
  if make_params is None:
    make_params = functools.partial(
      run.method.init_params, image_shape=run.image_shape
    )
    args = (jax.random.key(run.seed),)

  def make(*args):
    return train_step.init(run.method, run.tx, make_params(*args))

  abstract = sharding.with_shardings(jax.eval_shape(make, *args), run.mesh)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  return abstract, jax.jit(make, out_shardings=shardings)


def check_attention(method, interpret: bool = False) -> None:
  """Compares the kernel of model.attention=pallas with XLA's on this device.

  At the start of a training: the kernel was compiled for TPUs and computed on
  CPUs, and no TPU has run it yet.

  Args:
    method: whose modules have the sizes.
    interpret: see pallas_attention.py.

  Raises:
    UserError: they differ by more than rounding.
  """
  for name in ('encoder', 'predictor'):
    module = getattr(method, name, None)
    if getattr(module, 'attention', 'xla') != 'pallas':
      continue
    error = _error_of_kernel(module, interpret)
    if not error < 0.03:  # bfloat16's rounding is a tenth of it; nan is not
      raise UserError(
        f"model.attention is 'pallas', and the {name}'s kernel computes "
        f'something else than XLA on this device, by {error:.3g} of the '
        'largest number: take xla, and report it.'
      )
    logging.info(
      "The %s's kernel computes what XLA does on this device, within %.2g of "
      'the largest number.',
      name,
      error,
    )


def _error_of_kernel(module, interpret: bool) -> float:
  """The largest difference of attention or its gradient, of the largest."""
  from ijepa_jax.models import pallas_attention  # see functions.attention

  shape = 2 * pallas_attention.IMAGES, 43, module.width
  keys = jax.random.split(jax.random.key(0))
  qkv = jax.random.normal(keys[0], (*shape[:2], 3 * shape[2]), module.dtype)
  dy = jax.random.normal(keys[1], shape, module.dtype)

  @functools.partial(jax.jit, static_argnums=(0, 1))
  def compute(attention, last, qkv, dy):
    y, back = jax.vjp(lambda x: attention(x, module.heads, last), qkv)
    return [x.astype(jnp.float32) for x in (y, *back(dy))]

  kernel = compute(pallas_attention.attention, interpret, qkv, dy)
  reference = compute(functions.attention, 'xla', qkv, dy)
  # By NumPy: of nan and numbers, jax.numpy's largest on CPUs may be a number.
  pairs = zip(*map(jax.device_get, (kernel, reference)), strict=True)
  return max(np.abs(x - y).max() / np.abs(y).max() for x, y in pairs)


def batch_shape(run: Run, batch) -> tuple:
  """What a compiled step is found by: the shapes of a batch."""
  return tuple(batch[k].shape for k in run.method.batch_keys)


def compile_steps(run: Run, abstract, batches: list[dict] | None = None):
  """Compiles a step for each shape of a batch: {`batch_shape`: callable}.

  Before the first step and side by side, so that none stalls the run later.

  Args:
    run: of any method.
    abstract: from `abstract_state`.
    batches: of jax.ShapeDtypeStruct; None: all that the method may have.
  """
  step = jax.jit(
    functools.partial(
      train_step.train_step,
      method=run.method,
      tx=run.tx,
      seed=run.seed,
      accumulate=run.accumulate,
    ),
    out_shardings=(
      jax.tree.map(lambda x: x.sharding, abstract),
      sharding.replicated(run.mesh),
    ),
    donate_argnums=0,
  )
  rows = sharding.batch_sharding(run.mesh)

  def compile_one(batch):
    batch = {
      k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)
      for k, x in batch.items()
    }
    with sharding.gathering(run.mesh):
      return step.lower(abstract, batch).compile()

  batches = batches or run.method.batch_shapes(run.batch_size, run.image_shape)
  keys = [batch_shape(run, batch) for batch in batches]
  pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
  try:
    return dict(zip(keys, pool.map(compile_one, batches), strict=True))
  finally:
    # Who stops the job now does not wait for XLA.
    pool.shutdown(wait=False, cancel_futures=True)
