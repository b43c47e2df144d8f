"""Checksums and digests of arrays, and which are not finite."""

import jax
import jax.numpy as jnp
import numpy as np


def leaves_by_name(tree) -> dict:
  """Returns {'params/encoder/norm/scale': leaf}, in the order of the leaves."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


@jax.jit
def _inspect(tree):
  """-> of each leaf: the sum of its bits modulo 2^32, uint32 [], which is the
  same for any layout; and whether all is finite, bool [].
  """

  def one(x):
    bits = jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}')
    return jnp.sum(bits, dtype=jnp.uint32), jnp.isfinite(x).all()

  return jax.tree.map(one, tree)


def _inspect_on_host(x: np.ndarray):
  bits = np.ascontiguousarray(x).view(f'uint{8 * x.dtype.itemsize}')
  return bits.sum(dtype=np.uint32), np.isfinite(x).all()


def inspect(state) -> tuple[dict[str, int], list[str]]:
  """Reads all arrays once.

  Returns:
    Name -> checksum of each array, the same for any layout over devices; and
    the names of the arrays with a number that is not finite.
  """
  named = leaves_by_name(state)
  # An array on the host need not fit on a device.
  host = {k: x for k, x in named.items() if isinstance(x, np.ndarray)}
  results = jax.device_get(
    _inspect({k: x for k, x in named.items() if k not in host})
  )
  results |= {k: _inspect_on_host(x) for k, x in host.items()}
  sums = {name: int(results[name][0]) for name in named}
  return sums, [name for name in named if not results[name][1]]


@jax.jit
def _digests(tree):
  """-> of each leaf: two hashes of its bits and their places, uint32 [2]."""

  def one(x):
    bits = jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}')
    bits, at = bits.astype(jnp.uint32), jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
      at = at * size + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    # Odd weights by place, from Knuth's and Murmur's multiplier.
    weights = (at * np.uint32(m) ^ at >> 15 for m in (2654435761, 2246822507))
    return jnp.stack(
      [jnp.sum(bits * (w | 1), dtype=jnp.uint32) for w in weights]
    )

  return jax.tree.map(one, tree)


def digests(tree) -> dict[str, list[int]]:
  """Identifies arrays on devices by their values: name -> two hashes.

  They are the same for any layout. Unlike the checksums of `inspect` they
  change if two values change places, as when a kernel is transposed: they tell
  one model from another.
  """
  hashes = jax.device_get(_digests(leaves_by_name(tree)))
  return {name: x.tolist() for name, x in hashes.items()}
