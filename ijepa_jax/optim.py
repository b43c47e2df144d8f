"""AdamW as the recipe wants it (release: torch's AdamW)."""

import jax
import optax

from ijepa_jax.schedules import Schedule


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
  clip_norm: float = 0.0,
) -> optax.GradientTransformation:
  """AdamW with decoupled weight decay, both rates scheduled.

  Args:
    lr, weight_decay: functions of the step, counted from 1.
    b1, b2, eps: Adam's.
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
      weight_decay=lambda count: weight_decay(count + 1),
      mask=decayed,
    )
  )
  return optax.chain(*steps)
