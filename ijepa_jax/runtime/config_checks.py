"""Checks of a config: limits of its numbers, and knobs without effect."""

import math
import numbers
from collections.abc import Iterator, Mapping

from absl import logging

from ijepa_jax.errors import UserError

AT_LEAST_0, AT_LEAST_1 = (0, math.inf), (1, math.inf)
STEPS = (1, 2**31 - 1)  # steps are counted in int32
SHARE = (0, 1)
# Above 0 and below 1 in float32 too.
ABOVE_0, BELOW_1 = (1e-30, math.inf), (0, 0.9999999)
_GREATEST = 3.4e38  # in float32 1e39 is infinite


def each(limits: tuple[float, float], *knobs: str) -> dict:
  """Returns the same limits for several knobs."""
  return dict.fromkeys(knobs, limits)


# Section of the config -> knob -> (least, greatest). Limits that depend on
# several knobs, on the devices or on the images are checked elsewhere.
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
    # At 1 the bias correction of the moments would divide by zero.
    **each(BELOW_1, 'b1', 'b2'),
    'eps': ABOVE_0,
    'schedule_scale': (1e-6, math.inf),
  },
  'loss': {
    'target_layers': AT_LEAST_1,
    **each(AT_LEAST_0, 'position_noise', 'variance', 'covariance'),
  },
  'mae': {
    'mask_ratio': SHARE,
    **each(AT_LEAST_1, 'decoder_width', 'decoder_depth', 'decoder_heads'),
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
  # Fewer images have no rank, and leave no probe.
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
  'vicreg': {
    **each(AT_LEAST_0, 'invariance', 'variance', 'covariance'),
    **each(AT_LEAST_1, 'slices', 'projector'),
    **each(SHARE, 'sigreg', 'jitter', 'grey', 'blur', 'solarize'),
    'num_views': (2, math.inf),
  },
  'visualize': {
    'images': (2, math.inf),
    **each(AT_LEAST_1, 'shown', 'draws', 'judged', 'sample_steps'),
    'seeds': (2, math.inf),  # one has no spread
  },
  'generator': {
    'total_steps': (0, STEPS[1]),
    **each(AT_LEAST_1, 'blocks', 'image_size', 'patch_size', 'batch_size'),
    **each(AT_LEAST_1, 'width', 'depth', 'heads'),
    **each(AT_LEAST_0, 'warmup_steps', 'peak_lr', 'every_steps'),
    'ema': SHARE,
  },
  'knn': {'ks': AT_LEAST_1, 'temperatures': ABOVE_0},
  'logistic': {'per_class': AT_LEAST_0, 'share': SHARE, 'l2': AT_LEAST_0},
  'linear': {
    **each(AT_LEAST_0, 'batch_size', 'epochs', 'weight_decays'),
    'lrs': ABOVE_0,
  },
  'attentive': {
    **each(AT_LEAST_0, 'batch_size', 'heads', 'weight_decays'),
    'epochs': AT_LEAST_1,
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
  """Refuses a config with a number out of its limits.

  Args:
    config: of any job; a number that RANGES lacks must only be finite.

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
  """Refuses a section of a config with a number out of its limits.

  Args:
    config: the section.
    name: of the section; '': the config itself.
    ranges: knob -> (least, greatest), for each of several numbers; None has no
      limits.

  Raises:
    UserError: one sentence with the value and the limit.
  """
  for knob, (least, greatest) in ranges.items():
    value = config.get(knob)
    values = value if isinstance(value, (tuple, list)) else (value,)
    if not all(x is None or least <= x <= greatest for x in values):
      key = f'{name}.{knob}' if name else knob
      upper = '' if greatest == math.inf else f' and up to {greatest}'
      raise UserError(f'{key} is {value}: take {least} or more{upper}.')


def numbers_of(value, name: str = '') -> Iterator[tuple[str, float]]:
  """Yields (knob, number) of every number in a section, of any depth."""
  if isinstance(value, Mapping) or hasattr(value, 'items'):
    for knob, inner in value.items():
      yield from numbers_of(inner, f'{name}.{knob}' if name else knob)
  elif isinstance(value, (tuple, list)):
    for inner in value:
      yield from numbers_of(inner, name)
  elif isinstance(value, numbers.Number):
    yield name, value


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
# (section, knob, its values) -> knobs of a training run that have no effect
# then, with their values in configs/base.py; section '': the config itself.
REFUSED = {
  ('', 'method', ('vicreg',)): {
    'data': {'jitter': 0.0, 'grey': 0.0, 'blur': 0.0},
  },
  ('data', 'source', ('scenes',)): {
    'data': {'path': '', 'split': 'train'},
  },
  ('data', 'source', ('folder', 'tfds', 'arrayrecord', 'huggingface')): {
    'data': {'flavour': 'scenes', 'count': 20_000},
  },
}
PASSED_OVER = {
  ('', 'method', ('pixels', 'mae', 'vicreg')): {
    'loss': {
      'kind': 'smooth_l1',
      'target_layers': 1,
      'position_noise': 0.0,
      'variance': 0.0,
      'covariance': 0.0,
      'mask_input': False,
    },
  },
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
  """Refuses knobs that were set and have no effect, or warns of them.

  Args:
    config: of a training run.

  Raises:
    UserError: a knob of REFUSED was set, without which the run would train on
      other images than were meant.
  """
  for (section, knob, values), void in REFUSED.items():
    switch, setting = _knob(config, section, knob)
    if setting in values:
      for name, value in _changed(config, void).items():
        hint = ''
        if name == 'data.path':
          hint = ' To train on images of your own set data.source=folder.'
        raise UserError(
          f'{name} is {value!r}, which {switch} = {setting!r} does not use: '
          f'change the one or the other.{hint}'
        )
  for (section, knob, values), void in PASSED_OVER.items():
    changed = _changed(config, void)
    switch, setting = _knob(config, section, knob)
    if setting in values and changed:
      logging.warning(
        'Passed over with %s = %r: %s.',
        switch,
        setting,
        ', '.join(f'{name} = {value!r}' for name, value in changed.items()),
      )


def _knob(config, section: str, knob: str) -> tuple:
  """-> its full name and its value."""
  if section:
    return f'{section}.{knob}', config[section][knob]
  return knob, config[knob]


def _changed(config, void) -> dict:
  """-> knobs among `void` that have another value: full name -> value."""

  def plain(value):
    return tuple(value) if isinstance(value, list) else value

  return {
    f'{section}.{knob}': plain(config[section][knob])
    for section, knobs in void.items()
    for knob, default in knobs.items()
    if plain(config[section][knob]) != default
  }
