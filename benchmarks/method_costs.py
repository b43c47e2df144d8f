"""What a step of each method costs, in seconds and floating point operations.

    python benchmarks/method_costs.py [--recipe=tiny] [--methods=ijepa,mae]

Seconds are of the real loop, its images included: all methods take turns, a few
steps each, and the median of their turns counts, so that what else the machine
does is shared by all. Operations are what XLA's cost analysis counts in the
compiled step, with its loops over blocks unrolled, since it counts a loop's
body once.
"""

import contextlib
import importlib
import json
import pathlib
import statistics
import sys
import time

import jax
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # configs/

from ijepa_jax.data import loader
from ijepa_jax.methods import from_config
from ijepa_jax.train import compile
from ijepa_jax.train.run import make_run


class Turns:
  """The steps of a method, in turns of a few."""

  def __init__(self, config, stack: contextlib.ExitStack):
    run = make_run(config)
    self._run = run
    abstract, make_state = compile.abstract_state(run)
    self._steps = compile.compile_steps(run, abstract)
    self._state = make_state(jax.random.key(run.seed))
    self._batches = stack.enter_context(
      loader.device_batches(
        run.batches(0), run.mesh, *run.method.batch_keys, depth=run.prefetch
      )
    )

  def __call__(self, count: int) -> float:
    """Returns the seconds of a step, the mean of `count`."""
    # What was made ahead while others had their turns costs nothing.
    self._go(self._run.prefetch + 1)
    began = time.perf_counter()
    self._go(count)
    return (time.perf_counter() - began) / count

  def _go(self, count: int) -> None:
    for _ in range(count):
      batch = next(self._batches)
      step = self._steps[compile.batch_shape(self._run, batch)]
      self._state, _ = step(self._state, batch)
    jax.block_until_ready(self._state)


def seconds(
  configs: dict, turns: int = 15, count: int = 10
) -> dict[str, float]:
  """Returns the seconds of a step of each of `configs`, name -> config."""
  with contextlib.ExitStack() as stack:
    methods = {k: Turns(c, stack) for k, c in configs.items()}
    times = {k: [] for k in methods}
    for _ in range(turns):
      for name, turn in methods.items():
        times[name].append(turn(count))
  return {k: statistics.median(v) for k, v in times.items()}


def flops(config) -> float:
  """Returns a step's operations on all devices, the mean of shapes as drawn."""
  config = config.copy_and_resolve_references()
  config.model.unroll = 10_000  # all blocks
  run = make_run(config, open_images=False)
  abstract, _ = compile.abstract_state(run)
  counts = {}
  for key, step in compile.compile_steps(run, abstract).items():
    analysis = step.cost_analysis()
    if isinstance(analysis, list):  # of some versions of JAX
      (analysis,) = analysis
    counts[key] = analysis['flops'] * run.mesh.size  # they are of one
  sampler = run.method.sampler
  if sampler is None:
    return statistics.mean(counts.values())
  by_shape = dict(zip(sampler.shapes, counts.values(), strict=True))
  return statistics.mean(by_shape[sampler.shape(0, s)] for s in range(1000))


def measure(configs: dict, **turns) -> dict[str, dict[str, float]]:
  """Returns name -> {'seconds', 'flops'} of a step of each of `configs`."""
  counts = {name: flops(config) for name, config in configs.items()}
  times = seconds(configs, **turns)
  return {k: {'seconds': times[k], 'flops': counts[k]} for k in configs}


def main(_):
  configs = {}
  for name in FLAGS.methods:
    config = importlib.import_module(f'configs.{FLAGS.recipe}').get_config()
    config.method = name
    configs[name] = config
  print(json.dumps(measure(configs), indent=2))


if __name__ == '__main__':
  FLAGS = flags.FLAGS
  flags.DEFINE_string('recipe', 'tiny', 'Of configs/.')
  flags.DEFINE_list('methods', list(from_config.METHODS), 'To compare.')
  app.run(main)
