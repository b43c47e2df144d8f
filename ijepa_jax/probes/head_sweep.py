"""The sweeps as data: which heads are trained, and how.

A linear head takes one of the inputs ('last', 'last4'), with or without a
BatchNorm before it, and has its own learning rate and weight decay (paper,
appendix A.1); an attentive one takes all tokens (V-JEPA, Bardes et al., 2024).
The arithmetic is in linear_heads.py and attentive_heads.py.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ijepa_jax.errors import UserError
from ijepa_jax.methods.optim import schedules

BATCH_NORM = True, False  # each input is taken with it and without


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How a sweep is optimized.

  Attributes:
    name: a key of PROTOCOLS.
    optimizer: 'lars' or 'sgd', see `linear_heads.make_optimizer`, or 'adamw'.
    lrs, weight_decays: each combination is a head; the rates of linear heads
      are for 256 images.
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
    # No paper's: of a few images and of many, of small models and of large.
    Protocol('folder', 'sgd', (1.0, 0.3, 0.1, 0.03, 0.01), (5e-4,), final=0.0),
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
  """One classifier; `lr` of a linear one is for 256 images."""

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
  """Linear heads that are trained together, with one schedule.

  There is a head for each combination of input, BatchNorm or none, learning
  rate and weight decay.

  Attributes:
    protocol: see `get_protocol`.
    widths: of the inputs, {'last': D, 'last4': 4 D} or one of them.
    classes: of the labels.
    examples: training images; the last, partial batch of an epoch is left out.
    batch_size: images a step, over all devices.
    epochs: of the whole training.
    milestones: epochs after which the learning rate is divided by 10.

  Raises:
    UserError: there is no head, or the sizes don't fit together.
  """

  protocol: Protocol
  widths: Mapping[str, int]
  classes: int
  examples: int
  batch_size: int
  epochs: int
  milestones: Sequence[int] = ()

  kind: ClassVar[str] = 'linear'  # names the job, its knobs and the heads
  input_axes: ClassVar[str] = 'N'  # of an input, before its width
  precedent: ClassVar[str] = ', as in the paper'  # of choosing on test images

  def __post_init__(self):
    p = self.protocol
    axes = {
      'widths': tuple(self.widths),
      'lrs': p.lrs,
      'weight_decays': p.weight_decays,
    }
    for name, values in axes.items():
      if not values or len(set(values)) < len(values):
        raise UserError(
          f'{name} are {values}: take one or more different values.'
        )
    if not (all(x > 0 for x in p.lrs) and all(x >= 0 for x in p.weight_decays)):
      raise UserError(
        f'lrs are {p.lrs} and weight_decays {p.weight_decays}: take lrs above '
        '0 and weight_decays of 0 or more.'
      )
    if self.epochs < 1:
      raise UserError(f'epochs is {self.epochs}: take 1 or more.')
    # BatchNorm has no variance of one example.
    if not 2 <= self.batch_size <= self.examples:
      raise UserError(
        f'{self.kind}.batch_size is {self.batch_size}: take one from 2 to the '
        f'{self.examples} training examples.'
      )
    if p.final is not None and self.milestones:
      raise UserError(
        f'milestones are {tuple(self.milestones)}: {p.name} has a cosine and '
        'none.'
      )

  @property
  def steps_per_epoch(self) -> int:
    return self.examples // self.batch_size

  @property
  def groups(self) -> tuple[tuple[str, bool], ...]:
    """(input, BatchNorm or none); the heads of a group see the same numbers."""
    return tuple(itertools.product(self.widths, BATCH_NORM))

  @property
  def rates(self) -> tuple[tuple[float, float], ...]:
    """(learning rate, weight decay) of the heads of each group."""
    p = self.protocol
    return tuple(itertools.product(p.lrs, p.weight_decays))

  @property
  def heads(self) -> tuple[Head, ...]:
    """All heads, in the order of every result."""
    pairs = itertools.product(self.groups, self.rates)
    return tuple(Head(*group, *rates) for group, rates in pairs)

  def all_diverged(self) -> UserError:
    """The mistake where no head is left."""
    return UserError(
      f'All of the {len(self.heads)} {self.kind} heads have diverged: take '
      'lower lrs.'
    )

  def schedule(self, step):
    """Returns the factor of the learning rate at a step, counted from 0."""
    steps, final = self.steps_per_epoch, self.protocol.final
    if final is not None:
      return schedules.cosine(1.0, final, self.epochs * steps)(step)
    return 0.1 ** sum(step >= epoch * steps for epoch in self.milestones)


@dataclasses.dataclass(frozen=True, eq=False)
class AttentiveSweep(HeadSweep):
  """Attentive probes that are trained together, with one schedule.

  There is a probe for each learning rate and weight decay, and `widths` are
  {'tokens': D}.

  Attributes:
    attention_heads: of the pooling, which share the D features.

  Raises:
    UserError: see HeadSweep; or the heads don't divide D.
  """

  attention_heads: int = 1

  kind: ClassVar[str] = 'attentive'
  input_axes: ClassVar[str] = 'NT'
  precedent: ClassVar[str] = ''

  def __post_init__(self):
    super().__post_init__()
    width, heads = self.widths['tokens'], self.attention_heads
    if heads < 1 or width % heads:
      raise UserError(
        f'attentive.heads is {heads}: take a divisor of the {width} features '
        'of a token.'
      )

  @property
  def groups(self) -> tuple[tuple[str, bool], ...]:
    """One: all probes see the same tokens."""
    return ((self.kind, False),)


def report(sweep: HeadSweep, accuracies: Sequence[float]) -> dict[str, Any]:
  """Summarizes a sweep: every head, the best, and the best of each input.

  The best are chosen on the test images, as the paper's linear heads are.

  Args:
    accuracies: one for each head; NaN: it has diverged.

  Returns:
    {'chosen': a sentence on how, 'heads': {name: accuracy, or None of one that
    has diverged}, 'best': {'head': name, 'accuracy': ...}, 'best_last': ...,
    'best_last4': ...}; of equals the first; without the best of an input if all
    its heads have diverged.

  Raises:
    UserError: all heads have diverged.
  """
  scores = dict(zip(sweep.heads, map(float, accuracies), strict=True))
  finite = [head for head, score in scores.items() if np.isfinite(score)]
  if not finite:
    raise sweep.all_diverged()
  candidates = {'best': finite} | {
    f'best_{name}': [head for head in finite if head.input == name]
    for name in sweep.widths
  }
  best = {
    key: max(heads, key=scores.get)
    for key, heads in candidates.items()
    if heads
  }
  return {
    'chosen': _selection_note(
      sweep,
      {k.replace('best', sweep.kind): len(v) for k, v in candidates.items()},
    ),
    'heads': {
      head.name: score if head in finite else None
      for head, score in scores.items()
    },
    **{
      key: {'head': head.name, 'accuracy': scores[head]}
      for key, head in best.items()
    },
  }


def _selection_note(sweep: HeadSweep, counts: Mapping[str, int]) -> str:
  """How the best were chosen, as a sentence; '' if each is the only one."""
  if max(counts.values()) < 2:
    return ''
  parts = [f'{k} is the best of {n} heads' for k, n in counts.items() if n]
  return f'{", ".join(parts)}: chosen on the test images{sweep.precedent}.'
