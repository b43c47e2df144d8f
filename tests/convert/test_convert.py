"""python -m ijepa_jax.convert: paths, and runs that go on meanwhile."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from ijepa_jax.convert import export
from ijepa_jax.errors import UserError
from ijepa_jax.pretrained import load
from ijepa_jax.pretrained.formats import orbax
from ijepa_jax.runtime.checkpoint import checkpointer
from tests.convert.trees import assert_equal

WEIGHTS = 'model.safetensors'


def test_command_line(small_run, tmp_path):
  """As a user would: one sentence, and an exit code."""

  def run(*arguments):
    return subprocess.run(
      [sys.executable, '-m', 'ijepa_jax.convert', *map(str, arguments)],
      capture_output=True,
      text=True,
      cwd=pathlib.Path(__file__).parents[2],
    )

  out = tmp_path / 'out'
  result = run(small_run, out, '--to=huggingface')
  assert result.returncode == 0, result.stderr
  assert result.stdout == (
    f'{out} holds the target encoder: 37 tensors, 0.1 million parameters, '
    f'{sum(p.stat().st_size for p in out.iterdir() if p.suffix != ".md"):,} '
    'bytes; all 37 tensors read back bit-equal. Its model card is '
    f'{out / "README.md"}.\n'
  )
  result = run(small_run, out, '--to=orbax')
  assert (result.returncode, result.stdout) == (1, '')
  assert result.stderr == f'{out} is there already: take another name.\n'
  result = run(small_run, '--to=orbax')
  assert result.returncode == 1
  assert result.stderr.startswith('Say what, where and how: python -m')
  result = run(small_run, out, '--to=onnx')
  assert result.returncode == 1
  assert 'onnx' in result.stderr
  assert 'Traceback' not in result.stderr


ODD = [
  '!x] {y}',
  'ünï 日本',
  '50%#1',
  "it's \n two",
  '$HOME ~',
]


@pytest.mark.parametrize('name', ODD)
def test_names_of_folders(small_run, tmp_path, monkeypatch, name):
  """Any name, absolute, from here and below ~, of what is read and written."""
  given = tmp_path / name / 'run'
  given.parent.mkdir()
  given.symlink_to(small_run)
  out = tmp_path / name / 'out'
  assert 'bit-equal' in export.export(given, f'{out}/', 'orbax')
  assert_equal(
    load.read_weights(out).params, load.read_weights(small_run).params
  )
  assert sorted(p.name for p in (tmp_path / name).iterdir()) == ['out', 'run']
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path / name))
  for path in f'{name}/out', '~/out', '~/run/':
    assert load.detect_format(path) == 'orbax'
  export.export('~/out', '~/hf', 'huggingface')
  assert (out.parent / 'hf/model.safetensors').exists()
  assert not (tmp_path / '~').exists()


@pytest.mark.parametrize('name', ['lr[1e-3]', 'a*b?', 'back\\slash', b'\xff'])
def test_names_that_checkpoints_can_not_have(small_run, tmp_path, name):
  name = os.fsdecode(name)
  with pytest.raises(UserError, match='checkpoints cannot be saved'):
    export.export(small_run, tmp_path / name, 'orbax')
  assert not list(tmp_path.iterdir())
  export.export(small_run, tmp_path / name, 'huggingface')
  assert (tmp_path / name / WEIGHTS).exists()


def test_into_a_link(small_run, tmp_path):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'link').symlink_to('empty')
  export.export(small_run, tmp_path / 'link', 'huggingface')
  assert (tmp_path / 'link').is_symlink()
  assert (tmp_path / 'empty' / WEIGHTS).exists()


def test_two_at_once(small_run, tmp_path, monkeypatch):
  """The second says that the first is at it; what the first left is whole."""
  out, write = tmp_path / 'out', export._write

  def both(*args):
    with pytest.raises(UserError, match='writes to'):
      export.export(small_run, out, 'huggingface')
    write(*args)

  monkeypatch.setattr(export, '_write', both)
  export.export(small_run, out, 'huggingface')
  assert_equal(
    load.read_weights(out).params['target'],
    load.read_weights(small_run).params['target'],
  )
  assert [p.name for p in tmp_path.iterdir()] == ['out']
  # What a killed process leaves holds nobody up.
  (tmp_path / '.again.lock').touch()
  monkeypatch.setattr(export, '_write', write)
  export.export(small_run, tmp_path / 'again', 'huggingface')


def test_a_run_that_trains_meanwhile(small_run, tmp_path, monkeypatch):
  """Its checkpoint goes while it is read: the newer one is taken."""
  run = tmp_path / 'run'
  shutil.copytree(small_run, run)
  read = checkpointer.Checkpointer.read

  def trained(self, part, step=None):
    old = run / 'checkpoints/1'
    if old.exists():
      shutil.copytree(old, run / 'checkpoints/2')
      shutil.rmtree(old)
    return read(self, part, step)

  monkeypatch.setattr(checkpointer.Checkpointer, 'read', trained)

  def gone(self, step=None, names=checkpointer.Checkpointer._select_steps):
    if (run / 'checkpoints/1').exists():
      return names(self, step)
    steps = names(self, None)
    if not seen:  # as it was listed before it went
      seen.append(1)
      return [1]
    return steps if step is None else [step]

  seen = []
  monkeypatch.setattr(checkpointer.Checkpointer, '_select_steps', gone)
  loaded = orbax.read(run)
  assert loaded.step == 2
  assert_equal(loaded.params, load.read_weights(small_run).params)
