"""benchmarks/gpu.sh, on a CPU: its measurements, limits and table."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import gpu

ROOT = pathlib.Path(gpu.__file__).parents[1]
STEP = {
  **{'attention': 'xla', 'device': 'a GPU', 'platform': 'gpu', 'jax': '1.0'},
  **{'images_per_second': 1234.56, 'peak_gib': 2.5, 'compile_seconds': 30.0},
  **{'loss': 0.5, 'model_flops_utilisation': 0.4},
}


def command(out, *arguments):
  return subprocess.run(
    ['bash', 'benchmarks/gpu.sh', '--recipes=tiny', f'--out={out}', *arguments],
    cwd=ROOT,
    env=os.environ | {'PYTHON': sys.executable, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )


def lines(out):
  return [json.loads(x) for x in (out / 'gpu.jsonl').read_text().splitlines()]


def test_on_a_cpu(tmp_path):
  """A step, none of cuDNN, and of twice the images; a table of the three."""
  parts = '--parts=steps,cudnn,largest'
  done = command(tmp_path, parts, '--batch=8', '--largest=16', '--steps=2')
  assert done.returncode == 0, done.stderr
  first, fused, twice = lines(tmp_path)
  assert (first['batch_size'], twice['batch_size']) == (8, 16)
  for row in first, twice:
    assert row['platform'] == 'cpu' and row['images_per_second'] > 0
    assert row['compile_seconds'] > 0 and row['peak_gib'] > 0
  assert fused['error'] == gpu.NO_GPU
  table = done.stdout.splitlines()
  assert table[0].startswith('| cpu, jax ')
  assert len({line.count('|') for line in table[:5]}) == 1
  assert '`model.attention=cudnn` | 8 | not on this device |' in table[3]


def test_what_is_cut_off_is_named(tmp_path):
  done = command(tmp_path, '--seconds=1')
  assert done.returncode == 0, done.stderr
  rows = lines(tmp_path)
  assert {row['error'] for row in rows} == {gpu.NO_TIME}
  assert [r.get('parity') for r in rows[:2]] == ['float32', 'bfloat16']
  assert done.stdout.count(gpu.NO_TIME) == len(rows) == 5
  bad = command(tmp_path, '--parts=stpes')
  assert bad.returncode == 1 and "Did you mean 'steps'?" in bad.stderr


@pytest.mark.parametrize(
  ('words', 'reason'),
  [
    ('W ran out of memory\nValueError: No.\n  more\n', 'ValueError: No.'),
    (
      'Traceback:\njax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: 8 bytes\n\n',
      gpu.NO_ROOM,
    ),
    ('Killed', 'ended with status -9'),
  ],
)
def test_why(words, reason):
  assert gpu.why(words, -9) == reason


class Bench:
  """A device on which 64 images of L/16 fit, and 256 of B/16."""

  def __init__(self):
    self.tried = []

  def step(self, recipe, batch, attention='xla'):
    self.tried.append((recipe, batch, attention))
    most = {'vit_b16': 256, 'vit_l16': 64}[recipe]
    return gpu.NO_ROOM if batch > most else ''


def test_batches(monkeypatch):
  """Halved until a step fits; doubled until none does."""
  flags = type('Flags', (), {'batch': 128, 'largest': 8192})
  monkeypatch.setattr(gpu, 'FLAGS', flags)
  bench = Bench()
  parts = 'steps', 'cudnn', 'largest'
  gpu.measure(bench, parts, ['vit_b16', 'vit_l16'])
  assert bench.tried == [
    ('vit_b16', 128, 'xla'),
    *(('vit_l16', n, 'xla') for n in (128, 64)),
    *(('vit_b16', 128, 'cudnn'), ('vit_l16', 64, 'cudnn')),
    *(('vit_b16', n, 'xla') for n in (256, 512)),
  ]
  bench = Bench()
  gpu.measure(bench, ('steps', 'largest'), ['vit_l16'])
  assert len(bench.tried) == 2  # 128 is known not to fit


def test_table():
  rows = [
    {'parity': 'float32', 'errors': [['a', 1e-6, 1e-5], ['b', 2e-5, 1e-5]]},
    {'parity': 'bfloat16', 'error': gpu.NO_TIME},
    STEP | {'recipe': 'vit_b16', 'batch_size': 128},
  ]
  text = gpu.table(rows)
  assert '| a GPU, jax 1.0 | batch |' in text
  assert '| `vit_b16` | 128 | 1235 | 40.0% | 2.50 | 30.0 | 0.5000 |' in text
  assert 'float32: 1 of 2 quantities' in text and 'b 2.0e-05 (bound' in text
  assert 'bfloat16: cut off.' in text
