"""What counts as equal; and no test is bound to one machine another way."""

import pathlib
import re

import numpy as np
import pytest

from tests.close import FLOAT64, close, trees_close

ROOT = pathlib.Path(__file__).parents[1]


def test_a_share_of_the_largest():
  """An element near zero may be wrong by what its neighbours are rounded by."""
  wanted = np.array([[1e-2, 1e-9], [0.0, -3e-2]])
  close(wanted + 1.5e-8, wanted)
  close(np.float32(wanted), wanted)
  with pytest.raises(AssertionError, match=r'1 of 4 elements'):
    close(wanted + np.array([[0, 0], [1e-6, 0]]), wanted)
  with pytest.raises(
    AssertionError, match=r'at \[1, 1\], not -0\.03: .* 9e-07'
  ):
    close(wanted * 1.00003, wanted)


def test_zero_needs_a_scale():
  close(1e-7, 0, scale=1)
  with pytest.raises(AssertionError, match='the bound is 0 '):
    close(1e-7, 0)
  close([3, 250], np.array([4, 250]), within=1)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_what_is_no_number_is_near_nothing(value):
  for a, b in (([1, value], [1, 1]), ([1, 1], [1, value]), ([value],) * 2):
    with pytest.raises(AssertionError):
      close(a, b)


def test_shapes_and_structures():
  close(np.ones(3), 1, FLOAT64)
  with pytest.raises(AssertionError, match=r'shape \(3, 1\), not \(3,\)'):
    close(np.ones((3, 1)), np.ones(3))
  tree = {'a': np.ones(2), 'b': (np.zeros(3), 1.0)}
  trees_close(tree, tree)
  with pytest.raises(AssertionError, match=r"\['b'\]\[1\]: 1 at \[\], not 2"):
    trees_close(tree, tree | {'b': (np.zeros(3), 2.0)})
  with pytest.raises(AssertionError, match='is not PyTreeDef'):
    trees_close(tree, {'a': np.ones(2)})


def test_tolerances_stand_in_one_place():
  other = re.compile(
    r'assert_(allclose|almost|array_almost)|approx\(|allclose\('
  )
  for path in (ROOT / 'tests').rglob('*.py'):
    text = path.read_text()
    if path.name != pathlib.Path(__file__).name:
      assert not other.search(text), f'{path.name}: take tests/close.py instead'


def test_flags_of_the_user_stay():
  """Whoever sets the number of devices adds it to the flags that are there."""
  added = re.compile(
    r"env(?:iron)?(\['XLA_FLAGS'\]|\.get\('XLA_FLAGS', ''\))\s+\+"
  )
  for folder in ('tests', 'ijepa_jax', 'benchmarks', 'configs'):
    for path in (ROOT / folder).rglob('*.py'):
      text = path.read_text()
      if '--xla_force' + '_host_platform' in text:
        assert added.search(text), f'{path.name} takes them away'
