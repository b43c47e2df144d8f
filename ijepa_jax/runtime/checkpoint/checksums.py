"""Digests of a state, and where its numbers are not finite."""

import jax
import jax.numpy as jnp
import numpy as np


def leaves_by_name(tree) -> dict:
  """{'params/encoder/norm/scale': leaf}, in the order of the leaves."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


@jax.jit
def _examined(tree):
  """Of each leaf the sum of its bits, uint32 [], modulo 2^32, which any layout
  gives alike; and whether all is finite, bool [].
  """

  def one(x):
    bits = jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}')
    return jnp.sum(bits, dtype=jnp.uint32), jnp.isfinite(x).all()

  return jax.tree.map(one, tree)


def examined(state) -> tuple[dict[str, int], list[str]]:
  """Looks through all arrays once.

  Returns:
    A checksum of each array by its name, the same for any layout over devices;
    and the names of those with a number that is not finite.
  """
  named = leaves_by_name(state)
  # What is on the host need not fit on a device.
  host = {k: x for k, x in named.items() if isinstance(x, np.ndarray)}
  found = jax.device_get(
    _examined({k: x for k, x in named.items() if k not in host})
  )
  found |= {k: _examined_here(x) for k, x in host.items()}
  sums = {name: int(found[name][0]) for name in named}
  return sums, [name for name in named if not found[name][1]]


@jax.jit
def _digests(tree):
  """Of each leaf's bits and where they stand, uint32 [2]; of any layout."""

  def one(x):
    bits = jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}')
    bits, at = bits.astype(jnp.uint32), jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
      at = at * size + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    # Odd weights by place, of Knuth's and of Murmur's multiplier.
    weights = (at * np.uint32(m) ^ at >> 15 for m in (2654435761, 2246822507))
    return jnp.stack(
      [jnp.sum(bits * (w | 1), dtype=jnp.uint32) for w in weights]
    )

  return jax.tree.map(one, tree)


def digests(tree) -> dict[str, list[int]]:
  """Names arrays on devices by their values, the same for any layout.

  Unlike `checksums` it sees two values that changed places, as those of a
  kernel that was transposed: it is to tell one model from another.
  """
  named = jax.device_get(_digests(leaves_by_name(tree)))
  return {name: x.tolist() for name, x in named.items()}


def _examined_here(x: np.ndarray):
  bits = np.ascontiguousarray(x).view(f'uint{8 * x.dtype.itemsize}')
  return bits.sum(dtype=np.uint32), np.isfinite(x).all()


def checksums(state) -> dict[str, int]:
  """One number for each array, the same for any layout over devices."""
  return examined(state)[0]
