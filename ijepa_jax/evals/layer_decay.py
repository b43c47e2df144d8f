"""AdamW whose rate falls from the head down to the first layers."""

import jax
import numpy as np
import optax

from ijepa_jax import optim


def scales(params, depth: int, decay: float):
  """The factor of each parameter's learning rate, a tree like `params`.

  With L blocks: decay^(L + 1) for the patch embedding, decay^(L - l) for block
  l from 0, 1 for the last norm and the head (BEiT's and MAE's rule). Blocks
  are stacked, so theirs is an array over the first axis.
  """

  def scale(path, x):
    names = [entry.key for entry in path]
    if names[0] == 'encoder' and names[1] == 'patch_embed':
      return decay ** (depth + 1)
    if names[0] == 'encoder' and names[1] == 'blocks':
      powers = decay ** (depth - np.arange(depth))
      return powers.reshape(-1, *[1] * (x.ndim - 1)).astype(np.float32)
    return 1.0

  return jax.tree_util.tree_map_with_path(scale, params)


def adamw(lr, weight_decay: float, scales):
  """AdamW whose whole update, decay included, is scaled layer by layer."""

  def update(updates, state, params=None):
    return jax.tree.map(lambda u, s: u * s, updates, scales), state

  layers = optax.GradientTransformation(lambda _: optax.EmptyState(), update)
  inner = optim.adamw(lr=lr, weight_decay=lambda _: weight_decay)
  return optax.chain(inner, layers)
