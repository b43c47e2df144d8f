"""A program, compiled for chips and read: memory, bytes, estimate."""

import dataclasses
import re
import time
from collections.abc import Callable

import jax

from ijepa_jax.errors import UserError
from ijepa_jax.plan import chips
from ijepa_jax.plan.program import collectives, cost, hlo, parts
from ijepa_jax.plan.program.parts import Part

_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


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


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of a compiled program on each device.

  Attributes:
    arguments: of what it is given: the state and the batch.
    temporary: of what it makes besides: activations, gradients.
    peak: of all at once; a donated argument and what takes its place are one.
  """

  arguments: int
  temporary: int
  peak: int


def memory_of(compiled) -> Memory:
  """What the compiler planned for a program of jax.stages.Compiled."""
  plan = compiled.memory_analysis()
  arguments, temporary = plan.argument_size_in_bytes, plan.temp_size_in_bytes
  peak = arguments + plan.output_size_in_bytes + temporary
  return Memory(arguments, temporary, peak - plan.alias_size_in_bytes)


def compile_step(make: Callable, device, per_host: int, **known) -> Step:
  """Compiles a step, and reads it.

  Args:
    make: () -> jax.stages.Compiled.
    device: one of those that it is for.
    per_host: devices that share a host.
    **known: fields of Step.

  Raises:
    UserError: a kernel finds no room on the chip.
  """
  began = time.perf_counter()
  try:
    step = make()
  except jax.errors.JaxRuntimeError as error:
    if re.search(r'memory space vmem.*_attention', str(error), re.DOTALL):
      raise UserError(
        "model.attention is 'pallas', and its kernel finds no room in the fast "
        f'memory of {device.device_kind}: take xla.'
      ) from error
    if (amounts := out_of_memory(str(error))) is None:
      raise
    known['compile_seconds'] = time.perf_counter() - began
    return Step(fits=False, peak=amounts[0], limit=amounts[1], **known)
  known['compile_seconds'] = time.perf_counter() - began
  text = step.as_text()
  module = hlo.parse(text)
  memory = memory_of(step)
  chip = chips.by_kind(device.device_kind)
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
