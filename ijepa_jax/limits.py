"""Which numbers a config may have."""

import math
import numbers
from collections.abc import Iterator, Mapping

from ijepa_jax.errors import UserError

AT_LEAST_0, AT_LEAST_1 = (0, math.inf), (1, math.inf)
STEPS = (1, 2**31 - 1)  # steps are counted in int32
SHARE = (0, 1)
# What must not vanish in float32, and what must stay below 1 there.
ABOVE_0, BELOW_1 = (1e-30, math.inf), (0, 0.9999999)
_GREATEST = 3.4e38  # of float32, in which is computed: 1e39 is infinite there


def each(limits: tuple[float, float], *knobs: str) -> dict:
  """The same limits for several knobs."""
  return dict.fromkeys(knobs, limits)


# Section of the config -> knob -> (least, greatest). What depends on several
# knobs, on the devices or on the images is refused where it is used.
RANGES = {
  '': {
    'seed': (0, 2**32 - 1),
    'total_steps': STEPS,
    'step': AT_LEAST_0,
    **each(AT_LEAST_1, 'batch_size', 'accumulate', 'image_size'),
  },
  'optim': {
    **each(AT_LEAST_0, 'start_lr', 'peak_lr', 'final_lr'),
    **each(AT_LEAST_0, 'weight_decay', 'final_weight_decay', 'clip_norm'),
    'warmup_steps': (0, STEPS[1]),
    # At 1 the moments' bias would be divided by zero.
    **each(BELOW_1, 'b1', 'b2'),
    'eps': ABOVE_0,
    'schedule_scale': (1e-6, math.inf),
  },
  'ema': each(SHARE, 'first', 'last'),
  'data': {
    **each(AT_LEAST_1, 'count', 'channels', 'prefetch', 'image_size'),
    **each(AT_LEAST_0, 'workers', 'max_pixels'),
    **each(SHARE, 'max_bad_share', 'grey', 'blur'),
    'jitter': (0, 1.25),
  },
  'checkpoint': {
    **each(AT_LEAST_0, 'every_steps', 'every_minutes', 'keep_every'),
    'keep_last': AT_LEAST_1,
  },
  # Of fewer images no rank and no probe is left.
  'health': {'every_steps': AT_LEAST_0, 'images': (2, math.inf)},
  'probe': {
    'every_steps': AT_LEAST_0,
    'train_count': (5, math.inf),
    'test_count': (2, math.inf),
  },
  'model': {
    **each(AT_LEAST_1, 'width', 'depth', 'heads', 'mlp_dim', 'patch_size'),
    **each(AT_LEAST_1, 'predictor_width', 'predictor_depth', 'unroll'),
    'predictor_heads': AT_LEAST_1,
  },
  'knn': {'ks': AT_LEAST_1, 'temperatures': ABOVE_0},
  'logistic': {'per_class': AT_LEAST_0, 'share': SHARE, 'l2': AT_LEAST_0},
  'linear': {
    **each(AT_LEAST_0, 'batch_size', 'epochs', 'weight_decays'),
    'lrs': ABOVE_0,
  },
  'finetune': {
    **each(AT_LEAST_1, 'epochs', 'batch_size'),
    **each(AT_LEAST_0, 'lr', 'final_lr', 'weight_decay', 'warmup_epochs'),
    **each(AT_LEAST_0, 'mixup', 'cutmix', 'checkpoint_steps'),
    **each(SHARE, 'layer_decay', 'smoothing'),
    'randaugment': (0, 10),
    'drop_path': (0, 0.99),
  },
}


def check_all(config: Mapping) -> None:
  """Refuses a config that holds a number which can't be.

  Args:
    config: of any job; what RANGES does not name has to be finite only.

  Raises:
    UserError: one sentence with the knob, its value and its limits.
  """
  for knob, value in numbers_of(config):
    if not abs(value) <= _GREATEST:
      raise UserError(f'{knob} is {value}: take a finite number.')
  for name, ranges in RANGES.items():
    section = config.get(name) if name else config
    if section is not None:
      check(section, name, ranges)


def check(config, name: str, ranges: dict) -> None:
  """Refuses numbers of `config`, which is called `name`, that can't be.

  Args:
    ranges: knob -> (least, greatest), of each where it holds several numbers;
      one that is None is left to others.

  Raises:
    UserError: one sentence with the value and the limit.
  """
  for knob, (least, greatest) in ranges.items():
    value = config.get(knob)
    several = value if isinstance(value, (tuple, list)) else (value,)
    if not all(x is None or least <= x <= greatest for x in several):
      full = f'{name}.{knob}' if name else knob
      upper = '' if greatest == math.inf else f' and up to {greatest}'
      raise UserError(f'{full} is {value}: take {least} or more{upper}.')


def numbers_of(value, name: str = '') -> Iterator[tuple[str, float]]:
  """Every number below a section, with the name of its knob."""
  if isinstance(value, Mapping) or hasattr(value, 'items'):
    for knob, inner in value.items():
      yield from numbers_of(inner, f'{name}.{knob}' if name else knob)
  elif isinstance(value, (tuple, list)):
    for inner in value:
      yield from numbers_of(inner, name)
  elif isinstance(value, numbers.Number):
    yield name, value
