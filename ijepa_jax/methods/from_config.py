"""From a config to the method that it names."""

from ijepa_jax.errors import UserError
from ijepa_jax.methods import ijepa
from ijepa_jax.models import vit


def make_method(config, sampler=None, ema_rate=None) -> ijepa.IJEPA:
  """Makes the method from the sections `model`, `data` and `loss` of a config.

  Args:
    config: of a run, or what an export holds of it.
    sampler, ema_rate: see `ijepa.IJEPA`; only a training needs them.

  Raises:
    UserError: one sentence with the value, the limit and what to do.
  """
  d = config.data
  if not len(d.mean) == len(d.std) == d.channels:
    raise UserError(
      f'data.mean has {len(d.mean)} and data.std {len(d.std)} numbers: '
      f'data.channels = {d.channels} needs as many each.'
    )
  if not all(0 <= x <= 1 for x in d.mean):
    raise UserError(
      f'data.mean is {tuple(d.mean)}: take those of pixels in [0, 1].'
    )
  if not all(0 < x <= 1 for x in d.std):
    raise UserError(
      f'data.std is {tuple(d.std)}: take those of pixels in [0, 1], above 0.'
    )
  size = tuple(d.image_size)
  if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
    raise UserError(
      f'data.image_size is {size}: take a height and a width in pixels.'
    )
  encoder, predictor = vit.make_models(**config.model.to_dict())
  p = encoder.patch_size
  if d.image_size[0] % p or d.image_size[1] % p:
    raise UserError(
      f'data.image_size {size} is not a whole number of patches '
      f'of {p} pixels: change one of the two.'
    )
  return ijepa.IJEPA(
    encoder,
    predictor,
    mean=tuple(d.mean),
    std=tuple(d.std),
    loss_kind=config.loss.kind,
    normalize_targets=config.loss.normalize_targets,
    rescale_init=config.model.init == 'rescaled',
    sampler=sampler,
    ema_rate=ema_rate,
  )
