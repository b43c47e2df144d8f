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
from ijepa_jax.methods import view_losses
from ijepa_jax.methods.method import collapse_statistics
from ijepa_jax.methods.optim.schedules import Schedule
from ijepa_jax.models import vit


@dataclasses.dataclass(frozen=True)
class IJEPA:
  """The method of the paper: a `Method`, see methods/method.py.

  Attributes:
    encoder, predictor: Linen modules without parameters.
    mean, std: per channel, of pixels in [0, 1].
    loss_kind: 'smooth_l1' (release, beta 1) or 'l2' (paper: mean square).
    normalize_targets: layer-norm the targets once more (release).
    target_layers: blocks of the target encoder whose outputs are averaged, see
      `targets_of_all`; 1: the encoder's output.
    position_noise: variance of that of targets, see `noise`; 0: none.
    variance, covariance: weights of view_losses.of_contexts; 0: without.
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
  target_layers: int = 1
  position_noise: float = 0.0
  variance: float = 0.0
  covariance: float = 0.0
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
    if self.target_layers > self.encoder.depth:
      raise UserError(
        f'loss.target_layers is {self.target_layers}: the encoder has '
        f'{self.encoder.depth} blocks, take as many or fewer.'
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
      masks = targets_BMK.reshape(b * m, k)
      y, h = self.targets_of_all(target_params, image, context_BK=masks)
      return y.reshape(b, m, k, -1), h.reshape(b, m * k, -1)
    y_BND, h_BND = self.targets_of_all(target_params, image_BHWC)
    return vit.gather(y_BND, targets_BMK), h_BND

  @jax.named_scope('target_encoder')
  def targets_of_all(self, target_params, image_BHWC, **kwargs):
    """Every token as a target, and the target encoder's output: [B, N, D].

    With `target_layers` k above 1, the average of the last k blocks' outputs,
    each layer-normed without parameters (data2vec, Baevski et al., ICML 2022,
    arXiv 2202.03555); the outputs of all blocks are in memory then.
    """
    if self.target_layers == 1:
      h_BND = self.encode(target_params, image_BHWC, **kwargs)
      return self.standardize(h_BND), h_BND
    h_BND, outputs_LBND = self.encode(
      target_params, image_BHWC, layers='tokens', **kwargs
    )
    last_LBND = outputs_LBND[-self.target_layers :].astype(jnp.float32)
    return self.standardize(vit.layer_norm(last_LBND).mean(0)), h_BND

  def standardize(self, h_BND: jax.Array) -> jax.Array:
    """The release's second LayerNorm of targets, where it is wanted."""
    return vit.layer_norm(h_BND) if self.normalize_targets else h_BND

  # ---- Context and prediction ----

  def predict(self, params, image_BHWC, context_BEK, targets_BMK):
    """Predictions of every target from every context: [B, E, M, K, D]."""
    return self.predict_and_encode(
      params, image_BHWC, context_BEK, targets_BMK
    )[0]

  def predict_and_encode(
    self, params, image_BHWC, context_BEK, targets_BMK, key=None
  ):
    """Also returns the context encoder's tokens: [B, E, K, D].

    Only the context's patches go through the encoder, and only the targets'
    positions through the predictor. A key moves these positions, see `noise`.
    """
    b, e, k = context_BEK.shape
    # Each context of an image is a batch element of its own.
    image = jnp.repeat(self.normalize(image_BHWC), e, axis=0)
    context = context_BEK.reshape(b * e, k)
    targets = jnp.repeat(targets_BMK, e, axis=0)
    with jax.named_scope('context_encoder'):
      z = self.encoder.apply({'params': params['encoder']}, image, context)
    grid, noise = self.grid(image_BHWC), self.noise(key, targets.shape)
    predictions = self.predictor.apply(
      {'params': params['predictor']}, z, context, targets, grid, noise
    )
    z, predictions = (x.reshape(b, e, *x.shape[1:]) for x in (z, predictions))
    return predictions, z

  def noise(self, key, shape) -> jax.Array | None:
    """What moves the positions of targets of this shape, or None.

    StoP (Bar et al., ICML 2024, arXiv 2308.00566): positions are drawn from
    N(position, s A A^T), s being `position_noise`; A is the matrix that takes
    context tokens to the predictor, so that the noise can't be learned away.
    """
    if not self.position_noise or key is None:
      return None
    shape = *shape, self.encoder.width
    return self.position_noise**0.5 * jax.random.normal(key, shape, jnp.float32)

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
      key: of the noise in positions; else nothing here is random.

    Returns:
      float32 [], and {'feature_std', 'token_std'} of the target's tokens, with
      those of view_losses.of_contexts where they have a weight.
    """
    y_BMKD, h_BND = self.targets(target, batch['image'], batch['targets'])
    predictions, z_BEKD = self.predict_and_encode(
      params, batch['image'], batch['context'], batch['targets'], key
    )
    loss, metrics = self.distance(predictions, y_BMKD), {}
    if self.variance or self.covariance:
      metrics = view_losses.of_contexts(z_BEKD)
      loss += self.variance * metrics['variance_term']
      loss += self.covariance * metrics['covariance_term']
    return loss, collapse_statistics(h_BND) | metrics

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
    """The target after a step, nearer to the context encoder: EMA."""
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
    index = batch['targets']
    predictions = self.predict(params, batch['image'], batch['context'], index)
    # At the same positions, of the next image: each gets another one's.
    if self.mask_input:
      other = jnp.roll(batch['image'], 1, axis=0)
      own, _ = self.targets(target, batch['image'], index)
      swapped, _ = self.targets(target, other, index)
    else:
      y_BND = self.standardize(h_BND)
      if self.target_layers > 1:
        y_BND, _ = self.targets_of_all(target, batch['image'])
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
