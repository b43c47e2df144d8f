"""Commands: whose fault it was, and where a moved one is now."""

import pathlib
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from ijepa_jax.errors import UserError
from ijepa_jax.runtime import cli

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
  ('error', 'words'),
  [
    (UserError('x is 3: take 2.'), 'x is 3: take 2.'),
    (OSError(28, 'No space left', '/run/x'), r'/run/x: No space left\. Check'),
    (ImportError('Install gcsfs to access it'), r"'ijepa_jax\[gcs\]'"),
  ],
)
def test_a_mistake_of_the_user_is_one_sentence(error, words):
  with pytest.raises(SystemExit, match=words), cli.one_sentence():
    raise error


@pytest.mark.parametrize(
  'error',
  [ValueError('shapes (3,) and (4,)'), OSError('a bug'), ImportError('jax')],
)
def test_a_fault_of_ours_keeps_its_traceback(error):
  with pytest.raises(type(error)) as raised, cli.one_sentence():
    raise error
  assert raised.value is error


@pytest.mark.parametrize(
  ('old', 'new'),
  [
    ('ijepa_jax.pack', 'ijepa_jax.data.pack'),
    ('ijepa_jax.interop', 'ijepa_jax.convert'),
  ],
)
def test_a_moved_command_says_where_it_is(old, new):
  done = subprocess.run(
    [sys.executable, '-m', old, 'a', 'b'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert f'python -m {old} is now python -m {new}' in done.stderr


@pytest.fixture
def values(monkeypatch):
  """Flags of a command that takes a config."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config', flag_values=values, lock_config=True
  )
  monkeypatch.setattr(flags, 'FLAGS', values)
  return values


@pytest.mark.parametrize(
  ('config', 'knob'),
  [('tiny', 'data.image_size'), ('evals/knn', 'image_size')],
)
@pytest.mark.parametrize(
  ('given', 'size'), [('64', (64, 64)), ('(64,48)', (64, 48))]
)
def test_a_side_is_a_size(config, knob, given, size, values, monkeypatch):
  path = ROOT / f'configs/{config}.py'
  line = ['main.py', f'--config={path}', f'--config.{knob}={given}']
  monkeypatch.setattr(sys, 'argv', line)  # ml_collections looks there
  cli.parse(line)
  section = values.config.data if '.' in knob else values.config
  assert section.image_size == size


def test_a_config_that_has_no_such_row(values):
  path = ROOT / 'configs/ablations/masks.py'
  cli.parse(['main.py', f'--config={path}:random'])
  assert values.config.mask.sampler == 'random'
  with pytest.raises(SystemExit, match=r"^The row .* is 'rando': take"):
    cli.parse(['main.py', f'--config={path}:rando'])
