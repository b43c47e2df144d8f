"""How long a step of a config takes here, with its images, by a few of them."""

import time

import jax

from ijepa_jax.data import loader
from ijepa_jax.train import compile
from ijepa_jax.train.run import make_run

_WARM_UP = 3  # steps that are not counted: batches wait already
_FEWEST = 3


def step_seconds(config, seconds: float) -> tuple[float, float]:
  """Trains a few steps, which are thrown away.

  Args:
    config: of a pre-training.
    seconds: about as many as it may take, after the compilation.

  Returns:
    Seconds of a step, and the share of it that waits for images.
  """
  run = make_run(config)
  abstract, make_state = compile.abstract_state(run)
  steps = compile.compile_steps(run, abstract)
  state = make_state(jax.random.key(run.seed))
  batches = loader.device_batches(
    run.batches(0), run.mesh, *run.method.batch_keys, depth=run.prefetch
  )
  began = waited = count = 0
  with batches as batches:
    while count < _WARM_UP + _FEWEST or time.perf_counter() - began < seconds:
      asked_at = time.perf_counter()
      batch = next(batches)
      waited += time.perf_counter() - asked_at
      state, _ = steps[compile.batch_shape(run, batch)](state, batch)
      jax.block_until_ready(state)
      count += 1
      if count == _WARM_UP:
        began, waited = time.perf_counter(), 0
    total = time.perf_counter() - began
  return total / (count - _WARM_UP), waited / total
