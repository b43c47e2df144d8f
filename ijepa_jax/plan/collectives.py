"""What chips send to one another in a step."""

import collections
import math
import re

import numpy as np

from ijepa_jax.plan import hlo
from ijepa_jax.plan.chips import Chip

# Of an operand of one byte in a group of n, the bytes that each chip sends
# where the chips are a ring: none sends less, whatever the network.
SENT = {
  'all-gather': lambda n: n - 1,
  'reduce-scatter': lambda n: (n - 1) / n,
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'ragged-all-to-all': lambda n: (n - 1) / n,
  'collective-permute': lambda n: 1,
  'collective-broadcast': lambda n: (n - 1) / n,
}


def kind_of(x: hlo.Instruction) -> str | None:
  """The key of SENT; None: no collective, or the end of one counted before."""
  kind = x.opcode.removesuffix('-start')
  return kind if kind in SENT else None


def in_others(x: hlo.Instruction) -> bool:
  """Whether an instruction may run a collective inside of it.

  XLA puts some into fusions, and asynchronous ones into their own computations.
  """
  return x.opcode in ('fusion', 'async-start')


def bytes_by_kind(module: hlo.Module) -> dict[str, float]:
  """kind of collective -> bytes that a chip sends in a step."""

  def cost(x, computation):
    kind = kind_of(x)
    return {kind: sent(x, computation, module.chips)} if kind else {}

  totals = module.total(cost, descend=in_others)
  return {k: float(v) for k, v in sorted(totals.items())}


def seconds(module: hlo.Module, chip: Chip, per_host: int) -> dict[str, float]:
  """How long chips send to one another in a step, at the best.

  Returns:
    'waited': by collectives that the program waits for; 'beside': by those that
    run beside what it computes.
  """

  def cost(x, computation):
    if kind_of(x) is None:
      return {}
    shared = shared_host(group(x, module.chips), per_host)
    rate = min(chip.link, shared * chip.network) if shared else chip.link
    kind = 'beside' if x.opcode.endswith('-start') else 'waited'
    return {kind: sent(x, computation, module.chips) / rate}

  totals = module.total(cost, descend=in_others)
  waited = module.total(cost)['waited']
  return {'waited': waited, 'beside': sum(totals.values()) - waited}


def sent(x, computation: hlo.Computation, chips: int) -> float:
  """Bytes that a chip sends for one collective."""
  operands = [computation[k] for k in x.operands if k in computation]
  n = 2 if 'permute' in x.opcode else len(group(x, chips))
  return sum(o.bytes for o in operands) * SENT[kind_of(x)](n)


def group(x: hlo.Instruction, chips: int) -> tuple[int, ...]:
  """The first group of chips, by their place in the mesh, of a collective."""
  text = x.attributes
  if match := re.search(r'replica_groups=\{\{([\d,]+)\}', text):
    return tuple(map(int, match[1].split(',')))
  if match := re.search(r'replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}', text):
    return _group_of_axes(*match.groups())
  match = re.search(
    r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', text
  )
  if not match:
    return tuple(range(chips))  # replica_groups={}: all
  shape, dims, axes = (
    tuple(map(int, part.split(','))) if part else None
    for part in match.groups()
  )
  order = np.arange(np.prod(dims)).reshape(dims).transpose(axes)
  return tuple(order.reshape(shape)[0].tolist())


def _group_of_axes(mesh: str, names: str) -> tuple[int, ...]:
  """Of "'a'=2,'b'=4" and the axes "'b'", or a part of one, "'b':(2)2"."""
  sizes = {k: int(n) for k, n in re.findall(r"'([^']+)'=(\d+)", mesh)}
  parts = dict.fromkeys(sizes)
  for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", names):
    parts[name] = (int(before), int(size)) if size else (1, sizes[name])
  index = []
  for name, total in sizes.items():
    before, size = parts[name] or (1, 1)
    after = total // before // size
    index.append(np.arange(size) * after)
  order = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
  return tuple(order[np.ix_(*index)].ravel().tolist())


def shared_host(ids: tuple[int, ...], per_host: int) -> int:
  """How many chips of a group share a host, where it has several; 0: one."""
  counts = collections.Counter(i // per_host for i in ids)
  return max(counts.values()) if len(counts) > 1 else 0
