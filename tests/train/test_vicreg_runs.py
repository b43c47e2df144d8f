"""Whole runs of VICReg: stopped and split they are the same; all read them."""

import importlib
import json
import pathlib

import jax
import numpy as np
import pytest

import ijepa_jax
from configs import tiny
from configs.evals import knn as knn_config
from ijepa_jax.convert import export
from ijepa_jax.data import loader
from ijepa_jax.errors import UserError
from ijepa_jax.evals import knn
from ijepa_jax.runtime import metrics
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.train import compile, health, pretrain
from ijepa_jax.train.run import make_run
from tests.close import FLOAT32, TRAINED, close

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


def make_config(images, **changes):
  """`tiny` with one block, on folders of red and blue noise."""
  c = tiny.get_config()
  c.method = 'vicreg'
  c.data.source, c.data.path = 'folder', str(images)
  c.batch_size, c.total_steps, c.model.depth = 16, 6, 1
  c.vicreg.projector = (32, 16)
  c.probe.every_steps, c.probe.split = 6, 'test'
  c.health.images, c.health.every_steps, c.health.split = 16, 3, 'test'
  c.checkpoint.every_steps = 3
  c.log.tensorboard = False
  c.update_from_flattened_dict(changes)
  return c


def losses(workdir):
  return [row['loss'] for row in metrics.read(workdir)]


def state_of(config, workdir):
  abstract, _ = compile.abstract_state(make_run(config))
  with checkpointer.Checkpointer(workdir / 'checkpoints') as checkpoints:
    state, _ = checkpoints.restore(abstract)
  return jax.device_get(state)


@pytest.fixture(scope='module', autouse=True)
def alone(on_one_device):
  """But where devices are given."""
  with on_one_device():
    yield


@pytest.fixture(scope='module')
def straight(images, tmp_path_factory):
  """Six steps, a probe, a report."""
  workdir = tmp_path_factory.mktemp('vicreg')
  pretrain.run(make_config(images), workdir)
  return workdir


def test_what_a_run_writes(straight):
  rows = metrics.read(straight)
  assert len(rows) == 6
  for row in rows:
    assert {'loss/invariance', 'loss/variance', 'loss/covariance'} < set(row)
    assert {'view_share', 'feature_std', 'grad_norm/projector'} < set(row)
    assert not {'momentum', 'health/gap_share'} & set(row)
  assert {'health/embedding_std', 'health/rankme', 'probe/label'} < set(
    rows[-1]
  )
  report = json.loads((straight / 'report.json').read_text())
  assert report['encoder, trained']['probe/label'] == 1.0


def test_stopped_half_way_it_is_the_same_run(straight, images, tmp_path):
  half = make_config(images, **{'total_steps': 3, 'optim.schedule_scale': 2.0})
  pretrain.run(half, tmp_path)
  config = make_config(images)
  pretrain.run(config, tmp_path)
  assert losses(tmp_path) == losses(straight)
  actual, expected = (state_of(config, w) for w in (tmp_path, straight))
  assert actual.target is None
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize(
  'regularizer', ['vicreg', pytest.param('sigreg', marks=pytest.mark.slow)]
)
def test_any_mesh_is_one_device(regularizer, images, cpus, tmp_path):
  """The batch split over eight devices, the state over four, and neither."""
  # Wide enough to be split.
  wide = {'model.width': 256, 'model.mlp_dim': 1024, 'total_steps': 3}
  wide |= {'vicreg.regularizer': regularizer, 'vicreg.slices': 32}
  wide |= {'probe.every_steps': 0, 'health.every_steps': 0}
  results = []
  for devices, fsdp in (cpus[:1], 1), (cpus, 4):
    config = make_config(images, **wide, **{'mesh.fsdp': fsdp})
    run = make_run(config, devices)
    abstract, make_state = compile.abstract_state(run)
    (step,) = compile.compile_steps(run, abstract).values()
    state, seen = make_state(jax.random.key(0)), []
    kernel = state.params['encoder']['blocks']['fc1']['kernel']
    assert kernel.addressable_shards[0].data.size == kernel.size // fsdp
    with loader.device_batches(run.batches(0), run.mesh, 'image') as batches:
      for _ in range(3):
        state, values = step(state, next(batches))
        seen.append(float(values['loss']))
    results.append(seen)
  one, eight = results
  close(eight[0], one[0], 1e-5)
  close(eight, one, TRAINED)


