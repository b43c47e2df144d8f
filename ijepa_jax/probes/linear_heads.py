"""The linear sweep: many linear classifiers trained as one computation.

Each head takes one of the inputs ('last', 'last4'), with or without a BatchNorm
before it, and has its own learning rate and weight decay (paper, appendix A.1).
The encoder is frozen, so one pass of features serves all of them, and heads
that see the same numbers are one matrix product.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ijepa_jax.errors import UserError
from ijepa_jax.methods import schedules
from ijepa_jax.probes import labels

MOMENTUM = 0.9
# Of BatchNorm, as PyTorch's: the share of the newest batch in what evaluation
# normalises by.
NORM_MOMENTUM, NORM_EPS = 0.1, 1e-5


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How a sweep is optimised.

  Attributes:
    optimizer: 'lars' or 'sgd', see `make_optimizer`.
    lrs, weight_decays: each combination is a head; rates are for 256 images.
    last: share of the learning rate at the end of a cosine; None: divided by 10
      at milestones.
  """

  optimizer: str
  lrs: tuple[float, ...]
  weight_decays: tuple[float, ...]
  last: float | None = None


PROTOCOLS = {
  'imagenet': Protocol('lars', (0.1, 0.01), (5e-4, 0.0)),
  'transfer': Protocol('sgd', (0.01,), (5e-4,)),
  'clevr': Protocol('sgd', (0.01,), (5e-4,), last=0.01),
}


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
  """The heads, all combinations of the first five attributes, and their course.

  Attributes:
    widths: of the inputs, {'last': D, 'last4': 4 D} or some of them.
    batch_norm, lrs, weight_decays: values that are tried.
    classes: of the labels.
    optimizer: 'lars' or 'sgd'.
    schedule: step, counted from 0 -> factor of the learning rate.
    batch_size: images a step, over all devices.
    steps_per_epoch: the last, partial batch of an epoch is left out.
    epochs: of the whole course.
  """

  widths: Mapping[str, int]
  batch_norm: tuple[bool, ...]
  lrs: tuple[float, ...]
  weight_decays: tuple[float, ...]
  classes: int
  optimizer: str
  schedule: schedules.Schedule
  batch_size: int
  steps_per_epoch: int
  epochs: int

  @property
  def heads(self) -> tuple[Head, ...]:
    """In the order of everything that is reported by head."""
    return tuple(
      Head(*values)
      for values in itertools.product(
        self.widths, self.batch_norm, self.lrs, self.weight_decays
      )
    )


def make_sweep(
  protocol: str,
  widths: Mapping[str, int],
  *,
  classes: int,
  examples: int,
  batch_size: int,
  epochs: int,
  milestones: Sequence[int] = (),
  batch_norm: tuple[bool, ...] = (True, False),
  lrs: tuple[float, ...] | None = None,
  weight_decays: tuple[float, ...] | None = None,
  devices: int = 1,
) -> HeadSweep:
  """A sweep by one of PROTOCOLS; see `HeadSweep` and tasks.Task.

  Args:
    examples: training images.
    milestones: epochs after which the learning rate is divided by 10.
    lrs, weight_decays: None: the protocol's. With two of each there are 16
      heads, as on ImageNet.
    devices: that share each batch.

  Raises:
    UserError: there is no such protocol or no head, or the sizes make no
      course.
  """
  if protocol not in PROTOCOLS:
    raise UserError(
      f'protocol is {protocol!r}: take one of {", ".join(PROTOCOLS)}.'
    )
  p = PROTOCOLS[protocol]
  lrs = tuple(p.lrs if lrs is None else lrs)
  decays = tuple(p.weight_decays if weight_decays is None else weight_decays)
  values = {
    'widths': tuple(widths),
    'batch_norm': tuple(batch_norm),
    'lrs': lrs,
    'weight_decays': decays,
  }
  for name, of in values.items():
    if not of or len(set(of)) < len(of):
      raise UserError(f'{name} are {of}: take one or more different values.')
  if not (all(x > 0 for x in lrs) and all(x >= 0 for x in decays)):
    raise UserError(
      f'lrs are {lrs} and weight_decays {decays}: take lrs above 0 and '
      'weight_decays of 0 or more.'
    )
  if epochs < 1:
    raise UserError(f'epochs is {epochs}: take 1 or more.')
  # BatchNorm knows no variance of one example.
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
  per_epoch = examples // batch_size
  if p.last is None:
    schedule = step_decay([epoch * per_epoch for epoch in milestones])
  elif milestones:
    raise UserError(
      f'milestones are {tuple(milestones)}: {protocol} has a cosine and none.'
    )
  else:
    schedule = schedules.cosine(1.0, p.last, epochs * per_epoch)
  return HeadSweep(
    widths=dict(widths),
    batch_norm=values['batch_norm'],
    lrs=lrs,
    weight_decays=decays,
    classes=classes,
    optimizer=p.optimizer,
    schedule=schedule,
    batch_size=batch_size,
    steps_per_epoch=per_epoch,
    epochs=epochs,
  )


def step_decay(boundaries: Sequence[int]) -> schedules.Schedule:
  """1, and a tenth of what it was from each of these steps on."""
  return lambda step: 0.1 ** sum(step >= at for at in boundaries)


def make_optimizer(name: str, lr, weight_decay) -> optax.GradientTransformation:
  """Of one head; both rates may be traced.

  'lars' (You et al., 2017; trust coefficient .001): biases are neither decayed
  nor adapted, as in BYOL and MAE. 'sgd': Nesterov's momentum, and everything
  is decayed, as PyTorch's.
  """
  if name == 'lars':
    kernels = {'kernel': True, 'bias': False}
    return optax.lars(
      lr,
      weight_decay=weight_decay,
      weight_decay_mask=kernels,
      trust_ratio_mask=kernels,
      momentum=MOMENTUM,
    )
  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.sgd(lr, momentum=MOMENTUM, nesterov=True),
  )


