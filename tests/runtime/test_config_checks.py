"""Numbers that can't be: every knob of every config, and what is said."""

import importlib
import pathlib

import pytest

from ijepa_jax.errors import UserError
from ijepa_jax.runtime.config_checks import RANGES, check_numbers, numbers_of

ROOT = pathlib.Path(__file__).parents[2] / 'configs'
CONFIGS = sorted(
  '.'.join(p.relative_to(ROOT.parent).with_suffix('').parts)
  for p in ROOT.rglob('*.py')
  if p.stem not in ('__init__', 'common')
)


def load(name):
  return importlib.import_module(name).get_config()


@pytest.mark.parametrize('name', CONFIGS)
def test_recipes_are_within(name):
  check_numbers(load(name))


@pytest.mark.parametrize('value', ['nan', 'inf', '-inf', '1e39'])
def test_no_knob_takes_what_is_not_finite(value):
  """Each of those that hold a float or several numbers."""
  tried = 0
  for name in CONFIGS:
    for knob, number in numbers_of(load(name)):
      section, _, last = knob.rpartition('.')
      config = load(name)
      place = config[section] if section else config
      several = isinstance(place[last], tuple)
      if not several and not isinstance(number, float):
        continue
      number = float(value)
      place[last] = (number, *place[last][1:]) if several else number
      with pytest.raises(UserError, match=rf'{knob} is .*: take '):
        check_numbers(config)
      tried += 1
  assert tried > 200


@pytest.mark.parametrize(
  ('name', 'knob', 'value', 'words'),
  [
    ('configs.tiny', 'optim.eps', 0.0, 'take 1e-30 or more'),
    ('configs.tiny', 'optim.b1', 1.0, 'up to 0.9999999'),
    ('configs.tiny', 'optim.b2', 1.0, 'up to 0.9999999'),
    ('configs.tiny', 'optim.b2', -0.1, 'take 0 or more'),
    ('configs.tiny', 'ema.first', 1.01, 'up to 1'),
    ('configs.tiny', 'total_steps', 2**31, 'up to 2147483647'),
    ('configs.tiny', 'seed', -1, 'take 0 or more'),
    ('configs.tiny', 'data.image_size', (48, 0), 'take 1 or more'),
    ('configs.evals.knn', 'image_size', (0, 48), 'take 1 or more'),
    ('configs.tiny', 'checkpoint.keep_last', 0, 'take 1 or more'),
    ('configs.tiny', 'health.images', 1, 'take 2 or more'),
    ('configs.tiny', 'probe.train_count', 4, 'take 5 or more'),
    ('configs.evals.knn', 'knn.ks', (5, 0), 'take 1 or more'),
    ('configs.evals.knn', 'knn.temperatures', (0.0,), 'take 1e-30 or more'),
    ('configs.evals.logistic', 'logistic.l2', (0.1, -1.0), 'take 0 or more'),
    ('configs.evals.logistic', 'logistic.share', 1.5, 'up to 1'),
    ('configs.evals.linear', 'linear.lrs', (0.1, 0.0), 'take 1e-30 or more'),
    ('configs.evals.linear', 'linear.epochs', -1, 'take 0 or more'),
    ('configs.evals.attentive', 'attentive.lrs', (0.0,), 'take 1e-30 or more'),
    ('configs.evals.attentive', 'attentive.epochs', 0, 'take 1 or more'),
    ('configs.evals.finetune_full', 'finetune.smoothing', 1.5, 'up to 1'),
    ('configs.evals.finetune_full', 'finetune.drop_path', 1.0, 'up to 0.99'),
    ('configs.evals.finetune_full', 'batch_size', 0, 'take 1 or more'),
  ],
)
def test_limits(name, knob, value, words):
  config = load(name)
  config.update_from_flattened_dict({knob: value})
  with pytest.raises(UserError, match=rf'^{knob} is .*{words}'):
    check_numbers(config)


def test_every_number_has_its_limits():
  """A new knob is named in RANGES, or here with who looks at it."""
  elsewhere = {
    *('mesh.data', 'mesh.fsdp'),  # sharding.make_mesh
    *('data.crop_scale', 'data.crop_ratio', 'finetune.crop_scale'),  # augment
    *('data.mean', 'data.std'),  # method.build_model
    'vicreg.crop_scale',  # crop.RandomResizedCrop
    'generator.time_mean',  # any number is one
  }
  for name in CONFIGS:
    for knob, number in numbers_of(load(name)):
      section, _, last = knob.rpartition('.')
      if section == 'mask' or isinstance(number, bool):  # masks.make_sampler
        continue
      assert last in RANGES.get(section, ()) or knob in elsewhere, knob
