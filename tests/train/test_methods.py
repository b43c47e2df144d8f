"""Whole runs of methods of pixels, and of I-JEPA with terms of its own.

Stopped and split they are the same, and whatever reads a run reads theirs.
"""

import dataclasses
import importlib
import json
import pathlib

import jax
import numpy as np
import optax
import pytest

import ijepa_jax
from configs.evals import knn as knn_config
from ijepa_jax.convert import export
from ijepa_jax.data import loader
from ijepa_jax.errors import UserError
from ijepa_jax.evals import knn
from ijepa_jax.pretrained import load
from ijepa_jax.runtime import metrics, sharding
from ijepa_jax.train import compile, initial_state, pretrain
from ijepa_jax.train.run import make_run
from tests.close import TRAINED, close, trees_close
from tests.train import test_pretrain
from tests.train.test_pretrain import assert_same, losses, params

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
CHANGES = {
  'pixels': {'method': 'pixels'},
  'mae': {'method': 'mae', 'mae.decoder_depth': 1, 'mae.decoder_width': 32},
  'terms': {
    'loss.variance': 0.1,
    'loss.covariance': 0.1,
    'loss.position_noise': 0.25,
    'loss.target_layers': 2,
  },
}


def make_config(name, **changes):
  """6 steps, a checkpoint after 3."""
  return test_pretrain.make_config(
    **{
      'total_steps': 6,
      'optim.warmup_steps': 2,
      'checkpoint.every_steps': 3,
      'data.count': 100,
      **CHANGES[name],
      **changes,
    }
  )


@pytest.fixture(scope='module', autouse=True)
def alone(on_one_device):
  """But where devices are given."""
  with on_one_device():
    yield


@pytest.fixture(
  scope='module',
  # The masked autoencoder is of pixels, with other masks.
  params=['pixels', 'terms', pytest.param('mae', marks=pytest.mark.slow)],
)
def straight(request, tmp_path_factory):
  """(name, workdir) of a run without a stop."""
  workdir = tmp_path_factory.mktemp(request.param)
  pretrain.run(make_config(request.param), workdir)
  return request.param, workdir


def test_a_run_that_stops_goes_on_bit_for_bit(straight, tmp_path):
  name, workdir = straight
  half = make_config(name)
  half.total_steps, half.optim.schedule_scale = 3, 2.0
  pretrain.run(half, tmp_path)
  pretrain.run(make_config(name), tmp_path)
  assert losses(tmp_path) == losses(workdir)
  config = make_config(name)
  assert_same(params(config, tmp_path), params(config, workdir))


@pytest.mark.parametrize(
  'name',
  ['pixels', 'terms', pytest.param('mae', marks=pytest.mark.slow)],
)
def test_eight_devices_equal_one(name, cpus):
  """Three steps, the state split and not."""
  wide = {'model.width': 128, 'model.heads': 4}
  results = []
  for devices, fsdp in ((cpus[:1], 1), (cpus, 4)):
    run = make_run(make_config(name, **wide))
    mesh = sharding.make_mesh(data=-1, fsdp=fsdp, devices=devices)
    run = dataclasses.replace(run, mesh=mesh)
    abstract, make_state = compile.abstract_state(run)
    steps = compile.compile_steps(run, abstract)
    state, values = make_state(jax.random.key(0)), []
    batches = loader.device_batches(
      run.batches(0), mesh, *run.method.batch_keys
    )
    with batches as batches:
      for _ in range(3):
        batch = next(batches)
        state, found = steps[compile.batch_shape(run, batch)](state, batch)
        values.append(float(found['loss']))
    mu = optax.tree_utils.tree_get(state.opt_state, 'mu')
    results.append((values, jax.device_get(mu)))
  (one, mu_one), (eight, mu_eight) = results
  close(eight, one, TRAINED)
  trees_close(mu_eight, mu_one, TRAINED)


# ---- What reads a run: MAE's, since that of pixels is of the same class ----


@pytest.fixture(scope='module')
def mae(images, tmp_path_factory):
  """A run with a probe, signals and a report."""
  workdir = tmp_path_factory.mktemp('mae')
  config = make_config('mae', **{'total_steps': 3, 'data.count': 20_000})
  config.data.source, config.data.path = 'folder', str(images)
  config.probe.every_steps, config.probe.split = 3, 'test'
  config.health.images, config.health.every_steps = 16, 3
  pretrain.run(config, workdir)
  return config, workdir


def test_probe_health_and_report(mae):
  _, workdir = mae
  last = metrics.read(workdir)[-1]
  assert {'probe/label', 'health/loss', 'health/explained'} <= set(last)
  assert not {'health/gap', 'momentum'} & set(last)
  report = json.loads((workdir / 'report.json').read_text())
  assert 'encoder, trained' in report
  assert 'target encoder, trained' not in report
  close(report['encoder, trained']['probe/label'], last['probe/label'])


