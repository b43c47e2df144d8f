"""Fixtures of the tests of convert/: a run with its optimizer."""

import jax
import numpy as np
import pytest

from configs import tiny
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.runtime.config import write_config
from ijepa_jax.train import compile
from ijepa_jax.train.run import make_run
from tests.convert.trees import random_like


@pytest.fixture(scope='session')
def trained(tmp_path_factory, cpus):
  """(config, workdir, state): a run of 7 steps, its moments not zero."""
  c = tiny.get_config()
  c.model.depth, c.batch_size = 2, 16
  c.optim.clip_norm = 1.0  # which changes what the optimizer's state is made of
  c.init_from = '/private/of/mine/first'
  c.data.source, c.data.path = 'folder', '/private/images'
  c.data.flavour, c.data.count = 'scenes', 20_000  # which mean nothing then
  path = tmp_path_factory.mktemp('trained')
  abstract, _ = compile.abstract_state(make_run(c, open_images=False))

  def value(x):
    if x.dtype == np.int32:
      return np.asarray(7, np.int32)
    return np.abs(random_like(x, sum(x.shape)))

  state = jax.device_put(jax.tree.map(value, abstract), cpus[0])
  write_config(path, c.to_json_best_effort())
  with checkpointer.Checkpointer(path / 'checkpoints') as checkpoints:
    checkpoints.save(7, state)
  return c, path, jax.device_get(state)
