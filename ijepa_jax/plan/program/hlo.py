"""Reads the text of a compiled program: computations, instructions, loops.

XLA's text changes a little from version to version and from chip to chip. Only
what is asked for here is read: names, shapes, operands, which computation calls
which, and how often loops run. `jax.stages.Compiled.as_text()` gives the text.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable

# Bits of what is not named with its bits, such as f32 and u8.
_BITS = {'pred': 8, 'token': 0, 'opaque': 0, 'c64': 64, 'c128': 128}
_NAME = r'%?([\w.\-]+)'
_COMPUTATION = re.compile(rf'(ENTRY )?{_NAME} \(.*\) -> .* {{$')
_INSTRUCTION = re.compile(rf'(ROOT )?{_NAME} = ')
_SHAPE = re.compile(r'\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]')
_METADATA = re.compile(r'metadata=\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\}')
# Of a Pallas kernel, over several lines.
_MULTILINE = re.compile(r'kernel_metadata=\{\n[^{}]*\}')
_CALLED = re.compile(
  r'\b(?:calls|to_apply|body|condition|true_computation|false_computation)='
  rf'{_NAME}'
)
_CALLED_LIST = re.compile(
  r'\b(?:branch_computations|called_computations)=\{([^}]*)\}'
)
_TRIPS = re.compile(r'known_trip_count\W+n\W+(\d+)')


@dataclasses.dataclass(frozen=True)
class Shape:
  """Of an array."""

  dtype: str
  dims: tuple[int, ...]

  @property
  def size(self) -> int:
    """Elements."""
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    bits = _BITS.get(self.dtype)
    if bits is None:
      bits = int(re.match(r'[a-z]+(\d+)', self.dtype)[1])
    return self.size * bits / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of a computation.

  Attributes:
    name: without its %.
    opcode: 'fusion', 'while', 'all-gather-start', ...
    shapes: of the arrays that it makes; several where it makes a tuple.
    operands: names of instructions of the same computation.
    literal: what is between the parentheses, for constants and parameters.
    attributes: the rest of the line, without its metadata.
    metadata: what the compiler remembers of where it comes from.
    root: whether it is what the computation returns.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  literal: str
  attributes: str
  metadata: str
  root: bool

  @property
  def op_name(self) -> str:
    """The scopes in which it was traced: 'jit(train_step)/jvp(Encoder)/...'."""
    match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.metadata)
    return match[1] if match else ''

  @property
  def bytes(self) -> float:
    return sum(s.bytes for s in self.shapes)

  @property
  def called(self) -> tuple[str, ...]:
    """Names of the computations that it runs."""
    names = _CALLED.findall(self.attributes)
    for listing in _CALLED_LIST.findall(self.attributes):
      names += re.findall(_NAME, listing)
    return tuple(names)

  def attribute(self, name: str) -> str | None:
    """The computation that body=, condition=, ... names."""
    match = re.search(rf'\b{name}={_NAME}', self.attributes)
    return match and match[1]

  def dims(self, name: str) -> tuple[int, ...]:
    """The numbers of an attribute such as lhs_contracting_dims={1}."""
    match = re.search(
      rf'\b{name}\W{{1,4}}[{{\[]([\d,"\s]*)[}}\]]', self.attributes
    )
    return tuple(map(int, re.findall(r'\d+', match[1]))) if match else ()


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
  """A program.

  Attributes:
    computations: by name; the instructions of each by name, in their order.
    entry: the name of the one that runs first.
    chips: that the program is for.
  """

  computations: dict[str, Computation]
  entry: str
  chips: int

  def trips(self, loop: Instruction) -> int | None:
    """How often the body of a `while` runs; None: the text doesn't say."""
    if match := _TRIPS.search(loop.attributes):
      return int(match[1])
    limits = self._constants(loop.attribute('condition'))
    return limits.pop() if len(limits) == 1 else None

  def uncounted_loops(self) -> int:
    """How many loops there are whose `trips` are unknown."""
    return sum(
      x.opcode == 'while' and self.trips(x) is None
      for computation in self.computations.values()
      for x in computation.values()
    )

  def _constants(self, name: str) -> set[int]:
    """The integers, above 0, of a computation and of those it calls."""
    numbers = set()
    for x in self.computations.get(name, {}).values():
      if x.opcode == 'constant' and re.fullmatch(r'\d+', x.literal):
        numbers.add(int(x.literal))
      for called in x.called:
        numbers |= self._constants(called)
    return numbers - {0}

  def total(
    self, cost: Callable[[Computation], collections.Counter]
  ) -> collections.Counter:
    """Sums the cost of every computation as often as it runs.

    The body of a loop runs as often as `trips` says, once where it is unknown;
    of the branches of a conditional the dearest runs. What a fusion or a
    reduction calls is a part of it, and not counted besides.

    Args:
      cost: the instructions of a computation -> counts by kind.
    """
    known = {}

    def of(name):
      if name not in known:
        computation = self.computations.get(name, {})
        known[name] = collections.Counter(cost(computation))
        for x in computation.values():
          known[name].update(nested(x))
      return known[name]

    def nested(x):
      if x.opcode == 'while':
        parts = [of(x.attribute('body')), of(x.attribute('condition'))]
        trips = self.trips(x) or 1
        return {
          k: trips * sum(p[k] for p in parts) for k in set().union(*parts)
        }
      parts = [of(name) for name in x.called]
      if x.opcode == 'conditional' and parts:
        return max(parts, key=lambda p: sum(p.values()))
      return parts[0] if x.opcode == 'call' else {}

    return of(self.entry)


