"""What Pallas kernels of a compiled program cost."""

import pathlib

import pytest

from ijepa_jax.plan import chips
from ijepa_jax.plan.program import cost, hlo, kernels
from tests.close import close

# As TPUs' compiler prints a kernel of models/pallas_attention.py.
PALLAS = (pathlib.Path(__file__).parent / 'pallas.hlo').read_text()


@pytest.mark.parametrize(('chip', 'cores'), [('v5e', 1), ('v4', 2)])
def test_kernels_cost_their_schedule(monkeypatch, chip, cores):
  seen = []

  def schedule(*arguments):
    seen.append(arguments)
    return 2900

  monkeypatch.setattr(kernels, '_schedule', schedule)
  chip, name = chips.CHIPS[chip], chip
  module = hlo.parse(PALLAS)
  assert list(module.computations['e']) == ['x', 'k.1', 'y']
  cycles = 24 * (2900 + kernels.WAIT) / cores + 500
  close(cost.step_seconds(module, chip, 1), cycles / chip.clock, 1e-12)
  in_, out = hlo.Shape('bf16', (87, 64, 384)), hlo.Shape('bf16', (87, 64, 128))
  config = '{"custom_call_config":{"body":"TUzv"},"a":[]}'
  assert seen[0] == (name, config, (in_,) * 3, out)
