"""A small encoder with random weights, and what it computes, by hand."""

import jax
import numpy as np

from ijepa_jax.models import transformer, vit
from ijepa_jax.pretrained.formats import (
  weights,
)

# Five layers, so that the last four are not all.
CONFIG = dict(
  width=32,
  depth=5,
  heads=4,
  mlp_dim=64,
  patch_size=8,
  image_size=(48, 48),
  channels=3,
)


def random_params(config, seed=0):
  """Large enough that every layer and the positions matter."""
  r = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: r.normal(0, 0.2, x.shape).astype(np.float32),
    weights.shapes(config, 'encoder'),
  )


def pixels(n, h=48, w=48, c=3):
  return np.random.default_rng(1).integers(0, 256, (n, h, w, c), np.uint8)


def normalised(image):
  mean, std = map(np.float32, (vit.IMAGENET_MEAN, vit.IMAGENET_STD))
  return (image.astype(np.float32) / 255 - mean) / std


def by_hand(params, image, position_ND=None):
  """The three kinds, from the encoder itself."""
  module, _ = weights.models(CONFIG)

  @jax.jit
  def run(params, x):
    tokens, layers = module.apply(
      {'params': params}, x, position_ND=position_ND, layers='tokens'
    )
    norm = transformer.LayerNorm(np.float32, name='norm')
    layers = norm.apply({'params': params['norm']}, layers[-4:])
    return tokens, layers

  tokens, layers = jax.device_get(run(params, normalised(image)))
  last4 = layers.mean(2).swapaxes(0, 1).reshape(len(image), -1)
  return dict(pooled=tokens.mean(1), tokens=tokens, last4=last4)
