"""A run that goes on with other numbers of processes and devices stays one."""

import pytest

from benchmarks import elastic


@pytest.mark.slow
def test_same_images_and_losses(tmp_path):
  """On 1, 2, 4 and 2 processes, whose state is split, or not."""
  starts = (1, 1, 1), (2, 1, 2), (4, 2, 8), (2, 3, 1)
  result = elastic.compare(tmp_path, starts)
  assert len(result['begun']) == 4 and result['begun'][0] == 0
  assert all(begun >= elastic.EACH for begun in result['begun'][1:])
