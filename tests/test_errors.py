"""Refusals: one sentence with the value, the limit and what to do."""

import pytest

from ijepa_jax.errors import UserError, one_of


def test_one_of_names_all_and_the_nearest():
  known = {'release': 1, 'uniform': 2}
  assert one_of('mask.sampler', 'uniform', known) == 'uniform'
  with pytest.raises(UserError) as error:
    one_of('mask.sampler', 'relaese', known)
  assert str(error.value) == (
    "mask.sampler is 'relaese': take one of release, uniform. "
    "Did you mean 'release'?"
  )
  with pytest.raises(UserError, match=r'^patch is 7: take one of 8, 16\.$'):
    one_of('patch', 7, (8, 16))
