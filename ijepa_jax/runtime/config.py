"""The config on disk, and the checks of its numbers and of its void knobs."""

import json
import math
import numbers
from collections.abc import Iterator, Mapping

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files


def read_run_config(workdir) -> ConfigDict:
  """The config that a run was started with.

  Raises:
    UserError: there is none.
  """
  path = files.resolve(workdir) / 'config.json'
  try:
    config = json.loads(path.read_text())
    if not {'model', 'data'} <= set(config):
      raise UserError('it has no model or no data')
    return ConfigDict(config)
  except (OSError, ValueError, TypeError) as error:
    raise UserError(
      f'{workdir} is no training workdir, its config.json can not be read or '
      f'is not of a run of pre-training ({type(error).__name__}): give the '
      '--workdir of a run, or a file that holds an I-JEPA.'
    ) from error


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
  'profile': {'steps': AT_LEAST_0},
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


def check_numbers(config: Mapping) -> None:
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
      check_section(section, name, ranges)


def check_section(config, name: str, ranges: dict) -> None:
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


def write_config(workdir, config_json: str) -> list[str]:
  """Writes config.json, whole or not at all.

  Returns:
    What differs from the one that was there: ['total_steps: 20, was 10'].
  """
  path = epath.Path(workdir) / 'config.json'
  new, old = json.loads(config_json), read_config(workdir)
  files.atomic_write_text(path, json.dumps(new, indent=2))
  new, old = dict(_flat(new)), dict(_flat(old))
  return [
    f'{key}: {value}, was {old[key]}'
    for key, value in new.items()
    if key in old and old[key] != value
  ]


def read_config(workdir) -> dict:
  """What config.json holds; {} where there is none, or a damaged one."""
  path = epath.Path(workdir) / 'config.json'
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _flat(tree: dict, prefix: str = ''):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


_PARTITIONS = 'rasterized', 'block', 'random'  # samplers without blocks
_BLOCKS = {
  'num_contexts': 1,
  'num_targets': 4,
  'context_scale': (0.85, 1.0),
  'context_aspect': (1.0, 1.0),
  'target_scale': (0.15, 0.2),
  'target_aspect': (0.75, 1.5),
  'min_keep': 10,
  'allow_overlap': False,
  'group': 128,
}
# (section, knob, its values) -> knobs that mean nothing then, with the values
# that they have in configs/base.py. Of a training run.
REFUSED = {
  ('data', 'source', ('scenes',)): {
    'data': {'path': '', 'split': 'train'},
  },
  ('data', 'source', ('folder', 'tfds', 'arrayrecord', 'huggingface')): {
    'data': {'flavour': 'scenes', 'count': 20_000},
  },
}
PASSED_OVER = {
  ('data', 'source', ('scenes',)): {
    'data': {'max_bad_share': 0.01, 'max_pixels': 89_478_485},
    'health': {'split': ''},
    'probe': {'split': ''},
  },
  ('data', 'from_manifest', (True,)): {
    'data': {
      'channels': 3,
      'mean': (0.485, 0.456, 0.406),
      'std': (0.229, 0.224, 0.225),
    },
  },
  ('mask', 'sampler', _PARTITIONS): {'mask': _BLOCKS},
  ('mask', 'sampler', ('release', 'uniform', 'rasterized')): {
    'mask': {'fraction': 0.6},
  },
  ('checkpoint', 'keep_best', ('',)): {'checkpoint': {'keep_best_mode': 'max'}},
  ('health', 'every_steps', (0,)): {'health': {'images': 256, 'split': ''}},
  ('probe', 'every_steps', (0,)): {
    'probe': {'train_count': 5000, 'test_count': 2000, 'split': ''},
  },
}


def check_void(config) -> None:
  """Tells of knobs that were set and mean nothing beside others.

  Args:
    config: of a training run.

  Raises:
    UserError: what was asked for is something else than what would be done;
      the other knobs are named in one line of the log.
  """
  for (section, knob, values), void in REFUSED.items():
    if config[section][knob] in values:
      for name, value in _set(config, void).items():
        raise UserError(
          f'{name} is {value!r}, and nothing for {section}.{knob} = '
          f'{config[section][knob]!r}: change the one or the other.'
        )
  for (section, knob, values), void in PASSED_OVER.items():
    names = _set(config, void)
    if config[section][knob] in values and names:
      logging.warning(
        'Passed over with %s.%s = %r: %s.',
        section,
        knob,
        config[section][knob],
        ', '.join(f'{name} = {value!r}' for name, value in names.items()),
      )


def _set(config, void) -> dict:
  """Knobs among `void` that have another value: full name -> value."""

  def plain(value):
    return tuple(value) if isinstance(value, list) else value

  return {
    f'{section}.{knob}': plain(config[section][knob])
    for section, knobs in void.items()
    for knob, default in knobs.items()
    if plain(config[section][knob]) != default
  }
