"""The state in shapes, and the compiled steps."""

import concurrent.futures
import functools
import os

import jax

from ijepa_jax.methods import train_step
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
  return abstract, jax.jit(
    make, out_shardings=shardings, compiler_options=compiler_options(run.mesh)
  )


def compiler_options(mesh: jax.sharding.Mesh) -> dict | None:
  """What XLA is asked for in place of its defaults, on CPUs alone.

  Most of LLVM's passes take a quarter of the time to compile and make no step
  faster: the products are not theirs (docs/performance.md, CPU). XLA_FLAGS with
  a level of its own counts.
  """
  level = 'xla_backend_optimization_level'
  flags = os.environ.get('XLA_FLAGS', '')
  if mesh.devices.flat[0].platform != 'cpu' or level in flags:
    return None
  return {level: 1}


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
    compiler_options=compiler_options(run.mesh),
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
