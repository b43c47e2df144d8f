"""VICReg: views of one image get one embedding, and embeddings do not collapse.

    features     h = average pool of encoder(view)
    embedding    z = projector(h), by the statistics of the whole batch
    loss         VICReg: 25 invariance + 25 variance + covariance; or LeJEPA's:
                 (1 - lambda) spread + lambda SIGReg

There is no target that follows, and no predictor. The terms and their sources
stand in methods/view_losses.py, the views in data/transforms/views.py.

Shapes in names: B images, V views of an image, N patches, D features.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ijepa_jax.errors import one_of
from ijepa_jax.methods import view_losses
from ijepa_jax.methods.method import WithoutTarget, collapse_statistics
from ijepa_jax.models import projector, vit

REGULARIZERS = 'vicreg', 'sigreg'


@dataclasses.dataclass(frozen=True)
class VICReg(WithoutTarget):
  """A `Method` of invariance, see methods/method.py.

  Attributes:
    encoder, projector: Linen modules without parameters.
    mean, std: per channel, of pixels in [0, 1].
    regularizer: 'vicreg' or 'sigreg'.
    weights: of VICReg's invariance, variance and covariance.
    sigreg: LeJEPA's lambda, the weight of SIGReg from 0 to 1.
    slices: directions that SIGReg draws for a step.
    num_views: of an image.
    rescale_init: see `ijepa.IJEPA`.
  """

  encoder: vit.Encoder
  projector: projector.Projector
  mean: tuple[float, ...] = vit.IMAGENET_MEAN
  std: tuple[float, ...] = vit.IMAGENET_STD
  regularizer: str = 'vicreg'
  weights: tuple[float, float, float] = (25.0, 25.0, 1.0)
  sigreg: float = 0.05
  slices: int = 1024
  num_views: int = 2
  rescale_init: bool = False

  name = 'vicreg'
  sampler = None
  batch_keys = ('image',)
  signal_names = 'embedding_std', 'embedding_correlation'
  collapse_advice = (
    f'{WithoutTarget.collapse_advice}, a greater vicreg.variance or '
    'vicreg.sigreg'
  )

  def __post_init__(self):
    one_of('vicreg.regularizer', self.regularizer, REGULARIZERS)

  def normalize(self, image_BHWC: jax.Array) -> jax.Array:
    return vit.normalize(image_BHWC, self.mean, self.std)

  def encode(self, params, image_BHWC: jax.Array, **kwargs):
    """The encoder on full images: float32 [B, N, D], normed."""
    image = self.normalize(image_BHWC)
    return self.encoder.apply({'params': params}, image, **kwargs)

  def project(self, params, x_VBD: jax.Array) -> jax.Array:
    """Embeddings of features: float32 [V, B, width of the projector]."""
    return self.projector.apply({'params': params}, x_VBD)

  def loss(self, params, target, batch, key):
    """The loss of a batch, by statistics of all its images.

    Args:
      params: {'encoder', 'projector'}.
      target: None.
      batch: image uint8 [B, V, H, W, C].
      key: of SIGReg's directions.

    Returns:
      float32 [], and its terms; view_share, the part of the embeddings'
      variance that lies between views of one image; {'feature_std',
      'token_std'} of the first view's tokens.
    """
    b, v, *shape = batch['image'].shape
    # Images stay where they are: a device has all views of its own.
    h = self.encode(params['encoder'], batch['image'].reshape(b * v, *shape))
    h_BVND = h.reshape(b, v, *h.shape[1:])
    x_VBD = h_BVND.mean(2).swapaxes(0, 1)
    z_VBD = self.project(params['projector'], x_VBD)
    spread = view_losses.spread(z_VBD)
    if self.regularizer == 'sigreg':
      directions = view_losses.directions(key, z_VBD.shape[-1], self.slices)
      terms = {
        'spread': spread,
        'sigreg': view_losses.sigreg(z_VBD, directions),
      }
      weights = 1 - self.sigreg, self.sigreg
    else:
      terms = {
        'invariance': view_losses.invariance(z_VBD),
        'variance': view_losses.variance(z_VBD),
        'covariance': view_losses.covariance(z_VBD),
      }
      weights = self.weights
    loss = sum(w * x for w, x in zip(weights, terms.values(), strict=True))
    return loss, {
      **{f'loss/{name}': value for name, value in terms.items()},
      'view_share': spread / z_VBD.var((0, 1)).mean(),
      **collapse_statistics(h_BVND[:, 0]),
    }

  def init_params(self, key, image_shape) -> dict:
    """Fresh {'encoder', 'projector'} for images of (H, W, C)."""
    key_encoder, key_projector = jax.random.split(key)
    image = jnp.zeros((1, *image_shape), jnp.float32)
    x_VBD = jnp.zeros((1, 1, self.encoder.width), jnp.float32)
    params = {
      'encoder': self.encoder.init(key_encoder, image)['params'],
      'projector': self.projector.init(key_projector, x_VBD)['params'],
    }
    return vit.rescale_residuals(params) if self.rescale_init else params

  def batch_shapes(self, batch_size: int, image_shape) -> list[dict]:
    """The one batch that every step has."""
    shape = batch_size, self.num_views, *image_shape
    return [{'image': jax.ShapeDtypeStruct(shape, jnp.uint8)}]

  def signals(self, params, target, h_BND, batch) -> dict[str, jax.Array]:
    """What the loss is about, on images that are not augmented.

    Args:
      params: {'encoder', 'projector'}.
      target, batch: unused.
      h_BND: tokens of the encoder.

    Returns:
      float32 [], of the embeddings: embedding_std between images, averaged over
      features, which both losses want near 1; embedding_correlation of two
      features, the root mean square over pairs. Of B images whose features
      have nothing in common it is near 1 / sqrt(B).
    """
    z_BD = self.project(params['projector'], h_BND.mean(1)[None])[0]
    std_D = z_BD.std(0)
    y_BD = (z_BD - z_BD.mean(0)) / jnp.maximum(std_D, 1e-6)
    b, d = y_BD.shape
    # The squares of the D x D correlations have the sum of those of B x B.
    products_BB = jnp.matmul(y_BD, y_BD.T, precision='highest') / b
    off_diagonal = (products_BB**2).sum() - d
    return {
      'embedding_std': std_D.mean(),
      'embedding_correlation': jnp.sqrt(
        jnp.maximum(off_diagonal, 0) / (d * (d - 1))
      ),
    }

  def settings(self) -> dict:
    """Knobs that change what the networks compute, and no array."""
    return {
      'model.heads': self.encoder.heads,
      'data.mean': self.mean,
      'data.std': self.std,
    }
