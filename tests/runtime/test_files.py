"""Every path that a person may give: read, saved to, or refused in time."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files
from ijepa_jax.runtime.checkpoint import checkpointer, checksums

ODD = [
  *(
    'a b',
    'a=1,b=2',
    'ü',
    '%20',
    '#1',
    '{x}',
    'a]',
    '!a',
    "'q'",
    '"q"',
    '$HOME',
  ),
  *('-x', '.hidden', 'a;b', 'a|b', 'a&b', 'a:b', 'a\nb', 'a\tb', '~x', '9'),
]
LOST = ['lr[1e-3]', '[!a]', 'a*', 'a**b', 'a?', 'a\\b', 'a\udce9']


def tree():
  return {'a': jnp.arange(6.0).reshape(2, 3), 'b': {'c': jnp.ones(4)}}


def restored(folder):
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    tree(),
  )
  with checkpointer.Checkpointer(folder) as checkpoints:
    return checkpoints.restore(abstract)


def save(folder):
  with checkpointer.Checkpointer(folder) as checkpoints:
    checkpoints.save(1, tree())


@pytest.mark.parametrize('name', ODD)
def test_what_is_saved_is_there(name, tmp_path):
  save(tmp_path / name / 'checkpoints')
  state, step = restored(tmp_path / name / 'checkpoints')
  assert step == 1
  np.testing.assert_array_equal(state['a'], tree()['a'])


@pytest.mark.parametrize('name', LOST)
def test_a_path_that_orbax_would_lose_is_refused(name, tmp_path):
  """Before anything is written, at whichever depth it stands."""
  folder = f'{tmp_path}/{name}/checkpoints'
  with pytest.raises(UserError, match='checkpoints cannot be'):
    save(folder)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['lr[1e-3]', '[!a]', 'a*', 'a?'])
def test_a_folder_may_be_renamed(name, tmp_path):
  save(tmp_path / 'plain')
  (tmp_path / 'plain').rename(tmp_path / name)
  assert restored(tmp_path / name)[1] == 1


def test_one_way_in(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  home = pathlib.Path(tmp_path)
  for path in ('~/x', 'x', './x/', 'y/../x', home / 'x', '~//x'):
    assert os.fspath(files.resolve(path)) == str(home / 'x')
  assert os.fspath(files.resolve('gs://b/~/x')) == 'gs://b/~/x'
  monkeypatch.setenv('IJEPA_JAX_CACHE', '~/kept')
  assert files.cache_dir() == home / 'kept'


@pytest.mark.parametrize('path', ['', 'a\0b', 'gs:/bucket/run'])
def test_no_paths(path):
  with pytest.raises(UserError, match='path'):
    files.resolve(path)


def test_a_name_is_of_everything():
  names = {
    files.name_of(a=1, b=[2, 3]),
    files.name_of(a=1, b=[3, 2]),
    files.name_of(a=1, b=[2], c=3),
    files.name_of(a='1', b=[2, 3]),
  }
  assert len(names) == 4
  assert files.name_of(a=1, b=2) == files.name_of(b=2, a=1)
  with pytest.raises(TypeError):
    files.name_of(a=object())


def test_a_kernel_and_its_transpose_have_two_names():
  """Their bits have one sum: features of the one would be the other's."""
  x = jnp.arange(16.0).reshape(4, 4)
  assert checksums.inspect({'k': x}) == checksums.inspect({'k': x.T})
  one, other = (checksums.digests({'k': y}) for y in (x, x.T))
  assert one != other
  assert checksums.digests({'k': x + 0}) == one
