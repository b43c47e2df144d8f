"""The loop of every training: what is saved, recorded, traced and refused."""

import contextlib
import dataclasses
import gzip
import types

import jax
import numpy as np
import pytest

from configs import tiny
from ijepa_jax.data import loader
from ijepa_jax.errors import UserError
from ijepa_jax.runtime import metrics, preemption
from ijepa_jax.train import compile, loop, pretrain
from ijepa_jax.train.run import Run


@dataclasses.dataclass
class State:
  step: int = 0


class Checkpoints:
  keeps_best = False

  def __init__(self, every):
    self.every, self.saved = every, []

  def steps(self):
    return self.saved

  def wait(self):
    pass

  def should_save(self, step):
    return step % self.every == 0

  def save(self, step, state, values):
    assert state.step == step
    self.saved.append(step)


class Writer(metrics.MetricWriter):
  def __init__(self, checkpoints):
    super().__init__('', enabled=False)
    self.checkpoints, self.synced = checkpoints, []

  def sync(self):
    self.synced.append(list(self.checkpoints.saved))


def make_run():
  return Run(
    method=types.SimpleNamespace(batch_keys=('x',)),
    tx=None,
    schedules={'lr': lambda step: 0.1},
    mesh=None,
    image_shape=(8, 8, 3),
    batch_size=4,
    total_steps=9,
    seed=0,
    advice='try a lower optim.peak_lr.',
  )


@pytest.fixture
def train(monkeypatch):
  """(batches, step, checkpoints) -> the loop has run."""

  def run(batches, step, checkpoints):
    monkeypatch.setattr(
      loader, 'device_batches', lambda *_, **__: contextlib.nullcontext(batches)
    )
    monkeypatch.setattr(compile, 'compile_steps', lambda *_: {((4,),): step})
    writer = Writer(checkpoints)
    watched = preemption.Preemption()
    loop.train(make_run(), State(), None, None, checkpoints, writer, watched)
    return writer

  return run


def batches(count):
  for _ in range(count):
    yield {'x': np.zeros(4)}


def good_step(state, batch):
  return State(state.step + 1), {'loss': 1.0, 'grad_norm': 1.0}


def test_metrics_are_copied_after_each_save(train):
  """On a bucket a killed run loses no line that its checkpoint has."""
  checkpoints = Checkpoints(every=4)
  writer = train(batches(9), good_step, checkpoints)
  assert writer.synced == [[4], [4, 8], [4, 8, 9]]


@pytest.mark.parametrize('spoilt', ['loss', 'grad_norm'])
def test_what_is_not_finite_is_not_saved(spoilt, train):
  """The gradient is the first to go; the state after it is lost already."""

  def step(state, batch):
    state, values = good_step(state, batch)
    if state.step == 3:
      values[spoilt] = float('nan')
    return state, values

  checkpoints = Checkpoints(every=1)
  with pytest.raises(loop.NotFinite, match=r'At step 3 .* nan.* is 2: .*peak'):
    train(batches(9), step, checkpoints)
  assert checkpoints.saved == [1, 2]


@pytest.mark.parametrize('error', [UserError('5 of 40'), OSError('a bug')])
def test_a_loader_that_fails_loses_nothing(error, train):
  """What was learned until then is saved; the error stays what it is."""

  def failing():
    yield from batches(3)
    raise error

  checkpoints = Checkpoints(every=2)
  with pytest.raises(type(error)) as raised:
    train(failing(), good_step, checkpoints)
  assert raised.value is error
  assert checkpoints.saved == [2, 3]


def test_a_batch_left_on_the_host_is_refused(train):
  """A step that copies its batch would wait for it each time."""
  compiled = jax.jit(lambda x: x.sum())

  def step(state, batch):
    compiled(batch['x'])
    return good_step(state, batch)

  with pytest.raises(Exception, match=r'[Dd]isallowed host-to-device'):
    train(batches(9), step, Checkpoints(every=9))


def tiny_config(**changes):
  c = tiny.get_config()
  c.batch_size, c.total_steps = 16, 6
  c.data.count, c.model.depth, c.mask.sampler = 100, 1, 'rasterized'
  c.probe.every_steps = c.health.every_steps = 0
  c.log.tensorboard = False
  c.update_from_flattened_dict(changes)
  return c


def test_a_trace_of_some_steps(tmp_path):
  """TensorBoard and Perfetto have what they open."""
  pretrain.run(tiny_config(**{'profile.steps': (3, 4)}), tmp_path)
  (folder,) = (tmp_path / 'profile/plugins/profile').iterdir()
  (trace,) = folder.glob('*perfetto_trace.json.gz')
  assert b'traceEvents' in gzip.decompress(trace.read_bytes())
  assert list(folder.glob('*.xplane.pb'))


def test_a_trace_that_ends_before_it_begins(tmp_path):
  with pytest.raises(UserError, match=r'profile.steps is \(4, 3\)'):
    pretrain.run(tiny_config(**{'profile.steps': (4, 3)}), tmp_path)


@pytest.mark.parametrize('attention', ['cudnn', 'pallas'])
def test_attention_of_other_devices_is_refused(tmp_path, attention):
  config = tiny_config(
    **{
      'model.attention': attention,
      'model.width': 128,
      'model.predictor_width': 128,
    }
  )
  with pytest.raises(
    UserError, match=f'{attention}.* of the kind cpu: take xla'
  ):
    pretrain.run(config, tmp_path)
