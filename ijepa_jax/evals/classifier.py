"""The method of fine-tuning: the encoder and a linear head are trained."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from ijepa_jax.data.transforms.mixup import mix
from ijepa_jax.methods.method import WithoutTarget
from ijepa_jax.models import vit
from ijepa_jax.pretrained.frozen_encoder import FrozenEncoder
from ijepa_jax.probes import labels


@dataclasses.dataclass(frozen=True)
class Classifier(WithoutTarget):
  """The method of fine-tuning, see methods/method.py and configs/evals.

  Attributes:
    frozen: the encoder; its parameters are not looked at.
    num_labels, column, classes: of a batch's labels, how many there are, which
      of them is learned, and its number of classes.
    smoothing, mixup, cutmix, drop_path: as in configs/evals/finetune_full.py.
  """

  frozen: FrozenEncoder
  num_labels: int
  column: int
  classes: int
  smoothing: float
  mixup: float
  cutmix: float
  drop_path: float

  batch_keys = 'image', 'label'
  signal_names = ()

  @property
  def encoder(self) -> vit.Encoder:
    return self.frozen.encoder

  def init_params(self, key, image_shape) -> dict:
    """A fresh encoder with a head of zeros, for images of (H, W, C)."""
    image = jnp.zeros((1, *image_shape), jnp.float32)
    return self.with_head(self.encoder.init(key, image)['params'])

  def with_head(self, encoder_params) -> dict:
    """A copy of the encoder's parameters, with a head of zeros."""
    return {
      'encoder': jax.tree.map(jnp.copy, encoder_params),
      'head': {
        'kernel': jnp.zeros((self.encoder.width, self.classes), jnp.float32),
        'bias': jnp.zeros(self.classes, jnp.float32),
      },
    }

  def encode(self, params, image_BHWC, **kwargs) -> jax.Array:
    """Tokens of full images: float32 [B, N, D]."""
    return self.frozen.encode(params, image_BHWC, **kwargs)

  def logits(self, params, image_BHWC, **kwargs) -> jax.Array:
    """float32 [B, classes] of uint8 or normalized images."""
    tokens = self.encode(params['encoder'], image_BHWC, **kwargs)
    head = params['head']
    return tokens.mean(1) @ head['kernel'] + head['bias']

  def loss(self, params, target, batch, key):
    """The cross-entropy of mixed images and smoothed labels.

    Args:
      params: {'encoder', 'head'}.
      target: unused.
      batch: image uint8 [B, H, W, C], label int32 [B, L].
      key: of mixing and drop path.
    """
    key_mix, key_drop = jax.random.split(key)
    image = self.frozen.normalize(batch['image'])
    soft_labels = labels.soft_labels(
      batch['label'][:, self.column], self.classes, self.smoothing
    )
    image, soft_labels = mix(
      key_mix, image, soft_labels, mixup=self.mixup, cutmix=self.cutmix
    )
    logits = self.logits(
      params, image, drop_path=self.drop_path, rngs={'drop_path': key_drop}
    )
    return optax.losses.softmax_cross_entropy(logits, soft_labels).mean(), {}

  def batch_shapes(self, batch_size: int, image_shape) -> list[dict]:
    """The one batch that a step may have."""
    image = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.uint8)
    label = jax.ShapeDtypeStruct((batch_size, self.num_labels), jnp.int32)
    return [{'image': image, 'label': label}]

  def signals(self, params, target, tokens_BND, batch) -> dict:
    return {}
