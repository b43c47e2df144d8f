"""How long a step may take, from the text of the compiled program.

Never a measurement. Of TPUs it is the compiler's own estimate: each instruction
carries the cycles that the compiler chose its tiling by. Of GPUs it is a
roofline: each kernel takes as long as its bytes at the bandwidth of the memory
or its products at their peak, whichever is longer. Collectives take what they
send at the bandwidth of the links; on TPUs asynchronous ones cost nothing while
there is something to compute, on GPUs XLA has them wait by default.
"""

import math
import re

from ijepa_jax.plan.chips import Chip
from ijepa_jax.plan.program import collectives, hlo, kernels

MADE_OF = {
  'tpu': (
    "the TPU compiler's own estimated cycles of every instruction, loops as "
    "often as they run, at the chip's clock, and what collectives that are "
    'waited for send, at the bandwidth of the links'
  ),
  'gpu': (
    'a roofline: every kernel takes as long as its bytes at the bandwidth of '
    'the memory or its products at their peak, whichever is longer, loops as '
    'often as they run, and collectives, one after the other, come on top at '
    'the bandwidth of the links'
  ),
}
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
# No kernel runs for them.
_FREE = {
  *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'call'),
  *('while', 'conditional', 'after-all', 'partition-id', 'replica-id'),
  *('opt-barrier', 'optimization-barrier', 'add-dependency'),
}


def step_seconds(
  module: hlo.Module, chip: Chip | None, per_host: int
) -> float | None:
  """Estimated seconds of one run of a program; None: of a CPU or unknown chip.

  Args:
    module: the compiled step.
    chip: that it is for.
    per_host: chips of a host, whose links are faster than those beyond.
  """
  if chip is None:
    return None
  computing = sum(seconds_by_instruction(module, chip).values())
  if not computing:
    return None
  sending = collectives.seconds(module, chip, per_host)
  if chip.platform == 'tpu':
    return sending[False] + max(computing, sending[True])
  return computing + sum(sending.values())


def seconds_by_instruction(
  module: hlo.Module, chip: Chip
) -> dict[hlo.Instruction, float]:
  """Instruction -> estimated seconds of all its runs; of collectives none."""
  estimate = _cycles if chip.platform == 'tpu' else _roofline
  return module.total(
    lambda computation: {
      x: estimate(x, computation, module, chip) for x in computation.values()
    }
  )


def _cycles(x, computation, module, chip) -> float:
  """Seconds of one instruction of a TPU's program, by its compiler."""
  if kernels.is_kernel(x):
    return kernels.cycles(x, computation, chip) / chip.clock
  match = _CYCLES.search(x.attributes)
  return int(match[1]) / chip.clock if match else 0.0


def _roofline(x, computation, module, chip) -> float:
  """Seconds of one instruction of a GPU's program; of collectives 0."""
  free = x.opcode in _FREE or x.opcode.endswith('-done')
  if free or collectives.kind_of(x):
    return 0.0
  if x.opcode == 'fusion':
    inside = module.computations.get(x.called[0], {})
    products = [(y, inside) for y in inside.values()]
    moved = _fusion_bytes(inside)
  else:
    products = [(x, computation)]
    moved = _bytes(x, computation)
  compute = sum(_product_seconds(y, c, chip) for y, c in products)
  return max(moved / chip.bandwidth, compute)


def _product_seconds(x, computation: hlo.Computation, chip: Chip) -> float:
  """Seconds of a product at its peak; 0: it is none."""
  if x.opcode == 'dot':
    axes = x.dims('lhs_contracting_dims')
  elif _is_gemm(x):
    axes = x.dims('lhs_contracting_dimensions')
  else:
    return 0.0
  lhs = computation.get(x.operands[0]) if x.operands else None
  if lhs is None:
    return 0.0
  shape = lhs.shapes[0]
  flops = 2 * x.shapes[0].size * math.prod(shape.dims[i] for i in axes)
  # float32 is computed as TF32, at half the rate.
  return flops / chip.flops * max(shape.bytes / shape.size / 2, 1)


def _bytes(x: hlo.Instruction, computation: hlo.Computation) -> float:
  """Read and written by an instruction; of a slice, no more than the slice."""
  operands = [computation[k] for k in x.operands if k in computation]
  if x.opcode in ('dynamic-slice', 'slice', 'gather'):
    return 2 * x.bytes
  if x.opcode == 'dynamic-update-slice':
    return 2 * operands[1].bytes
  # cuBLAS' second output is room to work in.
  written = x.shapes[0].bytes if _is_gemm(x) else x.bytes
  return written + sum(o.bytes for o in operands)


def _is_gemm(x: hlo.Instruction) -> bool:
  return x.opcode == 'custom-call' and 'gemm_backend_config' in x.attributes


def _fusion_bytes(inside: hlo.Computation) -> float:
  """Read and written by a fusion: what its inner instructions share is not.

  Args:
    inside: the computation that it calls.
  """
  users = {name: [] for name in inside}
  for x in inside.values():
    for position, name in enumerate(x.operands):
      if name in users:
        users[name].append((x, position))

  def read(x) -> float:
    total = 0.0
    for user, position in users[x.name]:
      if user.opcode == 'bitcast':
        total += read(user)
      elif user.opcode in ('dynamic-slice', 'slice', 'gather') and not position:
        total += user.bytes
      elif user.opcode == 'dynamic-update-slice' and not position:
        total += 0  # updated in place
      else:
        return x.bytes
    return min(total, x.bytes)

  def written(x) -> float:
    operands = [inside[k] for k in x.operands if k in inside]
    if x.opcode == 'tuple':
      return sum(map(written, operands))
    if x.opcode == 'bitcast' and operands:
      return written(operands[0])
    if x.opcode == 'dynamic-update-slice':
      return operands[1].bytes
    return 0.0 if x.opcode == 'parameter' else x.bytes

  parameters = [x for x in inside.values() if x.opcode == 'parameter']
  roots = [x for x in inside.values() if x.root]
  return sum(map(read, parameters)) + sum(map(written, roots))
