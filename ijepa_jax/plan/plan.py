"""The real step of a recipe, compiled and read: memory, bytes, estimate."""

import collections
import dataclasses
import math
import os
import re
import time

import jax

from ijepa_jax.plan import chips, flops
from ijepa_jax.plan.program import collectives, cost, hlo, parts
from ijepa_jax.plan.program.parts import Part
from ijepa_jax.train import compile
from ijepa_jax.train.run import Run

# What --json prints of a plan, in this order.
KEYS = (
  *('platform', 'kind', 'chips', 'mesh', 'images_per_chip'),
  *('state_bytes_per_chip', 'peak_bytes_per_chip', 'memory_per_chip', 'fits'),
  *('compile_seconds', 'collectives', 'flops', 'estimated_step_seconds'),
  *('images_per_second', 'mfu'),
)
# Of a GPU's memory, as launch/ sets it; JAX's own is .75.
_GPU_SHARE = 0.9
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What a config does on chips.

  Attributes:
    platform, kind, chips: 'tpu', 'gpu' or 'cpu'; as JAX calls the chip; how
      many.
    mesh: axis -> devices.
    images_per_chip: of a step, in all micro-batches.
    accumulate: micro-batches of a step.
    shapes: the batch that was compiled, in words.
    state_bytes_per_chip: of parameters, target and moments.
    temporary_bytes_per_chip: of activations and gradients, and whatever else a
      step makes; None: it does not fit.
    peak_bytes_per_chip: of all at once, of a step; None: it does not fit, and
      the compiler does not say by how much.
    memory_per_chip: what a program can have; None: unknown.
    fits: whether the peak does.
    compile_seconds: here.
    collectives: kind -> bytes that a chip sends in a step, see collectives.py.
    flops: of the model in a step, over all chips, see flops.py.
    estimated_step_seconds: see cost.py; None: no estimate for these chips.
    parts, dearest: see program/parts.py, of the costliest shape.
    uncounted_loops: of which the program does not tell how often they run.
    batch_size, total_steps: of the recipe.
    peak_flops: a second, of all chips; None: unknown.
  """

  platform: str
  kind: str
  chips: int
  mesh: dict[str, int]
  images_per_chip: int
  accumulate: int
  shapes: str
  state_bytes_per_chip: int
  temporary_bytes_per_chip: int | None
  peak_bytes_per_chip: int | None
  memory_per_chip: int | None
  fits: bool
  compile_seconds: float
  collectives: dict[str, float]
  flops: float
  estimated_step_seconds: float | None
  parts: list[Part]
  dearest: list[Part]
  uncounted_loops: int
  batch_size: int
  total_steps: int
  peak_flops: float | None

  @property
  def images_per_second(self) -> float | None:
    """Over all chips."""
    seconds = self.estimated_step_seconds
    return self.batch_size / seconds if seconds else None

  @property
  def mfu(self) -> float | None:
    """Share of the chips' peak that the model's operations are."""
    seconds = self.estimated_step_seconds
    return self.flops / seconds / self.peak_flops if seconds else None

  @property
  def hours(self) -> float | None:
    """Of all steps of the recipe."""
    seconds = self.estimated_step_seconds
    return self.total_steps * seconds / 3600 if seconds else None

  def as_json(self) -> dict:
    seconds = {part.name: part.seconds for part in self.parts}
    return {key: getattr(self, key) for key in KEYS} | {'parts': seconds}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """A step that was compiled for one shape of a batch, or refused.

  Attributes:
    share: of the run's steps.
    flops: of the model.
    compile_seconds: also where it was refused.
    fits: whether the compiler made it.
    peak, limit, temporary: bytes of a device; of a refusal what was said.
    collectives, seconds, parts, dearest, uncounted_loops: see Plan.
  """

  share: float
  flops: float
  compile_seconds: float
  fits: bool = True
  peak: int | None = None
  limit: int | None = None
  temporary: int | None = None
  collectives: dict[str, float] = dataclasses.field(default_factory=dict)
  seconds: float | None = None
  parts: list[Part] = ()
  dearest: list[Part] = ()
  uncounted_loops: int = 0


def make_plan(run: Run, *, per_host: int, all_shapes: bool = False) -> Plan:
  """Compiles the step of a training for its devices, and reads what it takes.

  Args:
    run: from train/run.py or fine_tuning.py, for devices that are here, or for
      those of topologies.devices.
    per_host: devices that share a host.
    all_shapes: compile every shape of masks, not the costliest alone; the peak
      is then of the largest, and what is summed is their mean as drawn.
  """
  abstract, _ = compile.abstract_state(run)
  counts = [
    (flops.model_flops(run, batch), share, batch)
    for share, batch in shapes_as_drawn(run)
  ]
  words = f'all {len(counts)}, as drawn'
  if not all_shapes:
    count, _, batch = max(counts, key=lambda c: c[0])
    words = f'{_describe(batch)}, the costliest of {len(counts)}'
    counts = [(count, 1.0, batch)]
  steps = [
    _compile(run, abstract, batch, per_host, share=share, flops=count)
    for count, share, batch in counts
  ]
  device = run.mesh.devices.flat[0]
  chip = chips.by_kind(device.device_kind)
  largest = max(steps, key=lambda step: (not step.fits, step.peak or 0))
  memory = largest.limit or memory_per_chip(device)
  costliest = max(steps, key=lambda step: step.flops)
  fits = largest.fits and (memory is None or largest.peak <= memory)
  known = fits and all(step.seconds for step in steps)
  return Plan(
    platform=device.platform,
    kind=device.device_kind,
    chips=run.mesh.size,
    mesh=dict(run.mesh.shape),
    images_per_chip=run.batch_size // run.mesh.size,
    accumulate=run.accumulate,
    shapes=words,
    state_bytes_per_chip=state_bytes(abstract),
    temporary_bytes_per_chip=largest.temporary,
    peak_bytes_per_chip=largest.peak,
    memory_per_chip=memory,
    fits=fits,
    compile_seconds=round(sum(step.compile_seconds for step in steps), 1),
    collectives=_mean_collectives(steps),
    flops=sum(step.share * step.flops for step in steps),
    estimated_step_seconds=(
      sum(step.share * step.seconds for step in steps) if known else None
    ),
    parts=costliest.parts,
    dearest=costliest.dearest,
    uncounted_loops=max(step.uncounted_loops for step in steps),
    batch_size=run.batch_size,
    total_steps=run.total_steps,
    peak_flops=chip and chip.flops * run.mesh.size,
  )


def _compile(run: Run, abstract, batch, per_host: int, **known) -> Step:
  """Compiles a step for one shape of a batch, and reads it.

  Args:
    **known: fields of Step.
  """
  began = time.perf_counter()
  try:
    (step,) = compile.compile_steps(run, abstract, [batch]).values()
  except jax.errors.JaxRuntimeError as error:
    if (amounts := out_of_memory(str(error))) is None:
      raise
    known['compile_seconds'] = time.perf_counter() - began
    return Step(fits=False, peak=amounts[0], limit=amounts[1], **known)
  known['compile_seconds'] = time.perf_counter() - began
  text = step.as_text()
  module = hlo.parse(text)
  memory = flops.memory_of(step)
  chip = chips.by_kind(run.mesh.devices.flat[0].device_kind)
  costs = cost.seconds_by_instruction(module, chip) if chip else {}
  return Step(
    peak=memory.peak,
    temporary=memory.temporary,
    collectives=collectives.bytes_by_kind(module),
    seconds=cost.step_seconds(module, chip, per_host),
    parts=parts.of_step(costs),
    dearest=parts.dearest(costs, text),
    uncounted_loops=module.uncounted_loops(),
    **known,
  )


def out_of_memory(message: str) -> tuple[int | None, int | None] | None:
  """Bytes that are needed and that there are, of a compiler's refusal.

  Returns:
    None: it refused for another reason.
  """
  if not re.search(r'RESOURCE_EXHAUSTED|[Oo]ut of memory', message):
    return None
  amounts = [
    round(float(number) * _UNITS[unit])
    for number, unit in re.findall(r'\b(\d[\d.]*)([KMGT])i?B?\b', message)
  ]
  return tuple(amounts[:2]) if len(amounts) > 1 else (None, None)


def state_bytes(abstract) -> int:
  """Bytes of a state on each device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(abstract)
  )


