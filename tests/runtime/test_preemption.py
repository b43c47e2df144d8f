"""SIGTERM and Ctrl-C: what ends when, with which status, and what is kept."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import pytest

from ijepa_jax.data import workers
from ijepa_jax.runtime import metrics, preemption
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.train import pretrain
from tests.train import test_pretrain

ROOT = pathlib.Path(__file__).parents[2]
EVALUATION = 'evals.evaluation.Evaluation.from_config'
ONE_DEVICE = ' --xla_force_host_platform_device_count=1'  # the last counts
SIGNALS = [(signal.SIGTERM, 143, 'SIGTERM'), (signal.SIGINT, 130, 'Ctrl-C')]


def python(script: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, '-c', f'import os, signal, time\n{script}'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=100,
  )


@pytest.mark.parametrize(('number', 'status', 'name'), SIGNALS)
def test_the_first_ends_what_has_nothing_to_save(number, status, name):
  """In order, so that what was begun is cleared up; and told in one line."""
  run = python(f"""
from ijepa_jax.runtime import preemption
with preemption.job():
  try:
    os.kill(os.getpid(), {number})
    time.sleep(100)
  finally:
    print('cleared up')
""")
  assert run.returncode == status
  assert run.stdout == 'cleared up\n'
  assert run.stderr == (
    f'\n{name}: stopped; the same command goes on from what is saved.\n'
  )


@pytest.mark.parametrize(('number', 'status', 'name'), SIGNALS)
def test_the_second_ends_at_once(number, status, name):
  """But one that a launcher hands on at the same time is no second one."""
  run = python(f"""
from ijepa_jax.runtime import preemption
preemption._SAME_SIGNAL = 0.5
with preemption.job() as watched, watched.together():
  watched.keep()
  os.kill(os.getpid(), {number})
  os.kill(os.getpid(), {number})
  time.sleep(0.1)
  print('saving', bool(watched.requested()), flush=True)
  time.sleep(0.6)
  os.kill(os.getpid(), {number})
  time.sleep(100)
""")
  assert (run.returncode, run.stdout) == (status, 'saving True\n')
  assert run.stderr.count(f'{name}: it stops as soon as all is saved') == 1


def test_while_the_main_thread_is_in_c():
  """Such as in waiting for the other processes of a job."""
  run = python("""
import ctypes, threading
from ijepa_jax.runtime import preemption
preemption._PATIENCE = 0.2
with preemption.job():
  libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
  threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
  libc.pthread_mutex_lock(mutex)
  libc.pthread_mutex_lock(mutex)  # for ever
""")
  assert run.returncode == 143, run.stderr
  assert run.stderr.startswith('\nSIGTERM: stopped')


def test_what_becomes_another_error_on_its_way():
  run = python("""
from ijepa_jax.runtime import preemption
with preemption.job():
  try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(100)
  except BaseException as error:
    raise RuntimeError('of a callback') from error
""")
  assert run.returncode == 130
  assert 'Traceback' not in run.stderr


def test_workers_are_left_undisturbed():
  """From their birth on: a terminal sends Ctrl-C to them too."""
  line = 'import time; time.sleep(1)'
  with workers.undisturbed():
    child = subprocess.Popen([sys.executable, '-c', line])
  for number, *_ in SIGNALS:
    child.send_signal(number)
  assert child.wait() == 0


def test_signals_are_given_back():
  before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  with preemption.watch() as outer, preemption.watch() as inner:
    assert inner is outer
    assert signal.getsignal(signal.SIGINT) != before[0]
  after = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  assert after == before


@pytest.mark.parametrize(
  ('runs', 'busy', 'config'),
  [
    # Traced in a thread of those that compile, which is not waited for.
    ('main.py', 'methods.train_step.train_step', 'configs/tiny.py'),
    ('main.py', 'data.sources.make_source', 'configs/tiny.py'),
    ('main.py', EVALUATION, 'configs/evals/knn.py'),
    ('main.py', EVALUATION, 'configs/evals/finetune_full.py'),
    ('ijepa_jax.convert', 'convert.export.export', ''),
    ('ijepa_jax.data.pack', 'data.pack.pack.pack', ''),
  ],
)
def test_every_job_ends_before_it_has_begun(runs, busy, config, tmp_path):
  """While it opens, loads or compiles: soon, with a line, and 130."""
  owner, _, function = f'ijepa_jax.{busy}'.rpartition('.')
  arguments = {
    'main.py': [f'--workdir={tmp_path}', f'--config={config}'],
    'ijepa_jax.convert': ['a', 'b', '--to=orbax'],
    'ijepa_jax.data.pack': [
      'scenes:scenes',
      str(tmp_path / 'out'),
      '--count=9',
    ],
  }[runs]
  if 'tiny' in config:
    arguments += test_pretrain.flags(test_pretrain.make_config())
  how = 'run_path' if runs == 'main.py' else 'run_module'
  run = python(f"""
