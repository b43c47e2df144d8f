"""Knobs that mean nothing beside others are refused, or told."""

import importlib
import pathlib

import pytest
from PIL import Image

from configs import base, tiny
from ijepa_jax.errors import UserError
from ijepa_jax.methods import from_config
from ijepa_jax.runtime.cli import UNUSED_BY, warn_of_unused
from ijepa_jax.runtime.config_checks import PASSED_OVER, REFUSED, check_void

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


def test_void_knobs(caplog):
  """Refused where the images were others than those asked for; else told."""
  for changes, words in (
    (
      {'path': 'photos'},
      r"data\.path is 'photos', which data.source = 'scenes' does not use: .* "
      'set data.source=folder',
    ),
    ({'split': 'val'}, r"data\.split is 'val', which"),
    ({'source': 'folder', 'count': 100}, r'data\.count is 100, which'),
    ({'source': 'tfds', 'flavour': 'crowd'}, "flavour is 'crowd', which"),
  ):
    config = tiny.get_config()
    config.data.update(changes)
    with pytest.raises(UserError, match=words):
      check_void(config)
  config = tiny.get_config()
  config.method, config.data.blur = 'vicreg', 0.5
  with pytest.raises(UserError, match=r"blur is .* method = 'vicreg' does not"):
    check_void(config)
  for changes, words in (
    ({'data.from_manifest': True}, 'data.mean = (0.5, 0.5, 0.5), data.std'),
    ({'mask.sampler': 'rasterized'}, 'mask.num_targets = 1, mask.context_'),
    ({'mask.fraction': 0.5}, 'mask.fraction = 0.5'),
    ({'checkpoint.keep_best_mode': 'min'}, 'checkpoint.keep_best_mode'),
    ({'health.every_steps': 0, 'health.images': 9}, 'health.images = 9'),
    ({'probe.every_steps': 0, 'probe.test_count': 9}, 'probe.test_count = 9'),
    ({'probe.split': 'val'}, "data.source = 'scenes': probe.split = 'val'"),
  ):
    config = tiny.get_config()
    config.update_from_flattened_dict(changes)
    caplog.clear()
    check_void(config)
    assert words in caplog.text


@pytest.mark.parametrize(
  ('method', 'knob', 'told'),
  [
    ('ijepa', 'mae.mask_ratio', True),
    ('mae', 'mae.mask_ratio', False),
    ('mae', 'mask.num_targets', True),
    ('vicreg', 'data.flip', True),
    ('pixels', 'data.flip', False),
    ('pixels', 'ema.first', True),
  ],
)
def test_knobs_of_a_command_line(method, knob, told, caplog):
  """A recipe may set those of other methods, a person means something."""
  config = tiny.get_config()
  config.method = method
  warn_of_unused(config, ['optim.peak_lr', knob])
  words = f'Without effect with method = {method!r}: {knob}.'
  assert (words in caplog.text) == told
  assert bool(caplog.text) == told


def test_every_method_says_what_it_does_not_use():
  config = base.get_config()
  assert UNUSED_BY.keys() == from_config.METHODS.keys()
  for name in {name for names in UNUSED_BY.values() for name in names}:
    section, _, knob = name.partition('.')
    assert knob in config[section] if knob else section in config


@pytest.mark.parametrize(
  'path',
  # The pages of visualize.py are of no training run.
  sorted(p for p in CONFIGS.glob('[!_]*.py') if 'visualize' not in p.stem),
  ids=lambda p: p.stem,
)
def test_recipes_have_no_void_knobs(path, caplog):
  config = importlib.import_module(f'configs.{path.stem}').get_config()
  check_void(config)
  assert not caplog.text


def test_void_knobs_are_known_by_their_defaults():
  config = base.get_config()
  for table in REFUSED, PASSED_OVER:
    for (section, knob, _), sections in table.items():
      assert knob in (config[section] if section else config)
      for section, knobs in sections.items():
        for knob, default in knobs.items():
          assert config[section][knob] == default
  assert config.data.max_pixels == Image.MAX_IMAGE_PIXELS
