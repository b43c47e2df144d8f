"""Mixup and CutMix of a batch, on the device."""

import jax
import jax.numpy as jnp
import numpy as np


def mix(key, image_BHWC, target_BC, *, mixup: float, cutmix: float):
  """Mixes a batch with itself in reverse order, by one draw for the batch.

  Mixup (Zhang et al., 2018) blends two images, CutMix (Yun et al., 2019) pastes
  a box of one into the other; if both are on, each is done half of the time.

  Args:
    key: `jax.random.key`.
    image_BHWC: float32.
    target_BC: soft labels.
    mixup, cutmix: alpha of the Beta distribution of the share; 0: off.

  Returns:
    (images, labels), mixed in the same shares.
  """
  if not mixup and not cutmix:
    return image_BHWC, target_BC
  key_cut, key_share, key_box = jax.random.split(key, 3)
  cut = jax.random.bernoulli(key_cut) if mixup and cutmix else bool(cutmix)
  alpha = jnp.where(cut, np.float32(cutmix or 1), np.float32(mixup or 1))
  # Of each image itself.
  share = jax.random.beta(key_share, alpha, alpha, dtype=jnp.float32)
  inside_HW = _box(key_box, image_BHWC.shape[1:3], 1 - share)
  # The box is cut off at the edge, so its area may be less than was drawn.
  share = jnp.where(cut, 1 - inside_HW.mean(), share)
  weight = jnp.where(cut, 1 - inside_HW[..., None], share)
  image = weight * image_BHWC + (1 - weight) * image_BHWC[::-1]
  return image, share * target_BC + (1 - share) * target_BC[::-1]


def _box(key, size, area) -> jax.Array:
  """Returns float32 [H, W]: 1 in a box anywhere of this share of the area."""
  center = jax.random.uniform(key, (2,), jnp.float32)
  masks = []
  for n, c in zip(size, center, strict=True):
    half, c = n * jnp.sqrt(area) / 2, c * n
    i = jnp.arange(n, dtype=jnp.float32) + 0.5
    masks.append((i > c - half) & (i < c + half))
  return (masks[0][:, None] & masks[1][None]).astype(jnp.float32)