def parse(text: str) -> Module:
  """Reads a program.

  Raises:
    ValueError: it has no ENTRY: this is no such text.
  """
  header = text[: text.find('\n\n')]
  partitions = re.search(r'num_partitions=(\d+)', header)
  replicas = re.search(r'replica_count=(\d+)', header)
  computations, entry, computation = {}, None, None
  for line in _MULTILINE.sub(_joined, text).splitlines():
    line = line.strip()
    if computation is None:
      if match := _COMPUTATION.match(line):
        computation = computations[match[2]] = {}
        entry = match[2] if match[1] else entry
    elif line.startswith('}'):
      computation = None
    elif match := _INSTRUCTION.match(line):
      x = _instruction(match, line[match.end() :])
      computation[x.name] = x
  if entry is None:
    raise ValueError('This is no text of an HLO module: it has no ENTRY.')
  chips = math.prod(int(m[1]) for m in (partitions, replicas) if m)
  return Module(computations, entry, chips)


def _joined(match) -> str:
  return match[0].replace('\n', '')


def _instruction(match, text: str) -> Instruction:
  """From what is right of the equals sign."""
  kind, rest = _split_type(text)
  opcode, _, rest = rest.partition('(')
  end = _closing(rest)
  inside, attributes = rest[:end], rest[end + 1 :]
  return Instruction(
    name=match[2],
    opcode=opcode.strip(),
    shapes=tuple(
      Shape(dtype, tuple(int(n) for n in dims.split(',') if n))
      for dtype, dims in _SHAPE.findall(_without_layouts(kind))
    ),
    operands=_operands(inside),
    literal=inside,
    attributes=_METADATA.sub('', attributes),
    metadata=''.join(_METADATA.findall(attributes)),
    root=bool(match[1]),
  )


def _split_type(text: str) -> tuple[str, str]:
  """The type of an instruction, and what follows."""
  tuples = text.startswith('(')
  end = 2 + _closing(text[1:]) if tuples else text.find(' ')
  return text[:end], text[end:].lstrip()


def _closing(text: str) -> int:
  """Where the parenthesis that is open before `text` is closed."""
  depth = 1
  for match in re.finditer(r'[()]', text):
    depth += 1 if match[0] == '(' else -1
    if not depth:
      return match.start()
  return len(text)


def _without_layouts(text: str) -> str:
  return re.sub(r'\{[^{}]*\}', '', text)


def _operands(text: str) -> tuple[str, ...]:
  """The last word of each, some versions write its type before it."""
  text = _without_layouts(re.sub(r'/\*.*?\*/', '', text))
  text = re.sub(r'\[[^\]]*\]', '', text).replace('(', ' ').replace(')', ' ')
  words = [part.split() for part in text.split(',')]
  return tuple(w[-1].lstrip('%') for w in words if w)
