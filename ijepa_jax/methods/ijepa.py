"""I-JEPA itself: section 3 of the paper in one file, pure functions of arrays.

    targets      h = LayerNorm(target encoder(image)), gathered at each block
    context      z = encoder(image, context tokens only)
    prediction   predictor(z, context positions, target positions)
    loss         smooth-L1 between the two, averaged over everything
    update       AdamW on encoder and predictor; the target follows by EMA

Shapes in names: B images, E contexts and M targets of an image, K tokens of a
mask, N patches, D features.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from ijepa_jax.errors import UserError
from ijepa_jax.models import vit


@dataclasses.dataclass(frozen=True)
class IJEPA:
  """The static part: two modules and how the loss is taken.

  Attributes:
    encoder, predictor: Linen modules without parameters.
    mean, std: per channel, of pixels in [0, 1].
    loss: 'smooth_l1' (release, beta 1) or 'l2' (paper: mean squared error).
    normalize_targets: layer-norm the targets once more (release).
    rescale_init: apply `vit.rescale_residuals` to the initial parameters.
  """

  encoder: vit.Encoder
  predictor: vit.Predictor
  mean: tuple[float, ...] = vit.IMAGENET_MEAN
  std: tuple[float, ...] = vit.IMAGENET_STD
  loss: str = 'smooth_l1'
  normalize_targets: bool = True
  rescale_init: bool = False

  def __post_init__(self):
    if self.loss not in ('smooth_l1', 'l2'):
      raise UserError(
        f"loss.kind is {self.loss!r}: take 'smooth_l1' (release) or 'l2' "
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

  def targets(self, target_params, image_BHWC, targets_BMK):
    """What is to be predicted: [B, M, K, D], and the tokens [B, N, D] it is of.

    The target encoder sees the full image; its OUTPUT is masked (paper 3,
    Targets).
    """
    h_BND = self.encode(target_params, image_BHWC)
    return vit.gather(self.standardize(h_BND), targets_BMK), h_BND

  def standardize(self, h_BND: jax.Array) -> jax.Array:
    """The release's second LayerNorm of targets, where it is wanted."""
    if not self.normalize_targets:
      return h_BND
    mean = h_BND.mean(-1, keepdims=True)
    variance = ((h_BND - mean) ** 2).mean(-1, keepdims=True)
    return (h_BND - mean) / jnp.sqrt(variance + 1e-5)

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

  def distance(self, predictions_BEMKD, targets_BMKD) -> jax.Array:
    error = predictions_BEMKD - targets_BMKD[:, None]
    if self.loss == 'l2':
      return (error**2).mean()
    return optax.losses.huber_loss(error).mean()  # delta 1 is beta 1


def init_params(model: IJEPA, key, *, image_shape) -> dict:
  """Fresh {'encoder', 'predictor'}; arguments as in `init`."""
  key_encoder, key_predictor = jax.random.split(key)
  image = jnp.zeros((1, *image_shape), jnp.float32)
  one = jnp.zeros((1, 1), jnp.int32)
  z = jnp.zeros((1, 1, model.encoder.width), jnp.float32)
  params = {
    'encoder': model.encoder.init(key_encoder, image, one)['params'],
    'predictor': model.predictor.init(
      key_predictor, z, one, one[None], model.grid(image)
    )['params'],
  }
  return vit.rescale_residuals(params) if model.rescale_init else params


def loss_and_grad(model: IJEPA, params, target, batch):
  """Loss, gradient over `params` and the target encoder's tokens.

  Args:
    batch: image [B, H, W, C] uint8 or normalised float, context [B, E, Kc] and
      targets [B, M, Kt] int32.

  Returns:
    (loss [], tree like `params`, `collapse_statistics`).
  """
  # Outside what is differentiated: no gradient can reach the target.
  y_BMKD, h_BND = model.targets(target, batch['image'], batch['targets'])

  def loss(params):
    predictions = model.predict(
      params, batch['image'], batch['context'], batch['targets']
    )
    return model.distance(predictions, y_BMKD)

  value, grad = jax.value_and_grad(loss)(params)
  return value, grad, collapse_statistics(h_BND)


def collapse_statistics(h_BND: jax.Array) -> dict[str, jax.Array]:
  """How far features differ; both near zero is collapse.

  `feature_std`: of the average-pooled features between images; `token_std`: of
  the tokens within an image. Both averaged over features.
  """
  return {
    'feature_std': h_BND.mean(1).std(0).mean(),
    'token_std': h_BND.std(1).mean(),
  }
