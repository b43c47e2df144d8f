"""What XLA is asked for when a step is compiled, and what it can't do."""

import types

import numpy as np
import pytest

from configs import tiny
from ijepa_jax.train import compile
from ijepa_jax.train.run import make_run


@pytest.mark.parametrize(
  ('platform', 'flags', 'expected'),
  [
    ('cpu', '', {'xla_backend_optimization_level': 1}),
    ('cpu', '--xla_backend_optimization_level=3', None),
    ('tpu', '', None),
  ],
)
def test_fewer_of_llvms_passes_on_cpus(platform, flags, expected, monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', flags)
  mesh = types.SimpleNamespace(
    devices=np.array([types.SimpleNamespace(platform=platform)])
  )
  assert compile.compiler_options(mesh) == expected


@pytest.mark.parametrize('unroll', [1, 3])
def test_remat_that_saves_nothing_is_warned_of(cpus, caplog, unroll):
  c = tiny.get_config()
  c.model.remat, c.model.unroll = 'full', unroll
  make_run(c, cpus[:1], open_images=False)
  assert ('model.remat = full saves' in caplog.text) == (unroll > 1)
