"""Pixels in the place of I-JEPA's targets: the paper's ablation of Table 7.

    targets      y = the pixels of each patch, normalized; of the target blocks
    context      z = encoder(image, context tokens only)
    prediction   predictor(z, context positions, target positions)
    loss         mean squared error

Masks, encoder and predictor are I-JEPA's; there is no target encoder, and the
encoder itself is judged. The paper says of this ablation that its loss is in
the space of pixels, and neither which loss it is nor how pixels are normalized:
here MAE's choices, its loss and the mean and variance of each patch (He et al.,
CVPR 2022).
"""

import dataclasses

import jax
import jax.numpy as jnp

from ijepa_jax.methods import ijepa
from ijepa_jax.methods.method import WithoutTarget
from ijepa_jax.models import vit


@dataclasses.dataclass(frozen=True)
class Pixels(WithoutTarget, ijepa.IJEPA):
  """A `Method`, see methods/method.py, and `ijepa.IJEPA` for its attributes.

  Attributes:
    predictor: whose outputs are the pixels of a patch, patch_size^2 * C.
    normalize_targets: by the mean and variance of each patch.
  """

  loss_kind: str = 'l2'

  name = 'pixels'
  signal_names = 'loss', 'explained'

  def targets(self, target_params, image_BHWC, targets_BMK):
    """The pixels of the targets' patches, float32 [B, M, K, P^2 C], and None.

    Args:
      target_params: unused.
      image_BHWC: uint8, or normalized by channel already.
      targets_BMK: int32 indices of patches.
    """
    image = self.normalize(image_BHWC)
    y_BNP = vit.patchify(image, self.encoder.patch_size)
    return vit.gather(self.standardize(y_BNP), targets_BMK), None

  def standardize(self, y_BNP: jax.Array) -> jax.Array:
    """Each patch less its mean, by its standard deviation, as MAE has it."""
    if not self.normalize_targets:
      return y_BNP
    variance = y_BNP.var(-1, ddof=1, keepdims=True)
    return (y_BNP - y_BNP.mean(-1, keepdims=True)) / jnp.sqrt(variance + 1e-6)

  def loss(self, params, target, batch, key=None):
    """The loss of a batch.

    Args:
      params: {'encoder', 'predictor'}.
      target: None.
      batch: see `ijepa.IJEPA.loss`.
      key: unused; nothing here is random.

    Returns:
      float32 [], and no metrics.
    """
    return self.distance(*self._pair(params, batch)), {}

  def signals(self, params, target, tokens_BND, batch) -> dict[str, jax.Array]:
    """Whether the hidden pixels are predicted, on one batch.

    Returns:
      float32 [] loss; explained: the share of the targets' variance that is
      predicted. Near zero, nothing is but what all patches have in common.
    """
    predictions, y_BMKP = self._pair(params, batch)
    loss = self.distance(predictions, y_BMKP)
    variance = ((y_BMKP - y_BMKP.mean((0, 1, 2))) ** 2).mean()
    return {'loss': loss, 'explained': 1 - loss / variance}

  def _pair(self, params, batch):
    """Predictions [B, E, M, K, P^2 C], and the targets [B, M, K, P^2 C]."""
    image, index = batch['image'], batch['targets']
    predictions = self.predict(params, image, batch['context'], index)
    return predictions, self.targets(None, image, index)[0]
