"""A run that goes on with other numbers of processes and devices stays one."""

import pytest

from benchmarks import elastic


@pytest.mark.slow
def test_same_images_and_losses(tmp_path):
  """On 1, 2, 4 and 2 processes, whose state is split, or not."""
  starts = (1, 1, 1), (2, 1, 2), (4, 2, 8), (2, 3, 1)
  found = elastic.compare(tmp_path, starts)
  assert len(found['begun']) == 4 and found['begun'][0] == 0
  assert all(begun >= elastic.EACH for begun in found['begun'][1:])
