"""The Makefile: which Python, which flags, which versions."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
  not shutil.which('make'), reason='make is missing'
)


def make(*arguments, **env):
  """Without the variables of a make that runs these tests."""
  mine = ('MAKEFLAGS', 'MAKELEVEL', 'MFLAGS', 'PYTHON', 'VENV', 'ISAS')
  kept = {k: v for k, v in os.environ.items() if k not in mine}
  return subprocess.run(
    ['make', *arguments],
    cwd=ROOT,
    env=kept | env,
    capture_output=True,
    text=True,
  )


def python(path, version):
  """What `python -V` of this version says."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/bin/sh\necho Python {version}\n')
  path.chmod(0o755)
  return str(path)


def test_a_venv_of_another_python_is_told(tmp_path):
  """It would be used in silence, and the wrong Python be tested."""
  venv = tmp_path / 'venv'
  python(venv / 'bin/python', '3.12.1')
  (venv / 'pip').touch()
  same, other = (python(tmp_path / v, v) for v in ('3.12.1', '3.13.0'))
  asked = f'VENV={venv}', 'its-python'
  for fine in (make(*asked), make(*asked, f'PYTHON={same}')):
    assert fine.returncode == 0, fine.stderr
  for refused in (
    make(*asked, f'PYTHON={other}'),
    make(*asked, PYTHON=other),
  ):
    assert refused.returncode == 2
    assert f'{venv} is of Python 3.12.1 and PYTHON={other} is' in refused.stdout
    assert 'VENV=.venv-other' in refused.stdout


def test_older_cpus_keep_the_flags_of_the_user(tmp_path):
  venv = tmp_path / 'venv'
  seen = venv / 'seen'
  python(venv / 'bin/python', '3.12.1')
  (venv / 'bin/python').write_text(f'#!/bin/sh\necho "$XLA_FLAGS" >> {seen}\n')
  for stamp in ('pip', 'installed-dev'):
    (venv / stamp).touch()
  done = make('test-portable', f'VENV={venv}', XLA_FLAGS='--xla_dump_to=x')
  assert done.returncode == 0, done.stderr
  passes = '--xla_backend_optimization_level=3'
  assert [line.split() for line in seen.read_text().splitlines()] == [
    ['--xla_dump_to=x', passes],
    ['--xla_dump_to=x', passes, '--xla_cpu_max_isa=AVX2'],
    ['--xla_dump_to=x', passes, '--xla_cpu_max_isa=AVX'],
  ]


def test_numeric_rooms_are_there():
  line = make('--dry-run', 'portable-native').stdout
  rooms = [w for w in line.split() if w.startswith('tests/')]
  assert len(rooms) > 10
  assert all((ROOT / room).exists() for room in rooms)
