"""Features: what the encoder gives, each image once, never another's."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from ijepa_jax.data.transforms.crop import CenterCrop
from ijepa_jax.errors import UserError
from ijepa_jax.evals import features
from ijepa_jax.pretrained import load, stored_arrays
from ijepa_jax.pretrained.formats import huggingface, weights
from ijepa_jax.runtime import sharding
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.runtime.config import write_config
from ijepa_jax.train.run import make_run
from tests.close import close

SOURCE_COUNT = 45


def make_config():
  c = tiny.get_config()
  c.data.count = SOURCE_COUNT
  c.model.width, c.model.depth, c.model.heads = 32, 5, 2
  c.batch_size = 8
  return c


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, untrained_run):
  """Two checkpoints, in the second the target unlike the context encoder."""
  path = tmp_path_factory.mktemp('run')
  state = untrained_run(make_config(), path)
  with checkpointer.Checkpointer(path / 'checkpoints') as checkpoints:
    target = jax.jit(lambda t: jax.tree.map(lambda x: x * 1.1, t))(state.target)
    checkpoints.save(2, dataclasses.replace(state, target=target))
  return path


@pytest.fixture(scope='module')
def source():
  return make_run(make_config()).source


def extract(frozen, source, cache, *, devices=None, crop=(48, 48), **kwargs):
  return features.extract(
    frozen,
    source,
    CenterCrop((crop[0], crop[0]), crop[1]),
    mesh=sharding.make_mesh(devices=devices),
    cache_dir=cache,
    batch_size=16,
    **kwargs,
  )


def test_they_are_the_encoders(workdir, source, tmp_path):
  frozen = load.load_frozen(workdir)
  assert '2, target' in frozen.name
  actual = extract(frozen, source, tmp_path)
  assert actual.last.shape == (SOURCE_COUNT, 32)
  assert actual.last4.shape == (SOURCE_COUNT, 4 * 32)
  images = np.stack([source[i]['image'] for i in range(SOURCE_COUNT)])
  tokens, layers = jax.jit(
    lambda p, x: frozen.encoder.apply(
      {'params': p}, frozen.normalize(x), layers='tokens'
    )
  )(frozen.params, images)
  close(actual.last, tokens.mean(1))
  norm = frozen.params['norm']
  x = layers[-4:]
  x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1)[..., None] + 1e-6)
  x = (x * norm['scale'] + norm['bias']).mean(2)
  expected = np.moveaxis(np.asarray(x), 0, 1).reshape(SOURCE_COUNT, -1)
  close(actual.last4, expected)
  labels = np.stack([source[i]['label'] for i in range(SOURCE_COUNT)])
  np.testing.assert_array_equal(actual.labels, labels)


def test_what_to_compare_with(workdir, source, tmp_path):
  """As the run began, and pixels."""
  untrained = load.load_frozen(workdir, which='untrained')
  before = load.load_frozen(workdir, step=1)
  assert untrained.fingerprint == before.fingerprint
  raw = load.load_frozen(workdir, which='pixels')
  pixels = extract(raw, source, tmp_path).last
  first = source[0]['image'].reshape(-1) / 255
  close(pixels[0], first)


def test_eight_devices_and_workers_change_nothing(
  workdir, source, tmp_path, cpus
):
  one = load.load_frozen(workdir, mesh=sharding.make_mesh(devices=cpus[:1]))
  first = extract(one, source, tmp_path / '1', devices=cpus[:1])
  eight = load.load_frozen(workdir, mesh=sharding.make_mesh(devices=cpus))
  assert eight.fingerprint == one.fingerprint
  second = extract(eight, source, tmp_path / '8', workers=1)
  close(first.last4, second.last4)
  np.testing.assert_array_equal(first.labels, second.labels)


def test_a_cache_belongs_to_one_encoder_data_set_and_transform(
  workdir, source, tmp_path
):
  frozen = load.load_frozen(workdir)
  again = extract(frozen, source, tmp_path)
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
  assert extract(frozen, source, tmp_path).key == again.key
  assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')} == before
  other_step = load.load_frozen(workdir, step=1)
  context = load.load_frozen(workdir, which='context')
  config = make_config()
  config.data.count = SOURCE_COUNT - 1
  shorter = make_run(config).source
  keys = {
    again.key,
    extract(other_step, source, tmp_path).key,
    extract(frozen, shorter, tmp_path).key,
    extract(frozen, source, tmp_path, crop=(48, 56)).key,
  }
  assert len(keys) == 4
  # The very same parameters: the target began as a copy.
  assert context.fingerprint == other_step.fingerprint


def test_an_interrupted_pass_goes_on(workdir, source, tmp_path, monkeypatch):
  frozen = load.load_frozen(workdir)
  straight = extract(frozen, source, tmp_path / 'straight')
  monkeypatch.setattr(stored_arrays, '_FLUSH', 1)
  to_global, calls = sharding.to_global, []

  def dying(batch, mesh):
    calls.append(1)
    if len(calls) == 3:
      raise RuntimeError('the power is gone')
    return to_global(batch, mesh)

  monkeypatch.setattr(sharding, 'to_global', dying)
  with pytest.raises(RuntimeError, match='power'):
    extract(frozen, source, tmp_path / 'broken')
  (note,) = (tmp_path / 'broken').rglob('done.json')
  assert json.loads(note.read_text())['rows'] == 16
  actual = extract(frozen, source, tmp_path / 'broken')
  assert len(calls) == 3 + 2  # the first of the three batches is not done again
  np.testing.assert_array_equal(actual.last, straight.last)
  np.testing.assert_array_equal(actual.labels, straight.labels)


def test_a_lost_array_is_computed_anew(workdir, source, tmp_path, monkeypatch):
  """Interrupted at that, it does not take the empty rows for features."""
  frozen = load.load_frozen(workdir)
  first = np.array(extract(frozen, source, tmp_path).last4)
  (path,) = tmp_path.rglob('last4.npy')
  path.unlink()

  def dying(batch, mesh):
    raise RuntimeError('the power is gone')

  with monkeypatch.context() as patch, pytest.raises(RuntimeError):
    patch.setattr(sharding, 'to_global', dying)
    extract(frozen, source, tmp_path)
  np.testing.assert_array_equal(extract(frozen, source, tmp_path).last4, first)


def test_a_hugging_face_folder(workdir, source, tmp_path):
  """Gives the features of the encoder that was written to it."""
  frozen = load.load_frozen(workdir)
  names = 'image_size', 'channels', 'mean', 'std'
  config = weights.encoder_sizes(frozen.encoder)
  config |= {k: getattr(frozen, k) for k in names}
  params = {'target': jax.device_get(frozen.params)}
  huggingface.write(tmp_path / 'hf', params, config)
  actual = load.load_frozen(tmp_path / 'hf')
  assert actual.name == 'hf, target encoder'
  assert actual.image_size == (48, 48)
  expected = extract(frozen, source, tmp_path / '1')
  again = extract(actual, source, tmp_path / '2')
  close(again.last4, expected.last4)
  with pytest.raises(UserError, match='only a training run'):
    load.load_frozen(tmp_path / 'hf', which='untrained')


@pytest.mark.parametrize(
  ('kwargs', 'words'),
  [
    ({'step': 7}, 'no checkpoint 7.*1, 2'),
    ({'which': 'teacher'}, "'teacher'"),
    ({'path': '/nowhere'}, 'There is nothing at /nowhere'),
  ],
)
def test_mistakes_are_told(workdir, kwargs, words):
  with pytest.raises(UserError, match=words):
    load.load_frozen(**{'path': workdir} | kwargs)


def test_another_model_is_told(workdir, tmp_path):
  config = make_config()
  config.model.width = 16
  (tmp_path / 'checkpoints').symlink_to(workdir / 'checkpoints')
  write_config(tmp_path, config.to_json_best_effort())
  with pytest.raises(UserError, match=r'another model.*target/'):
    load.load_frozen(tmp_path)