import pkgutil, runpy, sys
def busy(*args, **kwargs):
  os.kill(os.getpid(), signal.SIGINT)
  time.sleep(1000)
sys.argv = {['main.py', *arguments]!r}
setattr(pkgutil.resolve_name({owner!r}), {function!r}, busy)
runpy.{how}({runs!r}, run_name='__main__')
""")
  assert run.returncode == 130, run.stderr
  assert run.stderr.endswith(
    '\nCtrl-C: stopped; the same command goes on from what is saved.\n'
  )
  assert 'Traceback' not in run.stderr


def test_before_the_others_are_there(tmp_path):
  """Process 1 of 2, whose process 0 never came."""
  with socket.socket() as s:
    s.bind(('localhost', 0))
    address = f'localhost:{s.getsockname()[1]}'
    others = f'--coordinator={address}', '--num_processes=2', '--process_id=1'
    run = subprocess.Popen(
      test_pretrain.command(tmp_path, test_pretrain.make_config(), *others),
      cwd=ROOT,
      stderr=subprocess.PIPE,
      text=True,
    )
    for line in run.stderr:
      if 'One process of several' in line:
        run.send_signal(signal.SIGTERM)
        break
    rest = run.stderr.read()
    assert run.wait(60) == 143, rest
    assert 'SIGTERM: stopped' in rest


def signal_at(monkeypatch, step: int, number: int):
  """Sends it when that step has been recorded: while the next one runs."""
  write = metrics.MetricWriter.write

  def writing(self, at, values):
    write(self, at, values)
    if at == step:
      os.kill(os.getpid(), number)

  monkeypatch.setattr(metrics.MetricWriter, 'write', writing)


@pytest.mark.parametrize(('number', 'status', 'name'), SIGNALS)
def test_a_run_that_is_stopped_is_saved(
  number, status, name, tmp_path, monkeypatch
):
  """With a status that says so, also to who calls it as a function."""
  config = test_pretrain.make_config(total_steps=6)
  signal_at(monkeypatch, 3, number)
  with pytest.raises(preemption.Stopped) as stopped:
    pretrain.run(config, tmp_path)
  assert stopped.value.code == status
  with checkpointer.Checkpointer(tmp_path / 'checkpoints') as checkpoints:
    assert checkpoints.steps() == [4]
  monkeypatch.undo()
  assert pretrain.run(config, tmp_path).step == 6


def test_a_run_that_is_complete_all_the_same(tmp_path, monkeypatch):
  signal_at(monkeypatch, 5, signal.SIGTERM)
  config = test_pretrain.make_config(total_steps=6)
  assert pretrain.run(config, tmp_path).step == 6


@pytest.mark.parametrize(
  ('number', 'status', 'name', 'whom'),
  [
    (*SIGNALS[1], [1]),
    pytest.param(*SIGNALS[0], [0], marks=pytest.mark.slow),
    pytest.param(*SIGNALS[1], [0, 1], marks=pytest.mark.slow),
  ],
)
def test_several_processes_stop_together(number, status, name, whom, tmp_path):
  """As torchrun starts them; whichever of them is told."""
  config = test_pretrain.make_config(
    **{
      'total_steps': 20_000,
      'checkpoint.every_steps': 20_000,
      'data.image_size': (16, 16),
      'model.width': 16,
      'model.depth': 1,
      'model.predictor_depth': 1,
      'batch_size': 4,
    }
  )
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  shared = {
    'WORLD_SIZE': '2',
    'LOCAL_WORLD_SIZE': '2',
    'MASTER_ADDR': 'localhost',
    'MASTER_PORT': str(port),
    'XLA_FLAGS': os.environ['XLA_FLAGS'] + ONE_DEVICE,
    'JAX_PLATFORMS': 'cpu',
  }
  runs = [
    subprocess.Popen(
      test_pretrain.command(tmp_path, config),
      cwd=ROOT,
      env=os.environ | shared | {'RANK': str(i), 'LOCAL_RANK': str(i)},
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  for line in runs[0].stderr:
    if 'Step ' in line:
      for i in whom:
        runs[i].send_signal(number)
      break
  words = [run.communicate(timeout=100)[1] for run in runs]
  assert [run.returncode for run in runs] == [status] * 2, words
  ends = [int(re.search(r'Stopped at step (\d+)', w)[1]) for w in words]
  assert ends[0] == ends[1]
  assert not any('Traceback' in w for w in words)
  # One run, not two.
  steps = [row['step'] for row in metrics.read(tmp_path)]
  assert steps == list(range(1, ends[0] + 1))
  with checkpointer.Checkpointer(tmp_path / 'checkpoints') as checkpoints:
    assert checkpoints.steps() == [ends[0]]
