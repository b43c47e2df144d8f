"""What XLA is asked for when a step is compiled."""

import types

import numpy as np
import pytest

from ijepa_jax.train import compile


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