def test_load_encoder_takes_the_encoder(mae, images, caplog):
  """That which was trained, under every name; no warning."""
  config, workdir = mae
  run = make_run(config)
  pixels = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), np.uint8)
  assert run.method.encoder.product_dtype == np.float32  # on a CPU
  state = params(config, workdir)
  assert state.target is None
  expected = run.method.encode(state.params['encoder'], pixels).mean(1)
  for which in 'target', 'context':
    encoder = ijepa_jax.load_encoder(workdir, which=which)
    close(encoder.features(pixels), expected)
    assert encoder.name.endswith('step 3, encoder of mae')
  untrained = ijepa_jax.load_encoder(workdir, which='untrained')
  assert np.abs(untrained.features(pixels) - expected).max() > 1e-3
  assert 'alone' not in caplog.text


def test_an_evaluation_of_it(mae, images, tmp_path):
  _, workdir = mae
  config = knn_config.get_config()
  config.init_from, config.task = str(workdir), 'folder'
  config.data.path, config.data.test = str(images), 'test'
  config.data.workers, config.batch_size, config.knn.ks = 0, 16, (3,)
  assert knn.run(config, tmp_path)['accuracy']['knn'] > 0.9


@pytest.mark.parametrize('to', ['orbax', 'huggingface'])
def test_it_is_handed_on(to, mae, tmp_path):
  config, workdir = mae
  out = tmp_path / to
  summary = export.export(workdir, out, to)
  assert 'bit-equal' in summary and 'predictor' not in summary
  back = load.read_weights(out)
  assert set(back.params) == {'encoder'}
  assert_same(back.params['encoder'], params(config, workdir).params['encoder'])
  card = (out / 'README.md').read_text()
  assert 'the method `mae`' in card and '75% of the patches hidden' in card
  pixels = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), np.uint8)
  close(
    ijepa_jax.load_encoder(out).features(pixels),
    ijepa_jax.load_encoder(workdir).features(pixels),
  )


@pytest.mark.parametrize(
  ('to', 'options', 'words'),
  [
    ('release', {}, "method mae, .* has I-JEPA's networks: take --to=orbax"),
    ('orbax', {'optimizer': True}, 'no state of AdamW that can be taken'),
    ('huggingface', {'which': 'target'}, 'no target encoder'),
  ],
)
def test_what_can_not_be_handed_on(to, options, words, mae, tmp_path):
  with pytest.raises(UserError, match=words):
    export.export(mae[1], tmp_path / 'out', to, **options)
  assert not list(tmp_path.iterdir())


def test_another_method_does_not_go_on(mae):
  config, workdir = mae
  for name in 'ijepa', 'pixels':
    other = config.copy_and_resolve_references()
    other.method, other.total_steps = name, 9
    with pytest.raises(UserError, match=f'method is {name}, .* with mae'):
      pretrain.run(other, workdir)


def begin(config, path):
  config.init_from = str(path)
  run = make_run(config)
  abstract, make_state = compile.abstract_state(run)
  return initial_state.state_from_weights(run, abstract, make_state), make_state


def test_a_run_begins_with_another_methods_encoder(mae, small_run, caplog):
  """MAE with I-JEPA's target encoder, and I-JEPA with MAE's."""
  config, workdir = mae
  state, make_state = begin(config.copy_and_resolve_references(), small_run)
  stored = load.read_weights(small_run).params
  assert_same(jax.device_get(state.params['encoder']), stored['target'])
  assert state.target is None
  fresh = make_state(jax.random.key(config.seed)).params['predictor']
  assert_same(state.params['predictor'], fresh)
  assert 'predictor' not in caplog.text
  # The other way round; nothing says that an encoder is missing of MAE itself.
  ijepa = test_pretrain.make_config()
  state, _ = begin(ijepa, workdir)
  encoder = params(config, workdir).params['encoder']
  assert_same(jax.device_get(state.params['encoder']), encoder)
  assert_same(jax.device_get(state.target), encoder)
  assert 'has no predictor' in caplog.text


def test_the_optimizer_of_another_method(mae, small_run):
  config = mae[0].copy_and_resolve_references()
  config.init_optimizer = True
  with pytest.raises(UserError, match='that mae can take: set init_optimizer'):
    begin(config, small_run)


def test_the_recipe_of_mae():
  """ImageNet's, with the published rates."""
  module = importlib.import_module('configs.mae_b16')
  assert '--config=configs/mae_b16.py' in module.__doc__
  config = module.get_config()
  run = make_run(config, open_images=False)
  assert run.method.name == 'mae'
  assert run.method.sampler.shapes == ((49, 147),)
  close(run.schedules['lr'](config.optim.warmup_steps), 1.5e-4 * 4096 / 256)
  assert run.schedules['weight_decay'](1) == 0.05
