"""I-JEPA itself: section 3 of the paper in one file, pure functions of arrays.

    targets      h = LayerNorm(target encoder(image)), gathered at each block
    context      z = encoder(image, context tokens only)
    prediction   predictor(z, context positions, target positions)
    loss         smooth-L1 between the two, averaged over everything
    update       the target encoder follows the context encoder by EMA

The gradient and AdamW are those of every method: methods/train_step.py.

Shapes in names: B images, E contexts and M targets of an image, K tokens of a
mask, N patches, D features.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from ijepa_jax.errors import UserError
from ijepa_jax.methods.optim.schedules import Schedule
from ijepa_jax.models import vit


@dataclasses.dataclass(frozen=True)
class IJEPA:
  """The method of the paper: a `Method`, see methods/method.py.

  Attributes:
    encoder, predictor: Linen modules without parameters.
    mean, std: per channel, of pixels in [0, 1].
    loss_kind: 'smooth_l1' (release, beta 1) or 'l2' (paper: mean squared
      error).
    normalize_targets: layer-norm the targets once more (release).
    mask_input: the target encoder sees one target block at a time, the paper's
      ablation, in place of the full image.
    rescale_init: apply `vit.rescale_residuals` to the initial parameters.
    sampler: of masks, see masks.py; None: no step is compiled ahead.
    ema_rate: 1 - momentum as a function of the step counted from 0; one minus
      it loses no digits as the momentum nears 1. None: not for training.
  """

  encoder: vit.Encoder
  predictor: vit.Predictor
  mean: tuple[float, ...] = vit.IMAGENET_MEAN
  std: tuple[float, ...] = vit.IMAGENET_STD
  loss_kind: str = 'smooth_l1'
  normalize_targets: bool = True
  rescale_init: bool = False
  sampler: object = None
  ema_rate: Schedule | None = None
  mask_input: bool = False

  name = 'ijepa'
  num_views = 1
  batch_keys = 'image', 'context', 'targets'
  signal_names = 'loss', 'gap', 'gap_share'
  parts = 'encoder', 'predictor', 'target'
  judged = 'target encoder'
  collapse_advice = (
    'try a lower optim.peak_lr, a longer optim.warmup_steps or an ema.first '
    'nearer to 1'
  )

  def __post_init__(self):
    if self.loss_kind not in ('smooth_l1', 'l2'):
      raise UserError(
        f"loss.kind is {self.loss_kind!r}: take 'smooth_l1' (release) or 'l2' "
        '(paper).'
      )

  def grid(self, image_BHWC) -> tuple[int, int]:
    p = self.encoder.patch_size
    return image_BHWC.shape[1] // p, image_BHWC.shape[2] // p

  def normalize(self, image_BHWC: jax.Array) -> jax.Array:
    return vit.normalize(image_BHWC, self.mean, self.std)

  def encode(self, params, image_BHWC: jax.Array, **kwargs):
    """The encoder on full images: float32 [B, N, D], normed."""
    image = self.normalize(image_BHWC)
    return self.encoder.apply({'params': params}, image, **kwargs)

  # ---- Targets ----

  def targets(self, target_params, image_BHWC, targets_BMK):
    """What is to be predicted: [B, M, K, D], and the tokens [B, N, D] it is of.

    The target encoder sees the full image; its OUTPUT is masked (paper 3,
    Targets). With `mask_input` it sees the K patches of a block alone, and the
    tokens are those of all blocks, N = M K.
    """
    if self.mask_input:
      b, m, k = targets_BMK.shape
      image = jnp.repeat(image_BHWC, m, axis=0)
      blocks = targets_BMK.reshape(b * m, k)
      h = self.encode(target_params, image, context_BK=blocks)
      h_BMKD = h.reshape(b, m, k, -1)
      return self.standardize(h_BMKD), h_BMKD.reshape(b, m * k, -1)
    h_BND = self.encode(target_params, image_BHWC)
    return vit.gather(self.standardize(h_BND), targets_BMK), h_BND

  def standardize(self, h_BND: jax.Array) -> jax.Array:
    """The release's second LayerNorm of targets, where it is wanted."""
    if not self.normalize_targets:
      return h_BND
    mean = h_BND.mean(-1, keepdims=True)
    variance = ((h_BND - mean) ** 2).mean(-1, keepdims=True)
    return (h_BND - mean) / jnp.sqrt(variance + 1e-5)

  # ---- Context and prediction ----

  def predict(self, params, image_BHWC, context_BEK, targets_BMK):
    """Predictions of every target from every context: [B, E, M, K, D].

    Only the context's patches go through the encoder, and only the targets'
    positions through the predictor.
    """
    b, e, k = context_BEK.shape
    # Each context of an image is a batch element of its own.
    image = jnp.repeat(self.normalize(image_BHWC), e, axis=0)
    context = context_BEK.reshape(b * e, k)
    targets = jnp.repeat(targets_BMK, e, axis=0)
    z = self.encoder.apply({'params': params['encoder']}, image, context)
    predictions = self.predictor.apply(
      {'params': params['predictor']},
      z,
      context,
      targets,
      self.grid(image_BHWC),
    )
    return predictions.reshape(b, e, *predictions.shape[1:])

  # ---- Loss ----

  def distance(self, predictions_BEMKD, targets_BMKD) -> jax.Array:
    error = predictions_BEMKD - targets_BMKD[:, None]
    if self.loss_kind == 'l2':
      return (error**2).mean()
    return optax.losses.huber_loss(error).mean()  # delta 1 is beta 1

  def loss(self, params, target, batch, key=None):
    """The loss of a batch, to be differentiated by `params` alone.

    Args:
      params: {'encoder', 'predictor'}; `encoder` is the context encoder.
      target: parameters of the target encoder, which no gradient reaches.
      batch: image [B, H, W, C] uint8 or normalised float, context [B, E, Kc]
        and targets [B, M, Kt] int32.
      key: unused; nothing here is random.

    Returns:
      float32 [], and {'feature_std', 'token_std'} of the target's tokens.
    """
    y_BMKD, h_BND = self.targets(target, batch['image'], batch['targets'])
    predictions = self.predict(
      params, batch['image'], batch['context'], batch['targets']
    )
    return self.distance(predictions, y_BMKD), collapse_statistics(h_BND)

  # ---- Update ----

  def init_params(self, key, image_shape) -> dict:
    """Fresh {'encoder', 'predictor'} for images of (H, W, C)."""
    key_encoder, key_predictor = jax.random.split(key)
    image = jnp.zeros((1, *image_shape), jnp.float32)
    one = jnp.zeros((1, 1), jnp.int32)
    z = jnp.zeros((1, 1, self.encoder.width), jnp.float32)
    params = {
      'encoder': self.encoder.init(key_encoder, image, one)['params'],
      'predictor': self.predictor.init(
        key_predictor, z, one, one[None], self.grid(image)
      )['params'],
    }
    return vit.rescale_residuals(params) if self.rescale_init else params

  def init_target(self, params) -> dict:
    """The target starts as a copy of the context encoder (paper 3)."""
    return jax.tree.map(jnp.copy, params['encoder'])

  def update_target(self, target, params, step):
    """The target moves towards the context encoder: EMA, after each step.

    Returns:
      The next target and {'momentum': float32 []}.
    """
    rate = self.ema_rate(step)
    target = optax.incremental_update(params['encoder'], target, rate)
    return target, {'momentum': 1 - rate}

  # ---- What the loop and health.py ask of every method ----

  def evaluated(self, params, target) -> dict:
    """The encoder that is judged: the target encoder (paper 4)."""
    return target

  def batch_shapes(self, batch_size: int, image_shape) -> list[dict]:
    """Every batch that a step may have, in shapes and types."""
    s, b = self.sampler, batch_size
    return [
      {
        'image': jax.ShapeDtypeStruct((b, *image_shape), jnp.uint8),
        'context': jax.ShapeDtypeStruct((b, s.num_contexts, kc), jnp.int32),
        'targets': jax.ShapeDtypeStruct((b, s.num_targets, kt), jnp.int32),
      }
      for kc, kt in s.shapes
    ]

  def signals(self, params, target, h_BND, batch) -> dict[str, jax.Array]:
    """Whether more than the position is predicted, on one batch.

    Args:
      params, target, batch: as in `loss`.
      h_BND: tokens of the target encoder.

    Returns:
      float32 [] loss; gap: by how much the loss would be greater against
      another image's targets at the same positions; gap_share of that loss.
      Near zero, position alone is predicted.
    """
    y_BND, index = self.standardize(h_BND), batch['targets']
    predictions = self.predict(params, batch['image'], batch['context'], index)
    # At the same positions, of the next image: each gets another one's.
    if self.mask_input:
      image = batch['image']
      own, _ = self.targets(target, image, index)
      swapped, _ = self.targets(target, jnp.roll(image, 1, axis=0), index)
    else:
      own = vit.gather(y_BND, index)
      swapped = vit.gather(jnp.roll(y_BND, 1, axis=0), index)
    loss = self.distance(predictions, own)
    other = self.distance(predictions, swapped)
    return {
      'loss': loss,
      'gap': other - loss,
      'gap_share': (other - loss) / other,
    }

  def settings(self) -> dict:
    """Knobs that change what the networks compute, and no array."""
    return {
      'model.heads': self.encoder.heads,
      'model.predictor_heads': self.predictor.heads,
      'data.mean': self.mean,
      'data.std': self.std,
    }


def collapse_statistics(h_BND: jax.Array) -> dict[str, jax.Array]:
  """How far features differ; both near zero is collapse.

  `feature_std`: of the average-pooled features between images; `token_std`: of
  the tokens within an image. Both averaged over features.
  """
  return {
    'feature_std': h_BND.mean(1).std(0).mean(),
    'token_std': h_BND.std(1).mean(),
  }
