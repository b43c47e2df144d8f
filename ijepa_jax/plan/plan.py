"""The real step of a recipe, compiled and read: memory, bytes, estimate."""

import collections
import dataclasses
import functools
import math
import os

import jax

from ijepa_jax.plan import chips, flops, shallow
from ijepa_jax.plan.program.compiled import Step, compile_step
from ijepa_jax.plan.program.parts import Part
from ijepa_jax.train import compile
from ijepa_jax.train.run import Run

# What --json prints of a plan, in this order.
KEYS = (
  *('platform', 'kind', 'chips', 'mesh', 'images_per_chip'),
  *('state_bytes_per_chip', 'peak_bytes_per_chip', 'memory_per_chip', 'fits'),
  *('compile_seconds', 'collectives', 'flops', 'estimated_step_seconds'),
  *('images_per_second', 'mfu', 'reckoned'),
)
# Of a GPU's memory, as launch/ sets it; JAX's own is .75.
_GPU_SHARE = 0.9


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
    reckoned: from which shallow steps, in words; '': all was compiled.
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
  reckoned: str = ''

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


def make_plan(
  run: Run, *, per_host: int, all_shapes: bool = False, quick: bool = False
) -> Plan:
  """Compiles the step of a training for its devices, and reads what it takes.

  Args:
    run: from train/run.py or evaluations.py, for devices that are here, or for
      those of topologies.devices.
    per_host: devices that share a host.
    all_shapes: compile every shape of masks, not the costliest alone; the peak
      is then of the largest, and what is summed is their mean as drawn.
    quick: compile a few blocks, and reckon the rest, see shallow.py.
  """
  abstract, _ = compile.abstract_state(run)
  shapes = [
    {'batch': b, 'share': share, 'count': flops.model_flops(run, b)}
    for share, b in shapes_as_drawn(run)
  ]
  words = f'all {len(shapes)}, as drawn'
  if not all_shapes:
    costliest = max(shapes, key=lambda shape: shape['count'])
    words = f'{describe(costliest["batch"])}, the costliest of {len(shapes)}'
    shapes = [costliest | {'share': 1.0}]

  device = run.mesh.devices.flat[0]

  def step_of(run, batch, share, count):
    def make():
      abstract, _ = compile.abstract_state(run)
      (step,) = compile.compile_steps(run, abstract, [batch]).values()
      return step

    return compile_step(make, device, per_host, share=share, flops=count)

  steps = [
    shallow.step(run, functools.partial(step_of, **shape))
    if quick
    else step_of(run, **shape)
    for shape in shapes
  ]
  return of_steps(
    steps,
    run.mesh,
    shapes=words,
    state_bytes_per_chip=state_bytes(abstract),
    accumulate=run.accumulate,
    batch_size=run.batch_size,
    total_steps=run.total_steps,
    reckoned=shallow.words(run) if quick else '',
  )


def of_steps(steps: list[Step], mesh, *, batch_size: int, **known) -> Plan:
  """Returns the plan of steps that were compiled.

  Args:
    steps: of one program, for the shapes of its batches.
    mesh: devices that they are for.
    batch_size: images of a step.
    **known: other fields of Plan.
  """
  device = mesh.devices.flat[0]
  chip = chips.by_kind(device.device_kind)
  largest = max(steps, key=lambda step: (not step.fits, step.peak or 0))
  memory = largest.limit or memory_per_chip(device)
  costliest = max(steps, key=lambda step: step.flops)
  fits = largest.fits and (memory is None or largest.peak <= memory)
  timed = fits and all(step.seconds for step in steps)
  return Plan(
    platform=device.platform,
    kind=device.device_kind,
    chips=mesh.size,
    mesh=dict(mesh.shape),
    images_per_chip=batch_size // mesh.size,
    temporary_bytes_per_chip=largest.temporary,
    peak_bytes_per_chip=largest.peak,
    memory_per_chip=memory,
    fits=fits,
    compile_seconds=round(sum(step.compile_seconds for step in steps), 1),
    collectives=_mean_collectives(steps),
    flops=sum(step.share * step.flops for step in steps),
    estimated_step_seconds=(
      sum(step.share * step.seconds for step in steps) if timed else None
    ),
    parts=costliest.parts,
    dearest=costliest.dearest,
    uncounted_loops=max(step.uncounted_loops for step in steps),
    batch_size=batch_size,
    peak_flops=chip and chip.flops * mesh.size,
    **known,
  )


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


def describe(batch) -> str:
  """The shapes of a batch but for its rows: 'context 1x64, targets 4x42'."""
  return ', '.join(
    f'{k} {"x".join(map(str, x.shape[1:]))}' for k, x in batch.items()
  )


def _mean_collectives(steps: list[Step]) -> dict[str, float]:
  total = collections.Counter()
  for step in steps:
    total.update({k: step.share * v for k, v in step.collectives.items()})
  return dict(sorted(total.items()))
