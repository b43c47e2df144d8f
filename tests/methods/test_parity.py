"""The released PyTorch code's numbers, through benchmarks/parity.py."""

import itertools
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import parity
from ijepa_jax.errors import UserError
from ijepa_jax.pretrained.formats import release_names

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden/release_tiny.npz'


@pytest.fixture(scope='module')
def golden():
  return dict(np.load(GOLDEN))


def test_release_numbers(golden):
  rows = list(parity.comparisons(golden))
  assert len(rows) == 20
  assert [row for row in rows if not row[1] <= row[2]] == []


def test_release_numbers_in_bfloat16(golden):
  """Of one pass and its gradients; the command makes the steps too."""
  rows = list(itertools.islice(parity.comparisons(golden, 'bfloat16'), 12))
  assert rows[-1][0] == 'gradients of key biases'
  assert [row for row in rows if not row[1] <= row[2]] == []
  assert max(error for _, error, _ in rows) > parity.FLOAT32


def test_parity_notices_a_difference(golden, tmp_path):
  wrong = dict(golden)
  wrong['init/encoder/blocks.0.mlp.fc1.bias'] = (
    wrong['init/encoder/blocks.0.mlp.fc1.bias'] + 1e-3
  )
  rows = parity.comparisons(wrong)
  assert any(error > bound for _, error, bound in rows)


def test_command(tmp_path):
  """No file: told how to use it."""
  script = pathlib.Path(parity.__file__)
  bad = subprocess.run([sys.executable, script], capture_output=True)
  assert bad.returncode == 2
  assert b'usage' in bad.stderr


@pytest.mark.parametrize('part', ['encoder', 'predictor'])
def test_release_names_round_trip(golden, part):
  tensors = parity.subtree(golden, f'init/{part}')
  back = release_names.to_release(
    release_names.from_release(tensors, part),
    part,
    patch_size=int(golden['config/patch']),
  )
  assert set(tensors) - set(back) <= {'pos_embed', 'predictor_pos_embed'}
  for name, tensor in back.items():
    np.testing.assert_array_equal(tensor, tensors[name])


def test_release_names_that_do_not_fit(golden):
  tensors = parity.subtree(golden, 'init/encoder')
  extra = tensors | {'cls_token': np.zeros((1, 1, 32))}
  with pytest.raises(UserError, match='cls_token'):
    release_names.from_release(extra, 'encoder')
  del tensors['norm.bias']
  with pytest.raises(UserError, match=r'norm\.bias'):
    release_names.from_release(tensors, 'encoder')