def init(sweep: HeadSweep, key) -> dict[str, Any]:
  """The state of all heads; heads with the same input start alike.

  Groups are the R = lrs x weight_decays heads that see the same numbers:

    heads/<group>/params/kernel float32 [R, D, classes], bias [R, classes]
    heads/<group>/optimizer     momentum of the same shapes
    norms/<input>/mean, var     float32 [D], running
  """
  runs = len(sweep.lrs) * len(sweep.weight_decays)
  state = {'heads': {}, 'norms': {}}
  for name, width in sweep.widths.items():
    # Not 0: LARS moves in proportion to the weights.
    kernel = 0.01 * jax.random.normal(key, (width, sweep.classes), jnp.float32)
    params = {
      'kernel': jnp.repeat(kernel[None], runs, 0),
      'bias': jnp.zeros((runs, sweep.classes), jnp.float32),
    }
    optimizer = jax.vmap(make_optimizer(sweep.optimizer, 0.0, 0.0).init)
    for norm in sweep.batch_norm:
      state['heads'][_group(name, norm)] = {
        'params': params,
        'optimizer': optimizer(params),
      }
    state['norms'][name] = {
      'mean': jnp.zeros(width, jnp.float32),
      'var': jnp.ones(width, jnp.float32),
    }
  return state


def update_heads(
  sweep: HeadSweep,
  state: dict[str, Any],
  features: Mapping[str, jax.Array],
  labels_B: jax.Array,
  step,
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
  """One step of all heads; pure, for a `jax.jit` that may make the features.

  Args:
    features: {'last': [B, D], 'last4': [B, 4 D]}, the sweep's inputs at least.
    labels_B: int32 [B] in [0, classes); the loss of any other is NaN.
    step: counted from 0.

  Returns:
    The state and {'loss': [heads], 'accuracy': [heads]} of this batch.
  """
  scale = jnp.float32(sweep.batch_size / 256 * sweep.schedule(step))
  runs = np.float32([*itertools.product(sweep.lrs, sweep.weight_decays)])
  lr_R, decay_R = runs[:, 0] * scale, runs[:, 1]
  after, metrics = {'heads': {}, 'norms': {}}, []

  def move(x_BD, one, lr, decay):
    def loss(params):
      logits_BC = _logits(params, x_BD)
      error = optax.losses.softmax_cross_entropy_with_integer_labels(
        logits_BC, labels.never_wrapped(labels_B, sweep.classes)
      ).mean()
      accuracy = labels.right(logits_BC, labels_B).mean(dtype=jnp.float32)
      return error, {'loss': error, 'accuracy': accuracy}

    grad, values = jax.grad(loss, has_aux=True)(one['params'])
    updates, optimizer = make_optimizer(sweep.optimizer, lr, decay).update(
      grad, one['optimizer'], one['params']
    )
    params = optax.apply_updates(one['params'], updates)
    return {'params': params, 'optimizer': optimizer}, values

  for name in sweep.widths:
    x_BD = features[name].astype(jnp.float32)
    mean, var = x_BD.mean(0), x_BD.var(0)
    n = len(x_BD)
    after['norms'][name] = jax.tree.map(
      lambda old, new: old + NORM_MOMENTUM * (new - old),
      state['norms'][name],
      {'mean': mean, 'var': var * n / (n - 1)},
    )
    for norm in sweep.batch_norm:
      group = _group(name, norm)
      after['heads'][group], values = jax.vmap(move, in_axes=(None, 0, 0, 0))(
        _normalise(x_BD, mean, var) if norm else x_BD,
        state['heads'][group],
        lr_R,
        decay_R,
      )
      metrics.append(values)
  return after, jax.tree.map(lambda *x: jnp.concatenate(x), *metrics)


def diverged(sweep: HeadSweep, state: dict[str, Any]) -> np.ndarray:
  """bool [heads]: those with a parameter that is no finite number."""
  groups = itertools.product(sweep.widths, sweep.batch_norm)
  found = []
  for group in itertools.starmap(_group, groups):
    params = jax.device_get(state['heads'][group]['params'])
    found.append(
      ~np.isfinite(params['kernel']).all((1, 2))
      | ~np.isfinite(params['bias']).all(1)
    )
  return np.concatenate(found)


def count_correct(
  sweep: HeadSweep,
  state: dict[str, Any],
  features: Mapping[str, jax.Array],
  labels_B: jax.Array,
) -> jax.Array:
  """How many each head gets right: int32 [heads]; a label of -1 never is.

  A head that has diverged gets none.
  """
  right = []
  for name, norm in itertools.product(sweep.widths, sweep.batch_norm):
    x_BD = features[name].astype(jnp.float32)
    if norm:
      x_BD = _normalise(x_BD, **state['norms'][name])
    params = state['heads'][_group(name, norm)]['params']
    logits_RBC = jax.vmap(_logits, in_axes=(0, None))(params, x_BD)
    right.append(labels.right(logits_RBC, labels_B).sum(-1, dtype=jnp.int32))
  return jnp.concatenate(right)


def _group(name: str, norm: bool) -> str:
  return f'{name}_bn' if norm else name


def _normalise(x_BD, mean, var):
  return (x_BD - mean) * jax.lax.rsqrt(var + NORM_EPS)


def _logits(params, x_BD):
  # In full: features that aren't centred lose their differences otherwise.
  return (
    jnp.matmul(x_BD, params['kernel'], precision='highest') + params['bias']
  )
