"""The embedded pictures on disk: made once, by whoever asks, or in memory."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ijepa_jax.data.scenes import rendered, scene
from ijepa_jax.errors import UserError
from tests import fake_sources


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """The folder in which images are kept; it is not there yet."""
  folder = tmp_path / 'cache'
  monkeypatch.setenv('IJEPA_JAX_CACHE', str(folder))
  return folder


def test_second_load_reads_the_file(cache, monkeypatch):
  first, labels = rendered.rendered_images('scenes', 0, 5)
  (path,) = cache.iterdir()  # and no temporary one
  assert f'v{scene.VERSION}' in path.name
  monkeypatch.setattr(rendered, '_render_all', None)
  second, labels_again = rendered.rendered_images('scenes', 0, 5)
  np.testing.assert_array_equal(first, second)
  np.testing.assert_array_equal(labels, labels_again)


def _truncate(path):
  path.write_bytes(path.read_bytes()[:-1000])


def _empty(path):
  path.write_bytes(b'')


def _not_an_array(path):
  path.write_bytes(b'PK\x03\x04 something else')


def _another_array(path):
  with open(path, 'wb') as file:
    np.save(file, np.zeros((5, 48, 48, 3), np.uint8))


def _another_seed(path):
  rendered.rendered_images('scenes', 1, 5)
  os.replace(path.with_name(path.name.replace('seed0', 'seed1')), path)


@pytest.mark.parametrize(
  'damage', [_truncate, _empty, _not_an_array, _another_array, _another_seed]
)
def test_a_damaged_or_foreign_file_is_made_again(cache, damage):
  images, _ = rendered.rendered_images('scenes', 0, 5)
  expected = images.copy()
  del images
  (path,) = cache.iterdir()
  damage(path)
  with pytest.warns(RuntimeWarning, match='damaged or foreign'):
    images, _ = rendered.rendered_images('scenes', 0, 5)
  np.testing.assert_array_equal(images, expected)
  # Without another warning, which would be an error.
  again, _ = rendered.rendered_images('scenes', 0, 5)
  np.testing.assert_array_equal(again, expected)


def test_without_a_folder_the_images_stay_in_memory(cache, monkeypatch):
  cache.write_text('not a folder')
  monkeypatch.setenv('IJEPA_JAX_CACHE', str(cache / 'inside'))
  with pytest.warns(RuntimeWarning, match='IJEPA_JAX_CACHE') as caught:
    images, _ = rendered.rendered_images('crowd', 0, 2)
  assert len(caught) == 1
  np.testing.assert_array_equal(images[1], scene.render('crowd', 0, 1)[0])


def test_dead_workers_cost_time_only(monkeypatch):
  monkeypatch.setattr(rendered, '_render', fake_sources.die)
  with pytest.warns(RuntimeWarning, match='in this process'):
    images, _ = rendered.rendered_images('scenes', 0, 256, processes=2)
  np.testing.assert_array_equal(images[255], scene.render('scenes', 0, 255)[0])


def test_processes_at_once_in_a_script_without_a_main_guard(tmp_path, cache):
  """Two scripts fill one cache; neither they nor their workers need jax."""
  script = tmp_path / 'script.py'
  script.write_text(
    'import os, sys, warnings\n'
    "warnings.simplefilter('error')  # such as of workers that died\n"
    'from ijepa_jax.data.scenes import rendered\n'
    "print('started')\n"
    "images, _ = rendered.rendered_images('scenes', 0, 256, processes=2)\n"
    "print(int(images.sum()), 'jax' in sys.modules)\n"
  )
  root = str(pathlib.Path(__file__).parents[3])
  runs = [
    subprocess.Popen(
      [sys.executable, script],
      stdout=subprocess.PIPE,
      env=os.environ | {'PYTHONPATH': root},
    )
    for _ in range(2)
  ]
  printed = [run.communicate(timeout=60)[0].decode().split() for run in runs]
  images, _ = rendered.rendered_images('scenes', 0, 256)
  expected = ['started', str(int(images.sum())), 'False']
  assert printed == [expected, expected]
  assert len(list(cache.iterdir())) == 1


def test_load_names_mistakes_too():
  with pytest.raises(UserError, match='count is 0'):
    rendered.rendered_images('scenes', 0, 0)
  with pytest.raises(UserError, match='processes is 0'):
    rendered.rendered_images('scenes', 0, 3, processes=0)
  with pytest.raises(UserError, match='flavour is'):
    rendered.rendered_images('sceens', 0, 3)
