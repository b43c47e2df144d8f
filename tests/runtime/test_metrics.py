"""metrics.jsonl survives kills and odd numbers; rates and the console."""

import json
import os
import struct
import sys
import time

import numpy as np
import pytest
from absl import logging
from etils import epath
from fsspec.implementations import memory

from ijepa_jax.errors import UserError
from ijepa_jax.runtime import config, metrics
from ijepa_jax.runtime.progress import Progress, Throughput, duration
from ijepa_jax.runtime.timing.clock import Clock
from tests.close import FLOAT64, close


def strict(line):
  def refuse(constant):
    raise AssertionError(f'{constant} is no JSON')

  return json.loads(line, parse_constant=refuse)


def test_lines_are_there_at_once_and_strict(tmp_path):
  with metrics.MetricWriter(tmp_path, tensorboard=False) as writer:
    writer.write(1, {'loss': 0.25, 'lr': np.float32(0.5)})
    writer.write(2, {'loss': float('nan'), 'grad_norm': float('inf')})
    # Before any close: a kill loses nothing.
    lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [strict(line) for line in lines] == [
    {'step': 1, 'loss': 0.25, 'lr': 0.5},
    {'step': 2, 'loss': None, 'grad_norm': None},
  ]
  assert metrics.read(tmp_path)[1]['loss'] is None


@pytest.mark.parametrize('torn', ['', '{"step": 4, "lo', '{"step": 3}', '{'])
def test_resume_drops_what_was_beyond(tmp_path, torn):
  with metrics.MetricWriter(tmp_path, tensorboard=False) as writer:
    for step in (1, 2, 3):
      writer.write(step, {'loss': step / 2})
  path = tmp_path / 'metrics.jsonl'
  with path.open('a') as file:
    file.write(torn)
  assert len(metrics.read(tmp_path)) >= 3
  with metrics.MetricWriter(
    tmp_path, start_step=2, tensorboard=False
  ) as writer:
    assert [row['step'] for row in metrics.read(tmp_path)] == [1, 2]
    writer.write(3, {'loss': 7.0})
  assert metrics.read(tmp_path) == [
    {'step': 1, 'loss': 0.5},
    {'step': 2, 'loss': 1.0},
    {'step': 3, 'loss': 7.0},
  ]
  assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']


def test_resume_at_a_line_without_its_newline(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"step": 2}')
  with metrics.MetricWriter(
    tmp_path, start_step=2, tensorboard=False
  ) as writer:
    writer.write(3, {})
  assert [row['step'] for row in metrics.read(tmp_path)] == [1, 2, 3]


def test_other_processes_write_nothing(tmp_path):
  with metrics.MetricWriter(tmp_path / 'run', enabled=False) as writer:
    writer.write(1, {'loss': 1.0})
  assert not (tmp_path / 'run').exists()
  assert metrics.read(tmp_path / 'run') == []


def test_config(tmp_path):
  config.write_config(tmp_path / 'run', '{"seed": 1}')
  config.write_config(tmp_path / 'run', '{"seed": 2}')
  assert json.loads((tmp_path / 'run' / 'config.json').read_text()) == {
    'seed': 2
  }


def events(path):
  """The records of a TensorBoard file: length, checksum, event, checksum."""
  from tensorboardX.proto import event_pb2

  data = path.read_bytes()
  while data:
    (size,) = struct.unpack('<Q', data[:8])
    yield event_pb2.Event.FromString(data[12 : 12 + size])
    data = data[16 + size :]


def test_tensorboard(tmp_path):
  with metrics.MetricWriter(tmp_path, start_step=5) as writer:
    writer.write(6, {'loss': 0.5, 'rankme': float('nan')})
  (path,) = (tmp_path / 'tensorboard').iterdir()
  scalars = []
  purged = []
  for event in events(path):
    if event.HasField('session_log'):
      purged.append(event.step)
    scalars += [
      (event.step, v.tag, v.simple_value) for v in event.summary.value
    ]
  assert scalars == [(6, 'loss', 0.5)]
  assert purged == [6]  # TensorBoard hides what a killed run wrote from there.


@pytest.fixture
def clock(monkeypatch):
  """Time stands still but for `clock[0] += seconds`."""
  now = [100.0]
  for name in ('perf_counter', 'monotonic'):
    monkeypatch.setattr(time, name, lambda: now[0])
  return now


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='not on Linux')
def test_a_full_disk(tmp_path):
  with (
    pytest.raises(UserError, match=r'full cannot be written \(No space.*room'),
    metrics.MetricWriter(tmp_path, tensorboard=False) as writer,
  ):
    writer._file.close()
    writer._file = open('/dev/full', 'a', buffering=1)  # noqa: SIM115
    writer.write(1, {'loss': 0.5})


def test_meter(clock):
  parts = Clock()
  with parts.part('steps'):
    check_meter(clock, parts)


