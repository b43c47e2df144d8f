"""Which parts of a step, and which of its instructions, take how long."""

import collections
import dataclasses
import heapq

from ijepa_jax.plan.program import hlo, lines

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


def of_step(costs: dict[hlo.Instruction, float]) -> list[Part]:
  """The parts of a step, each fusion in the part of what it ends with.

  Args:
    costs: from cost.seconds_by_instruction.
  """
  totals = collections.Counter()
  for x, seconds in costs.items():
    names = [part for part, scope in SCOPES.items() if scope in x.op_name]
    totals[names[0] if names else REST] += seconds
  order = [*SCOPES, REST]
  return [Part(k, totals[k]) for k in order if totals[k]]


def dearest(
  costs: dict[hlo.Instruction, float], text: str, count: int = 10
) -> list[Part]:
  """The `count` instructions that take longest.

  Args:
    costs: from cost.seconds_by_instruction.
    text: of the program, which has the lines.
  """
  source = lines.Lines(text)
  return [
    Part(x.name, seconds, source.of(x), x.op_name)
    for x, seconds in heapq.nlargest(count, costs.items(), key=lambda c: c[1])
  ]
