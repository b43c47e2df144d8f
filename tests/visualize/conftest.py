"""An untrained run that the tests of the generator share."""

import pytest

from configs import tiny
from ijepa_jax.runtime import sharding
from ijepa_jax.visualize import subject


@pytest.fixture(scope='session')
def workdir(untrained_run, tmp_path_factory):
  c = tiny.get_config()
  c.model.depth, c.data.count = 1, 40
  path = tmp_path_factory.mktemp('run')
  untrained_run(c, path)
  return path


@pytest.fixture(scope='session')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='session')
def mesh(cpus):
  return sharding.make_mesh(devices=cpus[:1])


@pytest.fixture(scope='session')
def model(workdir, mesh):
  return subject.load_subject(workdir, mesh)
