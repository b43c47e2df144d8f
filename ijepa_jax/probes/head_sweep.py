"""The linear sweep as data: which heads are trained, and how.

Each head takes one of the inputs ('last', 'last4'), with or without a BatchNorm
before it, and has its own learning rate and weight decay (paper, appendix A.1).
The arithmetic is in linear_heads.py.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from ijepa_jax.errors import UserError
from ijepa_jax.methods import schedules

BATCH_NORM = True, False  # each input is taken with it and without


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How a sweep is optimized.

  Attributes:
    name: a key of PROTOCOLS.
    optimizer: 'lars' or 'sgd', see `linear_heads.make_optimizer`.
    lrs, weight_decays: each combination is a head; rates are for 256 images.
    final: share of the learning rate at the end of a cosine; None: divided by
      10 at milestones.
  """

  name: str
  optimizer: str
  lrs: tuple[float, ...]
  weight_decays: tuple[float, ...]
  final: float | None = None


PROTOCOLS = {
  protocol.name: protocol
  for protocol in (
    Protocol('imagenet', 'lars', (0.1, 0.01), (5e-4, 0.0)),
    Protocol('transfer', 'sgd', (0.01,), (5e-4,)),
    Protocol('clevr', 'sgd', (0.01,), (5e-4,), final=0.01),
  )
}


def get_protocol(
  name: str,
  lrs: Sequence[float] | None = None,
  weight_decays: Sequence[float] | None = None,
) -> Protocol:
  """Returns one of PROTOCOLS, with other rates where they are given.

  With two inputs and two of each rate there are 16 heads, as on ImageNet.

  Raises:
    UserError: there is no such protocol.
  """
  if name not in PROTOCOLS:
    raise UserError(
      f'protocol is {name!r}: take one of {", ".join(PROTOCOLS)}.'
    )
  rates = {'lrs': lrs, 'weight_decays': weight_decays}
  rates = {k: tuple(v) for k, v in rates.items() if v is not None}
  return dataclasses.replace(PROTOCOLS[name], **rates)


@dataclasses.dataclass(frozen=True)
class Head:
  """One classifier; `lr` is for 256 images."""

  input: str
  batch_norm: bool
  lr: float
  weight_decay: float

  @property
  def name(self) -> str:
    norm = ' bn' if self.batch_norm else ''
    return f'{self.input}{norm} lr={self.lr:g} wd={self.weight_decay:g}'


@dataclasses.dataclass(frozen=True, eq=False)
class HeadSweep:
  """Heads that are trained together, with one schedule.

  There is a head for each combination of input, BatchNorm or none, learning
  rate and weight decay.

  Attributes:
    widths: of the inputs, {'last': D, 'last4': 4 D} or one of them.
    lrs, weight_decays: values that are tried.
    classes: of the labels.
    optimizer: 'lars' or 'sgd'.
    schedule: step, counted from 0 -> factor of the learning rate.
    batch_size: images a step, over all devices.
    steps_per_epoch: the last, partial batch of an epoch is left out.
    epochs: of the whole training.
  """

  widths: Mapping[str, int]
  lrs: tuple[float, ...]
  weight_decays: tuple[float, ...]
  classes: int
  optimizer: str
  schedule: schedules.Schedule
  batch_size: int
  steps_per_epoch: int
  epochs: int

  @property
  def groups(self) -> tuple[tuple[str, bool], ...]:
    """(input, BatchNorm or none); the heads of a group see the same numbers."""
    return tuple(itertools.product(self.widths, BATCH_NORM))

  @property
  def rates(self) -> tuple[tuple[float, float], ...]:
    """(learning rate, weight decay) of the heads of each group."""
    return tuple(itertools.product(self.lrs, self.weight_decays))

  @property
  def heads(self) -> tuple[Head, ...]:
    """All heads, in the order of every result."""
    pairs = itertools.product(self.groups, self.rates)
    return tuple(Head(*group, *rates) for group, rates in pairs)


def make_sweep(
  protocol: Protocol,
  widths: Mapping[str, int],
  *,
  classes: int,
  examples: int,
  batch_size: int,
  epochs: int,
  milestones: Sequence[int] = (),
  devices: int = 1,
) -> HeadSweep:
  """Makes the sweep of a protocol; see `HeadSweep` and tasks.Task.

  Args:
    protocol: see `get_protocol`.
    examples: training images.
    milestones: epochs after which the learning rate is divided by 10.
    devices: that share each batch.

  Raises:
    UserError: there is no head, or the sizes don't fit together.
  """
  _check_heads(widths, protocol)
  if epochs < 1:
    raise UserError(f'epochs is {epochs}: take 1 or more.')
  # BatchNorm has no variance of one example.
  if not 2 <= batch_size <= examples:
    raise UserError(
      f'linear.batch_size is {batch_size}: take one from 2 to the {examples} '
      'training examples.'
    )
  if batch_size % devices:
    raise UserError(
      f'linear.batch_size is {batch_size}: take a multiple of the {devices} '
      'devices.'
    )
  steps = examples // batch_size
  return HeadSweep(
    widths=dict(widths),
    lrs=protocol.lrs,
    weight_decays=protocol.weight_decays,
    classes=classes,
    optimizer=protocol.optimizer,
    schedule=_make_schedule(protocol, milestones, steps, epochs),
    batch_size=batch_size,
    steps_per_epoch=steps,
    epochs=epochs,
  )


def _check_heads(widths, protocol) -> None:
  lrs, decays = protocol.lrs, protocol.weight_decays
  for name, values in {
    'widths': tuple(widths),
    'lrs': lrs,
    'weight_decays': decays,
  }.items():
    if not values or len(set(values)) < len(values):
      raise UserError(
        f'{name} are {values}: take one or more different values.'
      )
  if not (all(x > 0 for x in lrs) and all(x >= 0 for x in decays)):
    raise UserError(
      f'lrs are {lrs} and weight_decays {decays}: take lrs above 0 and '
      'weight_decays of 0 or more.'
    )


def _make_schedule(protocol, milestones, steps_per_epoch, epochs):
  """Returns step -> factor of the learning rate."""
  if protocol.final is not None:
    if milestones:
      raise UserError(
        f'milestones are {tuple(milestones)}: {protocol.name} has a cosine and '
        'none.'
      )
    return schedules.cosine(1.0, protocol.final, epochs * steps_per_epoch)
  boundaries = [epoch * steps_per_epoch for epoch in milestones]
  return lambda step: 0.1 ** sum(step >= at for at in boundaries)
