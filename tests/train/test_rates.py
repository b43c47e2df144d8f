"""Images a second on a device that computes while the loop goes on.

Time is a number here: a step takes one second on the device from when the one
before it is done, and next to nothing to start; its results are waited for.
"""

import contextlib
import types

import numpy as np
import pytest

from ijepa_jax.data import loader
from ijepa_jax.runtime import preemption, progress
from ijepa_jax.train import compile, loop
from ijepa_jax.train.run import Run
from tests.close import close

START, STEP, LOOK, SAVE, DATA = 0.001, 1.0, 7.0, 5.0, 0.002


class Device:
  """`now` is the clock of the host, `done` when the device will be free."""

  def __init__(self):
    self.now = self.done = 100.0

  def step(self, state, batch):
    self.now += START
    self.done = max(self.now, self.done) + STEP
    values = {k: Later(self) for k in ('loss', 'grad_norm')}
    return types.SimpleNamespace(step=state.step + 1), values

  def wait(self, until=None):
    self.now = max(self.now, until or self.done)

  def batches(self):
    while True:
      self.now += DATA
      mask = np.zeros((8, 1, 3), np.int32)
      yield {'context': mask, 'targets': mask}

  def look(self, state):
    self.wait()
    self.now += LOOK
    return {'health/rankme': 1.0}


class Later:
  """A number that is there when the device is done with it."""

  def __init__(self, device):
    self.device, self.done = device, device.done

  def __array__(self, *args, **kwargs):
    self.device.wait(self.done)
    return np.asarray(0.5)


class Checkpoints:
  def __init__(self, device, every):
    self.device, self.every, self.saved = device, every, []

  keeps_best = False

  def steps(self):
    return self.saved

  def should_save(self, step):
    return step % self.every == 0

  def wait(self):
    pass

  def save(self, step, state, values=None):
    self.device.wait()
    self.device.now += SAVE
    self.saved.append(step)


class Writer:
  def __init__(self, device):
    self.device, self.rows, self.folder = device, {}, None

  def write(self, step, values):
    self.rows[step] = values

  def sync(self):
    self.device.now += SAVE


@pytest.fixture
def device(monkeypatch):
  found = Device()
  for name in ('perf_counter', 'monotonic'):
    monkeypatch.setattr(progress.time, name, lambda: found.now)
  monkeypatch.setattr(
    loader,
    'device_batches',
    lambda *_, **__: contextlib.nullcontext(found.batches()),
  )
  return found


def rows_of(device):
  checkpoints, writer = Checkpoints(device, 9), Writer(device)
  state = types.SimpleNamespace(step=0)
  run = Run(
    method=types.SimpleNamespace(batch_keys=('context', 'targets')),
    tx=None,
    schedules={'lr': float, 'weight_decay': float},
    mesh=None,
    image_shape=(8, 8, 3),
    batch_size=8,
    total_steps=30,
    seed=0,
    advice='',
  )
  monitors = [(5, device.look), (7, device.look)]
  loop.train(
    *(run, state, None, None, checkpoints, writer, preemption.Preemption()),
    monitors,
  )
  return writer.rows


def test_what_looks_at_a_run_is_not_counted(device, monkeypatch):
  """Looks, saves and copies stand in no step's rate, and speed none up."""
  monkeypatch.setattr(
    compile, 'compile_steps', lambda *_: {((8, 1, 3),) * 2: device.step}
  )
  rows = rows_of(device)
  assert list(rows) == list(range(1, 31))
  for step, row in rows.items():
    close(row['images_per_second'], 8 / STEP, 0.01, name=f'step {step}')
    assert row['data_wait_share'] < 0.01, step
  assert any('health/rankme' in row for row in rows.values())
  # Looks after 5, 7, 10, ... before the last row; saves after 9, 18 and 27, and
  # what was saved is copied.
  last = {k: v for k, v in rows[30].items() if k.startswith('seconds/')}
  close(last['seconds/steps'] + last['seconds/data'], 30 * STEP, 0.01)
  close(last['seconds/evaluate'], 9 * LOOK, 0.01)
  close(last['seconds/save'], 6 * SAVE, 0.01)