def memory_per_chip(device) -> int | None:
  """Bytes that a program can have on a device; None: unknown.

  Of a GPU, $XLA_PYTHON_CLIENT_MEM_FRACTION of it, or 90%, as launch/ sets it.
  Of a CPU, an equal part of the machine's.
  """
  if device.platform == 'cpu':
    pages, size = os.sysconf('SC_PHYS_PAGES'), os.sysconf('SC_PAGE_SIZE')
    return pages * size // jax.local_device_count()
  chip = chips.by_kind(device.device_kind)
  if chip is None:
    return None
  if chip.platform == 'gpu':
    share = os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION') or _GPU_SHARE
    return int(float(share) * chip.memory)
  return chip.memory


def shapes_as_drawn(run: Run) -> list[tuple[float, dict]]:
  """Every batch that a step may have, and the share of steps that have it."""
  batches = run.method.batch_shapes(run.batch_size, run.image_shape)
  sampler = getattr(run.method, 'sampler', None)  # classifiers have none
  if sampler is None or len(batches) == 1:
    return [(1 / len(batches), batch) for batch in batches]
  drawn = collections.Counter(sampler.shape(run.seed, s) for s in range(1000))
  shares = [drawn[shape] / 1000 for shape in sampler.shapes]
  return list(zip(shares, batches, strict=True))


def _describe(batch) -> str:
  """The shapes of a batch but for its rows: 'context 1x64, targets 4x42'."""
  return ', '.join(
    f'{k} {"x".join(map(str, x.shape[1:]))}' for k, x in batch.items()
  )


def _mean_collectives(steps: list[Step]) -> dict[str, float]:
  total = collections.Counter()
  for step in steps:
    total.update({k: step.share * v for k, v in step.collectives.items()})
  return dict(sorted(total.items()))
