"""A small classifier of real blocks, to ask what a drawn block shows.

It sees pixels alone and knows nothing of the model that is looked at: a
convolution network of some 50,000 parameters, trained for a few epochs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

_BATCH = 128
_MAX_SIZE = 32  # pixels; larger blocks are averaged down


class ConvNet(nn.Module):
  """float32 [B, classes] of float32 images [B, H, W, C] in [-1, 1]."""

  classes: int
  width: int = 32

  @nn.compact
  def __call__(self, x):
    for factor in 1, 2, 2:
      x = nn.Conv(factor * self.width, (3, 3))(x)
      x = nn.relu(nn.GroupNorm(8)(x))
      if min(x.shape[1:3]) > 1:
        x = nn.max_pool(x, (2, 2), (2, 2))
    return nn.Dense(self.classes)(x.reshape(len(x), -1))


class BlockClassifier:
  """Tells a label from the pixels of a block.

  Args:
    images_nHWC: uint8, real blocks.
    label_n: int32, from 0 to classes - 1.
    classes: number of values.
    epochs: over the blocks.
    seed: of parameters and order.
  """

  def __init__(
    self, images_nHWC, label_n, classes: int, epochs: int = 8, seed: int = 0
  ):
    images, label = _small(images_nHWC), np.asarray(label_n)
    self._net = net = ConvNet(classes)
    batches = max(len(label) // _BATCH, 1)
    tx = optax.adamw(
      optax.cosine_decay_schedule(2e-3, batches * epochs), weight_decay=1e-2
    )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, x, y):
      def loss(params):
        logits = net.apply(params, _scaled(x))
        return optax.losses.softmax_cross_entropy_with_integer_labels(
          logits, y
        ).mean()

      updates, state = tx.update(jax.grad(loss)(params), state, params)
      return optax.apply_updates(params, updates), state

    params = net.init(jax.random.key(seed), _scaled(images[:1]))
    state, rng = tx.init(params), np.random.default_rng(seed)
    for _ in range(epochs):
      order = np.resize(rng.permutation(len(label)), batches * _BATCH)
      for rows in np.split(order, batches):
        params, state = step(params, state, images[rows], label[rows])
    self._params = params
    self._logits = jax.jit(lambda params, x: net.apply(params, _scaled(x)))

  def accuracy(self, images_nHWC, label_n) -> float:
    """Share of the blocks whose label is told; NaN of none."""
    images, predictions = _small(images_nHWC), []
    for i in range(0, len(images), _BATCH):
      rows = np.minimum(np.arange(i, i + _BATCH), len(images) - 1)
      logits = np.asarray(self._logits(self._params, images[rows]))
      predictions.append(logits.argmax(-1))
    if not predictions:
      return float('nan')
    return float((np.concatenate(predictions)[: len(images)] == label_n).mean())


def _scaled(x) -> jax.Array:
  return jnp.asarray(x, jnp.float32) / 127.5 - 1


def _small(images_nHWC) -> np.ndarray:
  """uint8, averaged down to at most `_MAX_SIZE` pixels."""
  images = np.asarray(images_nHWC)
  n, size, _, channels = images.shape
  factor = -(-size // _MAX_SIZE)
  if factor == 1:
    return images
  size = size // factor
  x = images[:, : size * factor, : size * factor].reshape(
    n, size, factor, size, factor, channels
  )
  return x.mean((2, 4)).astype(np.uint8)
