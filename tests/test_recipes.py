"""Recipes by name from anywhere, and the package as it is installed."""

import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

from ijepa_jax import recipes
from ijepa_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]


def python(*arguments, cwd=ROOT):
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=cwd,
    env={'PYTHONPATH': str(ROOT), 'PYTHONDONTWRITEBYTECODE': '1'},
    capture_output=True,
    text=True,
  )


def test_every_recipe_has_a_name():
  """And get_config() without arguments, from a folder that has none of them."""
  names = recipes.names()
  assert {'tiny', 'vit_l16', 'evals/knn', 'ablations/masks'} < set(names)
  for name in names:
    assert (ROOT / 'configs' / f'{name}.py').samefile(recipes.find(name))
  assert recipes.find('ablations/masks:random').endswith('masks.py:random')


@pytest.mark.parametrize(
  ('value', 'words'),
  [
    ('tniy', "Did you mean 'tiny'"),
    ('evals/common', 'take one of'),
    ('nowhere/vit_l16.py', r'recipe of that name is --config=vit_l16'),
    ('configs/evals/kn.py', r'no file configs/evals/kn.py here\.$'),
    ('there/evals/knn.py', r'recipe of that name is --config=evals/knn\.$'),
    ('nowhere/my.py', r'no file nowhere/my.py here\.$'),
  ],
)
def test_no_such_recipe(value, words):
  with pytest.raises(UserError, match=words):
    recipes.find(value)


def test_a_recipe_of_the_user(tmp_path):
  """By its file, whether it imports the package's recipes or the folder's."""
  lines = 'from {} import vit_s16\nget_config = vit_s16.get_config\n'
  for package in ('ijepa_jax.configs', 'configs'):
    (tmp_path / 'my.py').write_text(lines.format(package))
    done = python('-m', 'ijepa_jax', '--config=my.py', 'stray', cwd=tmp_path)
    assert "'stray' is not a flag" in done.stderr


def test_beside_configs_of_the_user(tmp_path):
  (tmp_path / 'configs').mkdir()
  done = python('-m', 'ijepa_jax', '--config=cifar10', 'stray', cwd=tmp_path)
  assert "'stray' is not a flag" in done.stderr


def test_without_arguments(tmp_path):
  done = python('-m', 'ijepa_jax', cwd=tmp_path)
  assert done.returncode == 1
  assert all(name in done.stderr for name in recipes.names())
  assert done.stderr.count('\n') < 30


def test_the_package_is_imported_without_jax(tmp_path):
  code = (
    'import sys, ijepa_jax\n'
    "assert 'load_encoder' in dir(ijepa_jax)\n"
    "sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
  )
  assert python('-c', code, cwd=tmp_path).returncode == 0


def test_the_wheel_has_the_recipes(tmp_path):
  setuptools = pytest.importorskip('setuptools')
  if int(setuptools.__version__.split('.')[0]) < 71:
    pytest.skip('setuptools is older than 71, which makes wheels by itself')
  for name in ('ijepa_jax', 'configs'):
    shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)
  for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, tmp_path)
  done = python('setup.py', '-q', 'bdist_wheel', cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  (wheel,) = tmp_path.glob('dist/*.whl')
  files = set(zipfile.ZipFile(wheel).namelist())
  assert {f'ijepa_jax/configs/{name}.py' for name in recipes.names()} < files
  assert {file.split('/')[0] for file in files} == {
    'ijepa_jax',
    'ijepa_jax-0.1.0.dist-info',
  }