def test_everything_reads_it(straight, images, tmp_path):
  """load_encoder, exports, an evaluation; the projector stays behind."""
  pictures = sorted((images / 'test' / 'red').iterdir())[:2]
  encoder = ijepa_jax.load_encoder(straight)
  features = encoder.features(pictures)
  assert features.shape == (2, 64)
  untrained = ijepa_jax.load_encoder(straight, which='untrained')
  assert np.abs(untrained.features(pictures) - features).max() > 0.01
  for to in 'orbax', 'huggingface':
    out = tmp_path / to
    words = export.export(straight, out, to)
    assert 'encoder' in words and 'projector' not in words
    exported = ijepa_jax.load_encoder(out)
    close(exported.features(pictures), features, FLOAT32)
    card = (out / 'README.md').read_text()
    assert 'vicreg' in card and 'target encoder' not in card
  with pytest.raises(UserError, match='method vicreg'):
    export.export(straight, tmp_path / 'a.pth.tar', 'release')
  c = knn_config.get_config()
  c.init_from, c.task, c.data.path = str(straight), 'folder', str(images)
  c.data.test, c.data.workers, c.batch_size, c.knn.ks = 'test', 0, 16, (3,)
  assert knn.run(c, tmp_path / 'evals')['accuracy'] == {'knn': 1.0}


def test_a_run_begins_with_its_encoder(straight, images, tmp_path):
  """With a projector of its own."""
  changes = {'init_from': str(straight), 'total_steps': 1, 'seed': 1}
  changes |= {'optim.start_lr': 0.0, 'optim.warmup_steps': 10**6}
  changes |= {'probe.every_steps': 0, 'health.every_steps': 0}
  state = pretrain.run(make_config(images, **changes), tmp_path)
  expected = state_of(make_config(images), straight).params
  for x, y in zip(
    *map(jax.tree.leaves, (state.params['encoder'], expected['encoder'])),
    strict=True,
  ):
    close(x, y, within=1e-6)
  kernel = state.params['projector']['fc1']['kernel']
  assert np.abs(kernel - expected['projector']['fc1']['kernel']).max() > 0.1


@pytest.mark.parametrize('channels', [1, 2])
def test_images_of_other_channels(channels, tmp_path, caplog):
  noise = np.random.default_rng(0)
  folder = tmp_path / 'images'
  folder.mkdir()
  for i in range(16):
    array = noise.integers(0, 256, (50, 50, channels)).astype(np.uint8)
    np.save(folder / f'{i}.npy', array)
  changes = {'data.channels': channels, 'total_steps': 1}
  changes |= {'data.mean': (0.5,) * channels, 'data.std': (0.5,) * channels}
  changes |= {'data.split': '', 'probe.every_steps': 0, 'health.every_steps': 0}
  state = pretrain.run(make_config(folder, **changes), tmp_path / 'run')
  assert state.step == 1
  told = f'Images of {channels} channels are cropped and flipped alone'
  assert (told in caplog.text) == (channels == 2)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'accumulate': 2}, 'accumulate is 2, .*statistics of the whole batch'),
    ({'vicreg.regularizer': 'barlow'}, 'take one of vicreg, sigreg'),
    ({'vicreg.num_views': 1}, r'vicreg\.num_views is 1: take 2'),
    ({'vicreg.crop_scale': (0.5, 0.3)}, r'crop_scale is \(0\.5, 0\.3\)'),
    ({'vicreg.sigreg': 1.5}, r'vicreg\.sigreg is 1\.5.* up to 1'),
    ({'vicreg.projector': (0,)}, r'vicreg\.projector is \(0,\): take 1'),
    ({'data.grey': 0.2}, r"data\.grey is 0\.2, which .*'vicreg' does not"),
  ],
)
def test_mistakes_are_told_before_anything_is_written(
  changes, words, images, tmp_path
):
  with pytest.raises(UserError, match=words):
    pretrain.run(make_config(images, **changes), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_run_of_another_method_does_not_go_on(straight, images):
  config = make_config(images, method='ijepa', total_steps=9)
  with pytest.raises(UserError, match=r'method is ijepa, .* with vicreg'):
    pretrain.run(config, straight)


def test_collapse_rings(images):
  method = make_run(make_config(images)).method
  healthy = {'embedding_std': 0.8, 'embedding_correlation': 0.1}
  assert health.alarms(healthy, method) == {}
  rung = health.alarms(
    {'embedding_std': 0.02, 'embedding_correlation': 0.9}, method
  )
  assert 'vicreg.variance' in rung['embedding_std']
  assert 'vicreg.covariance' in rung['embedding_correlation']


@pytest.mark.parametrize(
  'path',
  sorted(p.stem for r in ('vicreg', 'sigreg') for p in CONFIGS.glob(f'{r}_*')),
)
def test_recipes_make_sense(path):
  module = importlib.import_module(f'configs.{path}')
  assert f'--config=configs/{path}.py' in module.__doc__
  config = module.get_config()
  run = make_run(config, open_images=False)
  assert run.method.regularizer == path.split('_')[0]
  assert run.reading.transform.num_views == run.method.num_views
  assert 0 < config.optim.warmup_steps < config.total_steps
