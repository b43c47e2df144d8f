"""What chips send to one another in a step."""

import collections
import dataclasses
import math
import re

import numpy as np

from ijepa_jax.plan.chips import Chip
from ijepa_jax.plan.program import hlo

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
  # What TPU slices hand to their hosts, for the network between them.
  'between-slices': lambda n: 1,
}


@dataclasses.dataclass(frozen=True)
class Collective:
  """One run of a collective.

  Attributes:
    kind: a key of SENT.
    bytes: that a chip sends.
    group: the first group of chips, by their place in the mesh.
    beside: whether the program goes on meanwhile.
  """

  kind: str
  bytes: float
  group: tuple[int, ...]
  beside: bool


def kind_of(x: hlo.Instruction) -> str | None:
  """The key of SENT; None: no collective, or the end of one counted before."""
  kind = x.opcode.removesuffix('-start')
  if kind == 'send' and 'megascale' in x.attributes:
    kind = 'between-slices'
  return kind if kind in SENT else None


def bytes_by_kind(module: hlo.Module) -> dict[str, float]:
  """kind of collective -> bytes that a chip sends in a step."""
  totals = module.total(
    lambda computation: _sum(
      (c.kind, c.bytes) for c in in_computation(computation, module)
    )
  )
  return {k: float(v) for k, v in sorted(totals.items())}


def seconds(module: hlo.Module, chip: Chip, per_host: int) -> dict[str, float]:
  """How long chips send to one another in a step, at the best.

  Returns:
    True: by collectives that run beside what is computed; False: by those that
    the program waits for.
  """

  def rate(c):
    if c.kind == 'between-slices':
      return chip.network
    shared = shared_host(c.group, per_host)
    return min(chip.link, shared * chip.network) if shared else chip.link

  return module.total(
    lambda computation: _sum(
      (c.beside, c.bytes / rate(c)) for c in in_computation(computation, module)
    )
  )


def _sum(pairs) -> collections.Counter:
  total = collections.Counter()
  for key, value in pairs:
    total[key] += value
  return total


def in_computation(
  computation: hlo.Computation, module: hlo.Module
) -> list[Collective]:
  """What a computation runs itself, in fusions too, but not in its loops."""
  return [
    _collective(x, around, computation, module.chips)
    for x, around in _with_fusions(computation, module)
    if kind_of(x) and not (_is_part(x) and not _is_start(around))
  ]


def _is_part(x: hlo.Instruction) -> bool:
  """Whether an instruction is a part of an asynchronous collective of TPUs.

  Such a collective is cut into fusions that start it, go on with it beside what
  they compute, and end it. The part that starts it is counted. Parts can't be
  put together by their channel: collectives of equal blocks share one.
  """
  return '"async_collective_fusion_config"' in x.attributes


def _is_start(around: hlo.Computation) -> bool:
  """Whether a fusion, of this computation, starts such a collective."""
  return any('"AsyncCollectiveStart"' in y.attributes for y in around.values())


def _with_fusions(computation, module):
  """Yields the instructions, each with the computation that it is in."""
  for x in computation.values():
    yield x, computation
    if x.opcode in ('fusion', 'async-start'):
      for name in x.called:
        yield from _with_fusions(module.computations.get(name, {}), module)


def _collective(x, around, computation, chips: int) -> Collective:
  """Describes a collective.

  Args:
    around: the computation that it is in.
    computation: the one that runs, `around` itself or what calls it.
    chips: of the program.
  """
  kind, ids = kind_of(x), group(x, chips)
  results = {x.name}
  for y in around.values():
    if (
      y.opcode in ('get-tuple-element', 'bitcast') and y.operands[0] in results
    ):
      results.add(y.name)
  sliced = any(
    y.opcode == 'dynamic-slice' and y.operands[0] in results
    for y in around.values()
  )
  if kind == 'all-reduce' and sliced and around is not computation:
    kind = 'reduce-scatter'  # as TPUs run it
  n = len(ids)
  sent = sum(around[k].bytes for k in x.operands if k in around) * SENT[kind](n)
  beside = _is_part(x) or x.opcode.endswith('-start')
  return Collective(kind, sent, ids, beside)


# "[4,2]T(1,0)", and "mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}".
_TILES = r'\[([\d,]+)\](?:T\(([\d,]+)\))?'
_IDS = rf'(?:,? *device_ids=\((?:{_TILES}|([\d,]+))\))?'
_MESH = re.compile(rf'=mesh\[([^\]]*)\]{_IDS} *\{{([^}}]*)\}}')


def group(x: hlo.Instruction, chips: int) -> tuple[int, ...]:
  """The first group of chips, by their place in the mesh, of a collective.

  Raises:
    ValueError: the groups are written in a way that is not known here.
  """
  _, _, text = x.attributes.partition('replica_groups')
  if not text or text.startswith('={}'):
    return tuple(range(chips))
  if match := re.match(r'=\{\{([\d,]+)\}', text):
    return _numbers(match[1])
  if match := re.match(rf'=\[([\d,]+)\]<={_TILES}', text):
    shape, dims, axes = match.groups()
    return tuple(_order(dims, axes).reshape(_numbers(shape))[0].tolist())
  if match := _MESH.match(text):
    mesh, dims, axes, ids, names = match.groups()
    sizes = {k: int(n) for k, n in re.findall(r"'([^']+)'=(\d+)", mesh)}
    if ids:
      order = np.array(_numbers(ids))
    else:
      order = _order(dims or str(math.prod(sizes.values())), axes)
    return _along(order.reshape(tuple(sizes.values())), list(sizes), names)
  raise ValueError(f'These groups of chips are not understood: {text[:200]}')


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(map(int, text.split(',')))


def _order(dims: str, axes: str | None) -> np.ndarray:
  """The numbers of '2,4', transposed by '1,0'."""
  shape = _numbers(dims)
  order = np.arange(math.prod(shape)).reshape(shape)
  return order.transpose(_numbers(axes)) if axes else order


def _along(order: np.ndarray, axes: list[str], names: str) -> tuple[int, ...]:
  """The first along "'b'", or along a part of it, "'b':(2)2"."""
  index = [np.arange(1)] * order.ndim
  for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", names):
    axis = axes.index(name)
    total = order.shape[axis]
    before, size = (int(before), int(size)) if size else (1, total)
    index[axis] = np.arange(size) * (total // before // size)
  return tuple(order[np.ix_(*index)].ravel().tolist())


def shared_host(ids: tuple[int, ...], per_host: int) -> int:
  """How many chips of a group share a host, where it has several; 0: one."""
  counts = collections.Counter(i // per_host for i in ids)
  return max(counts.values()) if len(counts) > 1 else 0
