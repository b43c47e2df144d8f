"""Mixup and cutmix of a batch, on the device."""

import jax
import jax.numpy as jnp
import numpy as np


def mix(key, image_BHWC, target_BC, *, mixup: float, cutmix: float):
  """Mixes the batch with itself in reverse order, by one draw for all of it.

  Mixup (Zhang et al., 2018) blends whole images, cutmix (Yun et al., 2019)
  pastes a box; where both are on, each half of the time.

  Args:
    key: `jax.random.key`.
    image_BHWC: float32.
    target_BC: soft labels.
    mixup, cutmix: of the Beta distribution of the share; 0: off.

  Returns:
    (images, labels) mixed in the same shares.
  """
  if not mixup and not cutmix:
    return image_BHWC, target_BC
  which, key_share, key_box = jax.random.split(key, 3)
  cut = jax.random.bernoulli(which) if mixup and cutmix else bool(cutmix)
  alpha = jnp.where(cut, np.float32(cutmix or 1), np.float32(mixup or 1))
  share = jax.random.beta(
    key_share, alpha, alpha, dtype=jnp.float32
  )  # of the image itself
  inside_HW = _box(key_box, image_BHWC.shape[1:3], 1 - share)
  # Cut off at the edge the box may be less than was drawn.
  share = jnp.where(cut, 1 - inside_HW.mean(), share)
  other = image_BHWC[::-1]
  weight = jnp.where(cut, 1 - inside_HW[..., None], share)
  image = weight * image_BHWC + (1 - weight) * other
  return image, share * target_BC + (1 - share) * target_BC[::-1]


def _box(key, size, area) -> jax.Array:
  """float32 [H, W]: 1 in a box of this share of the area, anywhere."""
  centre = jax.random.uniform(key, (2,), jnp.float32)
  masks = []
  for n, at in zip(size, centre, strict=True):
    half, at = n * jnp.sqrt(area) / 2, at * n
    i = jnp.arange(n, dtype=jnp.float32) + 0.5
    masks.append((i > at - half) & (i < at + half))
  return (masks[0][:, None] & masks[1][None]).astype(jnp.float32)
