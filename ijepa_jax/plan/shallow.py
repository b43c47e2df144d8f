"""A deep step reckoned from shallow ones, in a fraction of the time.

All blocks of a network are alike, so that each takes as much of everything as
the next: seconds, memory, bytes that are sent. A step with few blocks is
compiled, then one with a block more of each network, and the differences are
added as often as blocks are missing. Memory follows that line where all is
kept for the backward pass; what remat keeps of a few blocks is less than what
something else needs at its peak.
"""

import collections
import dataclasses
from collections.abc import Callable

from ijepa_jax.errors import UserError
from ijepa_jax.plan.program.compiled import Step
from ijepa_jax.plan.program.parts import Part
from ijepa_jax.train.run import Run

# The first block of a network and its last are compiled together with what is
# before and after them; only one in between is as all the others.
BLOCKS = 2


def step(run: Run, compile_step: Callable[[Run], Step]) -> Step:
  """The step of a run, reckoned from shallow ones.

  Args:
    run: of any method.
    compile_step: run -> its step.

  Returns:
    A step without `dearest`; the first of the shallow ones that does not fit,
    without its peak.

  Raises:
    UserError: the run computes blocks again; nothing was compiled.
  """
  depths, few = blocks(run), few_blocks(run)
  for remat in (getattr(run.method, name).remat for name in depths):
    if remat != 'none':
      raise UserError(
        f'model.remat is {remat!r}: what it saves of all blocks --quick can '
        'not tell from a few. Plan without --quick; with '
        '--config.model.unroll=1, a loop over blocks, it takes no longer.'
      )
  base = compile_step(with_blocks(run, few))
  if not base.fits:
    return dataclasses.replace(base, peak=None)
  steps = [(base, 1.0)]
  for name, depth in depths.items():
    if missing := depth - few[name]:
      more = compile_step(with_blocks(run, few | {name: few[name] + 1}))
      if not more.fits:
        return dataclasses.replace(more, peak=None)
      steps += [(more, missing), (base, -missing)]
  return _sum(steps)


def blocks(run: Run) -> dict[str, int]:
  """The networks of a run's method, and how many blocks each has."""
  fields = {
    f.name: getattr(run.method, f.name) for f in dataclasses.fields(run.method)
  }
  return {k: x.depth for k, x in fields.items() if hasattr(x, 'depth')}


def few_blocks(run: Run) -> dict[str, int]:
  """Blocks of the shallowest step: as many as its targets are made of."""
  least = max(BLOCKS, getattr(run.method, 'target_layers', 1))
  return {k: min(least, depth) for k, depth in blocks(run).items()}


def words(run: Run) -> str:
  """From which shallow steps a step is reckoned: 'encoder 2 and 3 of 24'."""
  few = few_blocks(run)
  return ', '.join(
    f'{name} {few[name]} and {few[name] + 1} of {depth} blocks'
    for name, depth in blocks(run).items()
    if depth > few[name] + 1
  )


def with_blocks(run: Run, depths: dict[str, int]) -> Run:
  """The run with networks of other depths."""
  networks = {
    k: getattr(run.method, k).clone(depth=d) for k, d in depths.items()
  }
  method = dataclasses.replace(run.method, **networks)
  return dataclasses.replace(run, method=method)


def _sum(steps: list[tuple[Step, float]]) -> Step:
  """The sum of steps, each so many times."""
  base, _ = steps[0]

  def total(attribute):
    return sum(n * getattr(step, attribute) for step, n in steps)

  def totals(amounts_of):
    sums = collections.defaultdict(float)
    for step, n in steps:
      for name, amount in amounts_of(step).items():
        sums[name] += n * amount
    return sums

  parts = totals(lambda step: {part.name: part.seconds for part in step.parts})
  return dataclasses.replace(
    base,
    compile_seconds=sum(step.compile_seconds for step, n in steps if n > 0),
    peak=round(total('peak')),
    temporary=round(total('temporary')),
    collectives=dict(totals(lambda step: step.collectives)),
    seconds=total('seconds') if base.seconds is not None else None,
    parts=[Part(name, seconds) for name, seconds in parts.items()],
    dearest=(),
    uncounted_loops=max(step.uncounted_loops for step, _ in steps),
  )
