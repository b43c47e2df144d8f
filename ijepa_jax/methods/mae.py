"""The masked autoencoder (He et al., CVPR 2022, arXiv 2111.06377).

    targets      y = the pixels of each hidden patch, normalized by patch
    context      z = encoder(image, visible patches only)
    prediction   decoder(z, visible positions, hidden positions)
    loss         mean squared error, of hidden patches alone

75% of the patches are hidden, at random (masks.Partition, 'random', in the
input pipeline). The decoder is a transformer over all tokens: of visible
patches what the encoder says, of hidden ones a mask token; all with positions.
That is I-JEPA's predictor (models/vit.py) with one target, the hidden patches,
and an output of pixels; so this is methods/pixels.py with other masks and a
decoder of its own size.

Where this is not the published code: no class token, neither in the encoder nor
in the decoder, so that features are averages of tokens, as of all encoders
here; kernels begin as config.model.init says, and not Xavier-uniform; of a
patch count that 75% does not divide, the number of hidden patches is rounded to
the nearest and not up.
"""

import dataclasses

from ijepa_jax.methods import pixels


@dataclasses.dataclass(frozen=True)
class MAE(pixels.Pixels):
  """A `Method`, see methods/method.py and `pixels.Pixels`.

  Attributes:
    predictor: the decoder.
    sampler: of one context, the visible patches, and one target, the hidden.
  """

  name = 'mae'

  def settings(self) -> dict:
    settings = super().settings()
    settings['mae.decoder_heads'] = settings.pop('model.predictor_heads')
    return settings
