"""What a device holds of the state: a share of it, whatever the size."""

import math

import jax
import pytest

from configs import base
from ijepa_jax.methods import from_config, train_step
from ijepa_jax.methods.optim import adamw
from ijepa_jax.models import vit
from ijepa_jax.runtime import sharding
from tests.close import close

SMALL = 2**16  # elements; such arrays are whole on every device


def state(method, size):
  """[(path, shape, bytes)] of the state of a recipe's model."""
  c = base.get_config()
  c.method, c.model.size = method, size
  c.model.patch_size = 14 if size == 'huge' else 16
  c.model.predictor_depth = {'giant': 16, 'huge': 12, 'large': 12}.get(size, 6)
  method = from_config.make_method(c)
  tx = adamw.adamw(lr=lambda _: 1e-3, weight_decay=lambda _: 0.1)

  def make(key):
    params = method.init_params(key, (224, 224, 3))
    return train_step.init(method, tx, params)

  leaves = jax.eval_shape(make, jax.random.key(0))
  return [
    (path, x.shape, x.size * x.dtype.itemsize)
    for path, x in jax.tree_util.tree_leaves_with_path(leaves)
  ]


@pytest.mark.parametrize('method', from_config.METHODS)
@pytest.mark.parametrize('size', vit.SIZES)
def test_state_falls_as_one_over_n(method, size):
  leaves = state(method, size)
  total = sum(count for *_, count in leaves)
  small = sum(b for _, shape, b in leaves if math.prod(shape) < SMALL)
  assert small < 6.3 * 2**20  # giant's
  for n in (k << a for k in (1, 3) for a in range(11) if 2 <= k << a <= 1024):
    held = 0
    for path, shape, count in leaves:
      parts = math.prod(sharding.state_parts(path, shape, n))
      if math.prod(shape) >= SMALL:
        layer = shape[1:] if "'blocks'" in jax.tree_util.keystr(path) else shape
        # No more parts of one size can be made of a layer.
        assert parts == math.gcd(n, math.prod(layer))
        held += count / parts
      else:
        assert parts == 1
    # Widths of powers of two can't be split by three.
    bound = 1.05 if n % 3 else 3.0
    assert held <= bound * total / n, n
  if (method, size) == ('ijepa', 'giant'):
    held = {n: bytes_a_device(leaves, n) / 2**30 for n in (1, 256)}
    close(held[1], 15.40, 0.01)
    close(held[256], 0.065, 0.05)


def bytes_a_device(leaves, n):
  return sum(
    count / math.prod(sharding.state_parts(path, shape, n))
    for path, shape, count in leaves
  )
