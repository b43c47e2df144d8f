"""From a config to the method that it names.

A method is added by one file, and by one line of METHODS with its function.
"""

import dataclasses

from ijepa_jax.errors import UserError, one_of
from ijepa_jax.methods import ijepa, mae, masks, pixels, vicreg
from ijepa_jax.methods.method import Method
from ijepa_jax.methods.optim import schedules
from ijepa_jax.models import functions, projector, transformer, vit


def make_method(
  config, total_steps: int | None = None, platform: str = ''
) -> Method:
  """Makes the method that `config.method` names; I-JEPA where none is named.

  Args:
    config: of a run, or what an export holds of it.
    total_steps: of the schedules, for a training: the method then has what its
      input pipeline and its steps need. None: it can encode, and init_params.
    platform: of the devices, jax.Device.platform, for how they compute best
      what is the same on all; '': any.

  Raises:
    UserError: one sentence with the value, the limit and what to do.
  """
  _check_data(config.data, config.model.patch_size)
  _, make = METHODS[_name(config)]
  method = make(config, total_steps)
  product_dtype = functions.product_dtype(platform)
  transformers = {
    field.name: module.clone(product_dtype=product_dtype)
    for field in dataclasses.fields(method)
    if isinstance(
      module := getattr(method, field.name), transformer.Transformer
    )
  }
  return dataclasses.replace(method, **transformers)


def method_class(config) -> type[Method]:
  """The class of that method, which knows what is the same for every run."""
  return METHODS[_name(config)][0]


def _name(config) -> str:
  return one_of('method', config.get('method', 'ijepa'), METHODS)


# Knobs of the section `loss` that add to I-JEPA what the paper has not.
IJEPA_TERMS = 'target_layers', 'position_noise', 'variance', 'covariance'


def _ijepa(config, total_steps) -> ijepa.IJEPA:
  encoder, predictor = vit.make_models(**config.model.to_dict())
  sampler = rate = None
  if total_steps is not None:
    if config.accumulate > 1 and (
      config.loss.variance or config.loss.covariance
    ):
      raise UserError(
        f'accumulate is {config.accumulate}, and loss.variance and '
        'loss.covariance are of the whole batch, which the mean over '
        'micro-batches is not: take accumulate=1, or 0 for both.'
      )
    sampler = make_sampler(config)
    first, last = config.ema.first, config.ema.last
    rate = schedules.linear(1 - first, 1 - last, total_steps)
  return ijepa.IJEPA(
    encoder,
    predictor,
    **of_every_method(config),
    loss_kind=config.loss.kind,
    normalize_targets=config.loss.normalize_targets,
    # Which configs of old have not.
    **{k: config.loss[k] for k in IJEPA_TERMS if k in config.loss},
    sampler=sampler,
    ema_rate=rate,
    mask_input=config.loss.get('mask_input', False),  # configs of old lack it
  )


def _pixels(config, total_steps) -> pixels.Pixels:
  encoder, predictor = vit.make_models(**config.model.to_dict())
  return pixels.Pixels(
    encoder,
    _of_pixels(predictor, config),
    **of_every_method(config),
    normalize_targets=config.loss.normalize_targets,
    sampler=None if total_steps is None else make_sampler(config),
  )


def _mae(config, total_steps) -> mae.MAE:
  c, model = config.mae, config.model.to_dict()
  width, heads = c.decoder_width, c.decoder_heads
  if width % heads or width % 4:
    raise UserError(
      f'mae.decoder_width is {width}: it must be a multiple of 4 and of the '
      f'{heads} heads, mae.decoder_heads.'
    )
  model |= {'predictor_width': width, 'predictor_heads': heads}
  model['predictor_depth'] = c.decoder_depth
  encoder, decoder = vit.make_models(**model)
  sampler = None
  if total_steps is not None:
    grid, ratio = _grid(config), c.mask_ratio
    count = grid[0] * grid[1]
    if not 0 < round(ratio * count) < count:
      raise UserError(
        f'mae.mask_ratio is {ratio}: take a share that hides some of '
        f'{count} patches and leaves some.'
      )
    sampler = masks.make_sampler('random', grid=grid, fraction=ratio)
  return mae.MAE(
    encoder,
    _of_pixels(decoder, config),
    **of_every_method(config),
    normalize_targets=config.loss.normalize_targets,
    sampler=sampler,
  )


def _vicreg(config, total_steps) -> vicreg.VICReg:
  c = config.vicreg
  if total_steps is not None and config.accumulate > 1:
    raise UserError(
      f'accumulate is {config.accumulate}, and the loss of vicreg is of '
      'statistics of the whole batch, which the mean over micro-batches is '
      'not: take 1, and model.remat=full or a smaller batch_size to save '
      'memory.'
    )
  encoder, _ = vit.make_models(**config.model.to_dict())
  return vicreg.VICReg(
    encoder,
    projector.Projector(tuple(c.projector), encoder.dtype),
    **of_every_method(config),
    regularizer=c.regularizer,
    weights=(c.invariance, c.variance, c.covariance),
    sigreg=c.sigreg,
    slices=c.slices,
    num_views=c.num_views,
  )


# config.method -> its class, and the function (config, total_steps) -> Method
# that `make_method` calls.
METHODS = {
  'ijepa': (ijepa.IJEPA, _ijepa),
  'pixels': (pixels.Pixels, _pixels),
  'mae': (mae.MAE, _mae),
  'vicreg': (vicreg.VICReg, _vicreg),
}


def of_every_method(config) -> dict:
  """Fields that every method has."""
  return {
    'mean': tuple(config.data.mean),
    'std': tuple(config.data.std),
    'rescale_init': config.model.init == 'rescaled',
  }


def make_sampler(config):
  """The masks of the section `mask`; see masks.py."""
  settings = config.mask.to_dict()
  return masks.make_sampler(
    settings.pop('sampler'), grid=_grid(config), **settings
  )


def _grid(config) -> tuple[int, int]:
  p, (h, w) = config.model.patch_size, config.data.image_size
  return h // p, w // p


def _of_pixels(predictor: vit.Predictor, config) -> vit.Predictor:
  """The predictor with the pixels of a patch for its output."""
  count = config.model.patch_size**2 * config.data.channels
  if count < 2:
    raise UserError(
      'A patch of one number has no variance to normalize by: take a larger '
      'model.patch_size.'
    )
  return predictor.clone(out_width=count)


def _check_data(d, patch_size: int) -> None:
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
  if size[0] % patch_size or size[1] % patch_size:
    raise UserError(
      f'data.image_size {size} is not a whole number of patches '
      f'of {patch_size} pixels: change one of the two.'
    )
