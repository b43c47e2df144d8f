"""Tables of another grid: PyTorch's numbers."""

import numpy as np
import pytest

from ijepa_jax.errors import UserError
from ijepa_jax.models import positions
from tests.close import close


def test_resized_table():
  """Numbers of PyTorch; a table of its own grid is left as it is."""
  table = np.array([[0, 7], [1, 7], [4, 7], [-1, 7]], np.float32)
  narrow = positions.resize(table, (1, 4), (1, 3))
  close(narrow[:, 0], [0.09143519, 3.0625, -0.23032407])
  close(narrow[:, 1], 7)
  high = positions.resize(table[:2], (2, 1), (4, 1))
  close(high[:, 0], [-0.10546875, 0.2265625, 0.7734375, 1.10546875])
  assert positions.resize(table, (2, 2), (2, 2)) is table
  with pytest.raises(UserError, match='4 positions is not of 2 x 3'):
    positions.resize(table, (2, 3), (4, 4))


@pytest.mark.parametrize(
  ('old', 'new'),
  [
    ((14, 14), (16, 16)),
    ((14, 14), (5, 28)),
    ((3, 7), (7, 3)),
    ((1, 2), (1, 1)),
  ],
)
def test_resized_table_is_pytorchs(old, new):
  torch = pytest.importorskip('torch')
  table = np.random.default_rng(0).normal(size=(old[0] * old[1], 8))
  table = table.astype(np.float32)
  expected = torch.nn.functional.interpolate(
    torch.from_numpy(table.reshape(1, *old, 8)).permute(0, 3, 1, 2),
    size=new,
    mode='bicubic',
    align_corners=False,
  )
  actual = positions.resize(table, old, new)
  expected = expected.permute(0, 2, 3, 1).reshape(-1, 8).numpy()
  close(actual, expected)
