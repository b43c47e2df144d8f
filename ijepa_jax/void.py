"""Which knobs of a training run are void beside others."""

from absl import logging

from ijepa_jax.errors import UserError

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


def check(config) -> None:
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
