"""How near two computations of one thing must come, on whatever machine.

Another CPU, another number of devices, another shape of a batch and another
compiler add the same numbers in another order. This changes a result by a share
of the numbers that were added, not by a share of the result: an element of 1e-9
among elements of 1 is right to 1e-7 only. So a bound is a share of the largest
element of the array that is compared. A fixed `atol` fits one machine, and a
share of every single element (`rtol`, `pytest.approx`) holds by luck.

Equal bits may be claimed of one compiled program that runs twice, and of what
is stored, copied, gathered or counted; not of two programs.
"""

import jax
import numpy as np

# Shares of the largest element. Each leaves ten times what was seen between
# AVX, AVX2 and AVX-512, and a fault of a formula is far above it.
FLOAT64 = 1e-9  # a few operations on the host
FLOAT32 = 2e-5  # one pass through a small network, forwards or backwards
TRAINED = 5e-4  # losses and moments after some steps of AdamW
BFLOAT16 = 5e-2  # a small network that computes with 8 bits of mantissa


def close(actual, desired, share=FLOAT32, *, scale=None, within=None, name=''):
  """Asserts that two arrays, or an array and a number, are equal to rounding.

  The bound is `share` of `scale`, which is the largest magnitude in `desired`
  unless it is given: give it where `desired` is a difference of larger numbers,
  as zero is. `within` is a bound in the unit of the values, for those that have
  one: grey levels, shares of examples, quantiles of a sample.

  Raises:
    AssertionError: they differ by more or in shape, or hold nan or infinity.
  """
  actual, desired = (np.asarray(x, np.float64) for x in (actual, desired))
  where = f'{name}: ' if name else ''
  if desired.ndim:
    assert actual.shape == desired.shape, (
      f'{where}shape {actual.shape}, not {desired.shape}'
    )
  if within is None:
    scale = np.abs(desired).max(initial=0.0) if scale is None else scale
    bound, why = share * scale, f'{share:g} of {scale:.3g}, the largest element'
  else:
    bound, why = within, 'in the unit of the values'
  with np.errstate(invalid='ignore'):
    error = np.abs(actual - desired)
  wrong = ~(np.isfinite(error) & (error <= bound))
  if wrong.any():
    at = np.unravel_index(np.argmax(wrong * error), error.shape)
    raise AssertionError(
      f'{where}{actual[at]:.9g} at {[int(i) for i in at]}, not '
      f'{np.broadcast_to(desired, error.shape)[at]:.9g}: they differ by '
      f'{error[at]:.3g}, and the bound is {bound:.3g} ({why}). '
      f'{wrong.sum()} of {error.size} elements are beyond it. '
      'tests/close.py says which differences may depend on the machine.'
    )


def trees_close(actual, desired, share=FLOAT32):
  """The same for each pair of leaves of two trees of one structure."""
  a, structure = jax.tree_util.tree_flatten_with_path(actual)
  b, wanted = jax.tree_util.tree_flatten(desired)
  assert structure == wanted, f'{structure} is not {wanted}'
  for (path, x), y in zip(a, b, strict=True):
    close(x, y, share, name=jax.tree_util.keystr(path))
