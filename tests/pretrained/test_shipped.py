"""Models that come with the package, by name."""

import pathlib

import numpy as np
import pytest
import yaml

import ijepa_jax
from configs.evals import knn as knn_config
from ijepa_jax.data.scenes import rendered
from ijepa_jax.errors import UserError
from ijepa_jax.evals import knn as knn_job
from ijepa_jax.pretrained import load, shipped

BYTES = 3_000_000  # of all models, in a package that is installed in a minute


def files_of(folder):
  return sorted(p for p in pathlib.Path(folder).rglob('*') if p.is_file())


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.parametrize('name', ijepa_jax.pretrained_names())
def test_every_model_says_what_it_is(name):
  folder = shipped.FOLDER / name
  _, front, text = (folder / 'README.md').read_text().split('---\n', 2)
  assert yaml.safe_load(front)['license'] == 'apache-2.0'
  assert '## Evaluation' in text
  # No path of whoever trained it.
  config = (folder / 'config.json').read_text()
  assert '"/' not in config and '"~' not in config


def test_they_are_small():
  folder = shipped.FOLDER
  assert sum(p.stat().st_size for p in files_of(folder)) < BYTES


def test_tiny_scenes_knows_classes(elsewhere, one):
  """Better than untrained by far, on pictures of a seed of their own."""
  images, labels = rendered.rendered_images('scenes', seed=9, count=600)
  labels = labels[:, 0]
  accuracy = {}
  for which in 'target', 'untrained':
    encoder = ijepa_jax.load_encoder('tiny-scenes', which=which, mesh=one)
    x = encoder.features(list(images))
    assert x.shape == (600, 64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    nearest = (x[400:] @ x[:400].T).argmax(1)
    accuracy[which] = np.mean(labels[nearest] == labels[400:])
  assert accuracy['target'] > accuracy['untrained'] + 0.15


def test_a_job_leaves_the_package_as_it_is(elsewhere, images):
  before = files_of(shipped.FOLDER)
  config = knn_config.get_config()
  config.init_from, config.task = 'tiny-scenes', 'folder'
  config.data.update(path=str(images), test='test', workers=0)
  knn_job.run(config, '')
  assert (elsewhere / 'tiny-scenes.evals').is_dir()
  assert files_of(shipped.FOLDER) == before


def test_places_of_results(elsewhere):
  """In a run, beside a file, and never in the package."""
  (elsewhere / 'run').mkdir()
  (elsewhere / 'a.pth.tar').write_text('')
  shown = shipped.FOLDER / 'tiny-scenes'
  for given, expected in {
    'run': 'run/evals',
    'run/': 'run/evals',
    'a.pth.tar': 'a.pth.tar.evals',
    'a.pth.tar/': 'a.pth.tar.evals',
    'tiny-scenes': 'tiny-scenes.evals',
    str(shown): 'tiny-scenes.evals',
  }.items():
    path, out = shipped.places(given, '', 'evals')
    assert path.exists()
    assert str(out) == str(elsewhere / expected)
  _, out = shipped.places('run', 'other', 'evals')
  assert str(out) == str(elsewhere / 'other')


def test_a_folder_of_that_name_goes_before(elsewhere):
  assert load.detect_format('tiny-scenes') == 'orbax'
  (elsewhere / 'tiny-scenes').write_text('')
  assert load.detect_format('tiny-scenes') == 'release'


def test_another_name_is_refused_with_those_there_are(elsewhere):
  config = knn_config.get_config()
  config.init_from = 'tiny-scene'
  with pytest.raises(UserError, match='package itself has tiny-scenes'):
    knn_job.run(config, '')
  with pytest.raises(UserError, match='tiny-scenes'):
    ijepa_jax.load_encoder('tiny-scene')
