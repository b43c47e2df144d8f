"""The embedded pictures on disk: made once, by whoever asks, or in memory."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ijepa_jax.data.scenes import rendered, scene
from ijepa_jax.errors import UserError


def test_second_load_reads_the_file(tmp_path, monkeypatch):
  first, labels = rendered.rendered_images('scenes', 0, 5, tmp_path)
  (path,) = tmp_path.iterdir()  # and no temporary one
  assert f'v{scene.VERSION}' in path.name
  monkeypatch.setattr(rendered, '_make', None)
  second, labels_again = rendered.rendered_images('scenes', 0, 5, tmp_path)
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
  other = path.parent / 'other'
  rendered.rendered_images('scenes', 1, 5, other)
  os.replace(next(other.iterdir()), path)


@pytest.mark.parametrize(
  'damage', [_truncate, _empty, _not_an_array, _another_array, _another_seed]
)
def test_a_damaged_or_foreign_file_is_made_again(tmp_path, damage):
  images, _ = rendered.rendered_images('scenes', 0, 5, tmp_path)
  expected = images.copy()
  del images
  path = next(tmp_path.iterdir())
  damage(path)
  with pytest.warns(RuntimeWarning, match='damaged or foreign'):
    images, _ = rendered.rendered_images('scenes', 0, 5, tmp_path)
  np.testing.assert_array_equal(images, expected)
  again, _ = rendered.rendered_images(
    'scenes', 0, 5, tmp_path
  )  # warnings would be new
  np.testing.assert_array_equal(again, expected)


def test_without_a_folder_the_images_stay_in_memory(tmp_path):
  blocked = tmp_path / 'file'
  blocked.write_text('not a folder')
  with pytest.warns(RuntimeWarning, match='IJEPA_JAX_CACHE') as caught:
    images, _ = rendered.rendered_images('crowd', 0, 2, blocked / 'cache')
  assert len(caught) == 1
  np.testing.assert_array_equal(images[1], scene.render('crowd', 0, 1)[0])


def test_dead_workers_cost_time_only(tmp_path, monkeypatch):
  monkeypatch.setattr(rendered.sys, 'executable', 'no-such-python')
  with pytest.warns(RuntimeWarning, match='in this process'):
    images, _ = rendered.rendered_images('scenes', 0, 256, tmp_path, workers=2)
  np.testing.assert_array_equal(images[255], scene.render('scenes', 0, 255)[0])


def test_processes_at_once_in_a_script_without_a_main_guard(tmp_path):
  """Two scripts fill one cache; neither they nor their workers need jax."""
  script = tmp_path / 'script.py'
  script.write_text(
    'import os, sys\n'
    'from ijepa_jax.data.scenes import rendered\n'
    "print('started')\n"
    "images, _ = rendered.rendered_images('scenes', 0, 256, workers=2)\n"
    "print(int(images.sum()), 'jax' in sys.modules)\n"
  )
  root = str(pathlib.Path(__file__).parents[3])
  environment = os.environ | {
    'IJEPA_JAX_CACHE': str(tmp_path / 'cache'),
    'PYTHONPATH': root,
  }
  runs = [
    subprocess.Popen(
      [sys.executable, script], stdout=subprocess.PIPE, env=environment
    )
    for _ in range(2)
  ]
  printed = [run.communicate(timeout=60)[0].decode().split() for run in runs]
  images, _ = rendered.rendered_images('scenes', 0, 256, tmp_path / 'cache')
  expected = ['started', str(int(images.sum())), 'False']
  assert printed == [expected, expected]
  assert len(list((tmp_path / 'cache').iterdir())) == 1


def test_load_names_mistakes_too(tmp_path):
  with pytest.raises(UserError, match='count is 0'):
    rendered.rendered_images('scenes', 0, 0, tmp_path)
  with pytest.raises(UserError, match='workers is 0'):
    rendered.rendered_images('scenes', 0, 3, tmp_path, workers=0)
  with pytest.raises(UserError, match='unknown flavour'):
    rendered.rendered_images('sceens', 0, 3, tmp_path)
