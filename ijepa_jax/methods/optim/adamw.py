"""AdamW as I-JEPA has it, and with layer decay."""

import jax
import numpy as np
import optax

from ijepa_jax.methods.optim.schedules import Schedule

# What the first moment may be kept in. The second one is in float32: a step
# moves it by a thousandth, which bfloat16 would round away.
MU_DTYPES = 'float32', 'bfloat16'


def layer_scales(params, depth: int, decay: float):
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


def adamw_by_layer(lr, weight_decay: float, scales):
  """AdamW whose whole update, decay included, is scaled layer by layer."""

  def update(updates, state, params=None):
    return jax.tree.map(lambda u, s: u * s, updates, scales), state

  layers = optax.GradientTransformation(lambda _: optax.EmptyState(), update)
  inner = adamw(lr=lr, weight_decay=lambda _: weight_decay)
  return optax.chain(inner, layers)


def decayed(params):
  """True for what is decayed: kernels and the mask token, not biases or norms.

  Told by name, since scanned blocks stack their biases into matrices.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key in ('kernel', 'mask_token'), params
  )


def adamw(
  *,
  lr: Schedule,
  weight_decay: Schedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  mu_dtype: str = 'float32',
  clip_norm: float = 0.0,
) -> optax.GradientTransformation:
  """AdamW with decoupled weight decay, both rates scheduled.

  Args:
    lr, weight_decay: functions of the step, counted from 1.
    b1, b2, eps: Adam's.
    mu_dtype: of MU_DTYPES, in which the first moment is kept between steps.
    clip_norm: clip the global gradient norm to this; 0 is off (release).
  """
  # optax counts its updates from 0.
  steps = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  steps.append(
    optax.adamw(
      lambda count: lr(count + 1),
      b1=b1,
      b2=b2,
      eps=eps,
      mu_dtype=mu_dtype,
      weight_decay=lambda count: weight_decay(count + 1),
      mask=decayed,
    )
  )
  return optax.chain(*steps)
