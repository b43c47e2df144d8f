"""Which numbers a config may have."""

import math

AT_LEAST_0, AT_LEAST_1 = (0, math.inf), (1, math.inf)


def each(limits: tuple[float, float], *knobs: str) -> dict:
  """The same limits for several knobs."""
  return dict.fromkeys(knobs, limits)


# Of a training run: section of the config -> knob -> (least, greatest).
RANGES = {
  '': each(AT_LEAST_1, 'total_steps', 'batch_size', 'accumulate'),
  'optim': {
    **each(AT_LEAST_0, 'start_lr', 'peak_lr', 'final_lr', 'warmup_steps'),
    **each(AT_LEAST_0, 'weight_decay', 'final_weight_decay', 'clip_norm'),
    **each((0, 1), 'b1', 'b2'),
    'eps': AT_LEAST_0,
    'schedule_scale': (1e-6, math.inf),
  },
  'ema': each((0, 1), 'first', 'last'),
  'data': {'prefetch': AT_LEAST_1, 'max_bad_share': (0, 1)},
  'health': each(AT_LEAST_0, 'every_steps'),
  'probe': each(AT_LEAST_0, 'every_steps'),
  'model': {
    **each(AT_LEAST_1, 'width', 'depth', 'heads', 'mlp_dim', 'patch_size'),
    **each(AT_LEAST_1, 'predictor_width', 'predictor_depth', 'unroll'),
    'predictor_heads': AT_LEAST_1,
  },
}


def check(config, name: str, ranges: dict) -> None:
  """Refuses numbers of `config`, which is called `name`, that can't be.

  Args:
    ranges: knob -> (least, greatest); one that is None is left to others.

  Raises:
    ValueError: one sentence with the value and the limit.
  """
  for knob, (least, greatest) in ranges.items():
    value = config.get(knob)
    if value is not None and not least <= value <= greatest:
      full = f'{name}.{knob}' if name else knob
      upper = '' if greatest == math.inf else f' and up to {greatest:g}'
      raise ValueError(f'{full} is {value}: take {least:g} or more{upper}.')
