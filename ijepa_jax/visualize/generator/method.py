"""Flow matching in pixels on one vector, as a method of the one loop.

    noisy      z = t x + (1 - t) e, with pixels x in [-1, 1] and normal noise e
    velocity   v = dz/dt = (x - z) / (1 - t)
    network    predicts the clean x from z, t and the vector
    loss       squared error of the velocity that follows from it

Beside it a regressor learns the mean of x given the vector: what a picture
without samples would show. The vector is all that reaches either of them: no
context, no position.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from ijepa_jax.models.dit import DiT

# 1 - t is not less than this, by which the velocity is divided (JiT).
_LEAST_NOISE = 0.05
# The mean is learned from this part of a batch: it is the easier of the two.
_FEWER = 4


@dataclasses.dataclass(frozen=True)
class Generator:
  """A `Method`, see methods/method.py; batches have image and vector.

  Attributes:
    network: the module without parameters.
    regressor: a smaller one of the same kind, for the mean.
    vector_width: D.
    time_mean, time_std: of the normal whose logistic is the time (JiT).
    dropped: share of a batch that is trained without its vector, only to have
      a row of that.
    ema: momentum of the parameters that are sampled with.
  """

  network: DiT
  regressor: DiT
  vector_width: int
  time_mean: float = -0.8
  time_std: float = 0.8
  dropped: float = 0.1
  ema: float = 0.998

  batch_keys = 'image', 'vector'
  signal_names = ()

  @property
  def encoder(self) -> DiT:
    return self.network

  def init_params(self, key, image_shape) -> dict:
    """Fresh {'generator', 'regressor'} for images of (H, W, C)."""
    arguments = (
      jnp.zeros((1, *image_shape)),
      jnp.zeros(1),
      jnp.zeros((1, self.vector_width)),
      jnp.ones(1, bool),
    )
    keys = jax.random.split(key)
    return {
      'generator': self.network.init(keys[0], *arguments)['params'],
      'regressor': self.regressor.init(keys[1], *arguments)['params'],
    }

  def init_target(self, params):
    return jax.tree.map(jnp.copy, params)

  def update_target(self, target, params, step):
    """EMA; in the beginning faster, so that it forgets the first steps."""
    momentum = jnp.minimum(self.ema, (1 + step) / (10 + step))
    target = optax.incremental_update(params, target, 1 - momentum)
    return target, {'momentum': momentum}

  def loss(self, params, target, batch, key):
    """The mean squared errors of velocity and, on a part, of the mean.

    Args:
      params: {'generator', 'regressor'}.
      target: unused.
      batch: image uint8 [B, H, W, C], vector float32 [B, D].
      key: of time, noise and what is dropped.

    Returns:
      float32 [], their sum, and {'velocity_loss', 'regressor_loss'}.
    """
    keys = jax.random.split(key, 3)
    x = batch['image'].astype(jnp.float32) / 127.5 - 1
    b = len(x)
    logit = jax.random.normal(keys[0], (b,), jnp.float32)
    t = jax.nn.sigmoid(self.time_mean + self.time_std * logit)
    noise = jax.random.normal(keys[1], x.shape, jnp.float32)
    known = jax.random.bernoulli(keys[2], 1 - self.dropped, (b,))
    t4 = t[:, None, None, None]
    z = t4 * x + (1 - t4) * noise
    clean = self.clean(params, z, t, batch['vector'], known)
    error = (clean - x) / jnp.maximum(1 - t4, _LEAST_NOISE)
    velocity_loss = (error**2).mean()
    few = max(b // _FEWER, 1)
    mean = self.mean(params, batch['vector'][:few], x.shape[1:])
    regressor_loss = ((mean - x[:few]) ** 2).mean()
    return velocity_loss + regressor_loss, {
      'velocity_loss': velocity_loss,
      'regressor_loss': regressor_loss,
    }

  def clean(self, params, z_BHWC, t_B, vector_BD, known_B):
    """The network's prediction of clean images; for `sampler.sample`."""
    return self.network.apply(
      {'params': params['generator']}, z_BHWC, t_B, vector_BD, known_B
    )

  def mean(self, params, vector_BD, image_shape):
    """The regressor's prediction of the mean image: float32 [B, H, W, C]."""
    b = len(vector_BD)
    nothing, time = jnp.zeros((b, *image_shape)), jnp.zeros(b)
    return self.regressor.apply(
      {'params': params['regressor']},
      nothing,
      time,
      vector_BD,
      jnp.ones(b, bool),
    )

  def batch_shapes(self, batch_size: int, image_shape) -> list[dict]:
    """The one batch that a step may have."""
    image = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.uint8)
    vector = jax.ShapeDtypeStruct((batch_size, self.vector_width), jnp.float32)
    return [{'image': image, 'vector': vector}]

  def evaluated(self, params, target):
    return target

  def encode(self, params, image_BHWC):
    raise NotImplementedError('A generator has no tokens of images.')

  def signals(self, params, target, tokens_BND, batch) -> dict:
    return {}
