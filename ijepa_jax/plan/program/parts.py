"""Which parts of a step, and which of its instructions, take how long."""

import collections
import dataclasses
import heapq

from ijepa_jax.plan.chips import Chip
from ijepa_jax.plan.program import cost, hlo, lines

# Part -> a scope of its own, the first that an instruction was traced in. The
# names are those of jax.named_scope in methods/ and of modules in models/.
SCOPES = {
  'patch embedding': 'patch_embed',
  'target encoder': 'target_encoder',
  'context encoder': 'context_encoder',
  'predictor': 'Predictor',
  'other encoders': 'Encoder',
  'optimizer': 'optimizer',
  'EMA of the target': 'update_target',
  'gradient norms': 'gradient_norms',
  'loss': 'jvp(',
}
REST = 'rest: converted and moved'


@dataclasses.dataclass(frozen=True)
class Part:
  """What a part of a step, or one instruction, takes.

  Attributes:
    name: a key of SCOPES, or the instruction's.
    seconds: estimated, of all its runs.
    line: of this package, that an instruction was traced from.
    scopes: in which it was.
  """

  name: str
  seconds: float
  line: str = ''
  scopes: str = ''


def of_step(module: hlo.Module, chip: Chip) -> list[Part]:
  """The parts of a step, each fusion in the part of what it ends with."""
  totals = collections.Counter()
  for x, seconds in cost.seconds_by_instruction(module, chip).items():
    names = [part for part, scope in SCOPES.items() if scope in x.op_name]
    totals[names[0] if names else REST] += seconds
  order = [*SCOPES, REST]
  return [Part(k, totals[k]) for k in order if totals[k]]


def dearest(text: str, module: hlo.Module, chip: Chip, count: int = 10):
  """The `count` instructions that take longest: list of Part.

  Args:
    text: that `module` was read from.
  """
  source = lines.Lines(text)
  costs = cost.seconds_by_instruction(module, chip)
  return [
    Part(x.name, seconds, source.of(x), x.op_name)
    for x, seconds in heapq.nlargest(count, costs.items(), key=lambda c: c[1])
  ]