def check_meter(clock, parts):
  meter = Throughput(8, parts, window=2)
  assert meter.rates() == {}
  for seconds in (1, 3):
    with parts.part('data'):
      clock[0] += 0.25 * seconds
    clock[0] += 0.75 * seconds
    meter.step()
  assert meter.rates() == {'images_per_second': 4.0, 'data_wait_share': 0.25}
  clock[0] += 4  # without waiting; the step of one second leaves the window
  meter.step()
  rates = meter.rates()
  close(rates['images_per_second'], 16 / 7, FLOAT64)
  close(rates['data_wait_share'], 0.75 / 7, FLOAT64)
  with parts.part('save'):
    clock[0] += 100  # what is no training is not counted
  assert meter.rates() == rates
  clock[0] += 1
  meter.step()
  rates = meter.rates()
  assert rates == {'images_per_second': 16 / 5, 'data_wait_share': 0.0}


@pytest.fixture
def logged(monkeypatch):
  lines = []
  monkeypatch.setattr(
    logging, 'info', lambda words, *values: lines.append(words % values)
  )
  return lines


def test_progress_without_a_terminal(clock, logged):
  values = {'loss': 0.5, 'images_per_second': 640.2, 'data_wait_share': 0.125}
  with Progress(100, 10) as progress:
    for step in range(11, 101):
      progress.update(step, values)
      clock[0] += 1
  assert logged[0].startswith('Step 11 of 100 (11%): loss 0.5000, 640 img/s')
  # Once, before the first ten seconds are over.
  estimate = logged.pop(1)
  assert estimate.startswith('By the first 3 steps about 86 seconds are left')
  assert logged[1] == (
    'Step 21 of 100 (21%): loss 0.5000, 640 img/s, 12% waiting for data, '
    '0:01:19 left'
  )
  assert len(logged) == 10  # every ten seconds, and the last
  assert logged[-1].startswith('Step 100 of 100 (100%)')
  assert logged[-1].endswith('0:00:00 left')


def test_all_is_only_the_end(clock, logged):
  with Progress(1000, 995) as progress:
    for step in (996, 999, 1000):
      progress.update(step, {'loss': 1.0})
      clock[0] += 10
  assert [line.split(':')[0] for line in logged] == [
    'Step 996 of 1000 (99%)',
    'Step 999 of 1000 (99%)',
    'Step 1000 of 1000 (100%)',
  ]


def test_the_estimate_leaves_out_the_first_probe(clock, logged):
  rates = {'images_per_second': 64.0, 'data_wait_share': 0.0}
  with Progress(1001, batch_size=64) as progress:
    for step, seconds in (1, 1), (2, 50), (3, 1):
      progress.update(step, {'loss': 0.5, **rates})
      clock[0] += seconds
  (estimate,) = (line for line in logged if line.startswith('By the first'))
  assert 'By the first 2 steps about 17 minutes are left' in estimate


def test_durations_in_words():
  seconds = (0.4, 45, 119, 450, 1200, 9000, 100_000, 864_000)
  assert [duration(x) for x in seconds] == [
    *('0 seconds', '45 seconds', '119 seconds', '7.5 minutes', '20 minutes'),
    *('2.5 hours', '28 hours', '10 days'),
  ]


def test_progress_of_other_processes(logged):
  with Progress(10, enabled=False) as progress:
    progress.update(1, {'loss': 1.0})
  assert not logged


def test_progress_on_a_terminal(monkeypatch, capsys, logged):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
  with Progress(4, 1) as progress:
    for step in (2, 3, 4):
      progress.update(step, {'loss': 0.5})
  shown = capsys.readouterr().err
  assert 'step 4 of 4' in shown and 'step/s' not in shown
  assert '100%' in shown and 'loss 0.5000' in shown
  assert not logged


def test_config_differences_are_named(tmp_path):
  first = {'total_steps': 10, 'optim': {'lr': 0.1, 'betas': [0.9, 0.95]}}
  assert config.write_config(tmp_path, json.dumps(first)) == []
  assert config.write_config(tmp_path, json.dumps(first)) == []
  second = {'total_steps': 20, 'optim': {'lr': 0.2, 'betas': [0.9, 0.95]}}
  assert config.write_config(tmp_path, json.dumps(second)) == [
    'total_steps: 20, was 10',
    'optim.lr: 0.2, was 0.1',
  ]
  assert json.loads((tmp_path / 'config.json').read_text()) == second


class Bucket(memory.MemoryFileSystem):
  """gs:// in the memory of this process."""

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(str(path).removeprefix('gs:/'))


def test_a_workdir_on_a_bucket(monkeypatch):
  """What can't be appended to is copied whole, by sync and at the end."""
  bucket = Bucket()
  backend = type(epath.Path('gs://b')._backend)
  monkeypatch.setattr(backend, 'fs', lambda self, path: bucket)
  workdir = 'gs://bucket/run'
  assert metrics.read(workdir) == []
  config.write_config(workdir, '{"a": 1}')
  assert config.write_config(workdir, '{"a": 2}') == ['a: 2, was 1']
  with metrics.MetricWriter(workdir) as writer:
    for step in (1, 2, 3):
      writer.write(step, {'loss': 0.5})
      if step == 2:
        writer.sync()
        assert [row['step'] for row in metrics.read(workdir)] == [1, 2]
  with metrics.MetricWriter(workdir, start_step=2, tensorboard=False) as writer:
    writer.write(3, {'loss': 0.25})
  assert [row['loss'] for row in metrics.read(workdir)] == [0.5, 0.5, 0.25]
  assert len(bucket.glob('/bucket/run/tensorboard/*')) == 1
