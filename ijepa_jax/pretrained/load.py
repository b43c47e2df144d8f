"""Any path to weights, to an encoder on the devices, to features of pictures.

    read_weights   every part, on the host: to begin a run with, to convert
    load_frozen    one encoder, on the devices: to evaluate, to fine-tune
    load_encoder   features of pictures: `ijepa_jax.load_encoder`

A path is that of a training workdir or an export of python -m
ijepa_jax.convert (config.json and checkpoints/), of a released .pth.tar file
(which needs torch), or of a Hugging Face folder; or the name of a model that
comes with the package, see shipped.py. Which model it holds stands in it;
nothing has to be said twice.
"""

import dataclasses

import jax
import numpy as np
from absl import logging
from etils import epath

from ijepa_jax.errors import UserError, one_of
from ijepa_jax.methods import from_config
from ijepa_jax.models import functions, vit
from ijepa_jax.pretrained import shipped
from ijepa_jax.pretrained.formats import huggingface, orbax, release, weights
from ijepa_jax.pretrained.frozen_encoder import FrozenEncoder, RawPixels
from ijepa_jax.pretrained.image_encoder import ImageEncoder
from ijepa_jax.runtime import sharding
from ijepa_jax.runtime.config import read_config, read_run_config

FORMATS = 'orbax', 'release', 'huggingface'
WHICH = *weights.ENCODERS, 'untrained', 'pixels'
POS_EMBED = 'recompute', 'interpolate'


def detect_format(path) -> str:
  """Returns the name in FORMATS of what lies at a path.

  Raises:
    UserError: there is nothing.
  """
  path = shipped.locate(path)
  if not path.exists():
    raise UserError(shipped.nothing_at(path))
  if path.is_file():
    return 'release'
  return 'huggingface' if 'model_type' in read_config(path) else 'orbax'


def read_weights(
  path,
  *,
  step: int | None = None,
  optimizer: bool = False,
  heads: int | None = None,
  image_size: tuple[int, int] | None = None,
) -> weights.Weights:
  """Reads all parts that a path holds; logs none of its notes.

  Args:
    path: see above.
    step: of a run's checkpoint; None: the newest that can be read.
    optimizer: read AdamW's state too, where it is there; its moments are as
      large as two more models.
    heads: of a .pth.tar file that does not say; None: the method's for its
      width.
    image_size: (H, W) in pixels of a .pth.tar file whose position table does
      not tell.

  Returns:
    Weights, float32 on the host.

  Raises:
    UserError: there is nothing of the kind, or it does not fit.
    checkpointer.CheckpointError: a run's checkpoints are damaged.
  """
  path = shipped.locate(path)
  kind = detect_format(path)
  if kind == 'orbax':
    return orbax.read(path, step=step, optimizer=optimizer)
  if step is not None:
    raise UserError(f'step is {step}: only a training run has steps.')
  if kind == 'huggingface':
    return huggingface.read(path)
  return release.read(
    path, heads=heads, image_size=image_size, optimizer=optimizer
  )


def load_encoder(
  path,
  *,
  which: str = 'target',
  step: int | None = None,
  image_size: int | tuple[int, int] | None = None,
  pos_embed: str = 'recompute',
  heads: int | None = None,
  dtype: str | None = None,
  batch_size: int = 64,
  mesh=None,
) -> ImageEncoder:
  """Loads an encoder of anybody's I-JEPA, for features of pictures.

      encoder = ijepa_jax.load_encoder('runs/vit_l16')
      encoder.features(['a.jpg', 'b.jpg'])            # [2, D]
      encoder.features(images_BHWC, kind='tokens')    # [B, N, D]

  Args:
    path: of a training workdir, an export of python -m ijepa_jax.convert, a
      released .pth.tar file (which needs torch), a Hugging Face folder; or one
      of `pretrained_names()`.
    which: 'target', which the paper evaluates; 'context'; or, of a workdir,
      'untrained', as the run began. Where a path holds one of the two encoders
      alone, as Hugging Face's folders do, it is taken, and a warning says so;
      of a method without a target encoder both are its encoder.
    step: of a workdir's checkpoint; None: the newest that can be read.
    image_size: (H, W) in pixels, or the side of a square, that pictures of a
      list are brought to; None: that of the training.
    pos_embed: on another grid of patches than in training, 'recompute' the
      sin-cos table or 'interpolate' the stored one, bicubically, as Hugging
      Face's `interpolate_pos_encoding` does. A table that was trained is taken
      by 'interpolate' alone.
    heads: of a .pth.tar file that does not say; None: the method's for its
      width.
    dtype: of the computation, 'float32' or 'bfloat16'; None: as it was trained,
      or float32 where that is not known.
    batch_size: images at a time over all devices.
    mesh: devices of this process that share the work, see sharding.make_mesh;
      None: all of them.

  Raises:
    UserError: there is nothing of the kind, it is damaged or of another
      model, or an argument does not fit it.
  """
  if which == 'pixels':
    raise UserError('which is pixels: there is no encoder to that.')
  mesh = mesh or sharding.make_mesh(devices=jax.local_devices())
  if mesh.is_multi_process:
    raise UserError('The mesh has devices of other processes: leave them out.')
  if batch_size < 1:
    raise UserError(f'batch_size is {batch_size}: take 1 or more.')
  options = dict(which=which, step=step, image_size=image_size)
  options |= dict(pos_embed=pos_embed, heads=heads, dtype=dtype)
  return ImageEncoder(load_frozen(path, mesh=mesh, **options), mesh, batch_size)


def load_frozen(
  path,
  *,
  mesh=None,
  which: str = 'target',
  step: int | None = None,
  image_size: int | tuple[int, int] | None = None,
  pos_embed: str = 'recompute',
  heads: int | None = None,
  dtype: str | None = None,
) -> FrozenEncoder | RawPixels:
  """Loads an encoder onto the devices, for evaluations and fine-tuning.

  Args:
    mesh: devices that hold the parameters, split by the rule of
      runtime/sharding.py; None: all, each with a copy.
    which: as in `load_encoder`, or 'pixels': raw pixels to compare a run with.
    path, step, image_size, pos_embed, heads, dtype: see `load_encoder`.

  Raises:
    UserError: see `load_encoder`.
  """
  one_of('which', which, WHICH)
  one_of('pos_embed', pos_embed, POS_EMBED)
  one_of('dtype', dtype, (None, 'float32', 'bfloat16'))
  path, mesh = shipped.locate(path), mesh or sharding.make_mesh()
  size = _height_and_width(image_size)
  if detect_format(path) != 'orbax':
    frozen, table = _from_file(path, mesh, which, step, heads, size)
  elif which == 'pixels':
    config = read_run_config(path)
    data, patch_size = config.data, config.model.patch_size
    size = size or tuple(data.image_size)
    return RawPixels(size, data.channels, patch_size)
  else:
    frozen, table = _from_run(path, mesh, which, step)
  frozen = frozen.adapted(table, size, pos_embed, dtype)
  product_dtype = functions.product_dtype(mesh.devices.flat[0].platform)
  return dataclasses.replace(
    frozen, encoder=frozen.encoder.clone(product_dtype=product_dtype)
  )


def _height_and_width(image_size) -> tuple[int, int] | None:
  if image_size is None:
    return None
  pair = (image_size, image_size) if np.ndim(image_size) == 0 else image_size
  if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
    raise UserError(
      f'image_size is {image_size!r}: take a height and a width in pixels.'
    )
  return tuple(pair)


def _from_run(path, mesh, encoder, step):
  """Returns a run's FrozenEncoder, and its stored position table or None."""
  config = read_run_config(path)
  if encoder == 'untrained' and 'converted_from' in config:
    raise UserError(f'which is {encoder!r}: only a training run can give that.')
  config.model.attention = functions.inference_attention(
    config.model.get('attention', 'xla'),  # runs of before have no such knob
    mesh.devices.flat[0].platform,
  )
  method, table = from_config.make_method(config), None
  if encoder == 'untrained':
    params, words = _untrained_params(config, method, mesh), 'untrained encoder'
  else:
    part = weights.ENCODERS[encoder]
    if part not in method.parts:  # which has one encoder alone
      part = 'encoder'
    loaded = orbax.read(path, step=step, encoder=part, mesh=mesh)
    part = _held_encoder(path, loaded, part)
    params, table = loaded.params[part], loaded.tables.get(part)
    words = weights.PARTS[part].words
    if 'target' not in method.parts:
      words = f'{method.judged} of {method.name}'
    words = f'step {loaded.step}, {words}'
  frozen = FrozenEncoder(
    method.encoder,
    params,
    mean=method.mean,
    std=method.std,
    image_size=tuple(config.data.image_size),
    channels=config.data.channels,
    name=f'{epath.Path(path).name}, {words}',
    method=method.name,
  )
  return frozen, table


def _untrained_params(config, method, mesh):
  """Returns the encoder's parameters with which the run began."""

  def init(key):
    shape = *config.data.image_size, config.data.channels
    return method.init_params(key, shape)['encoder']

  # As jobs draw, whatever generator JAX is told to use.
  key = jax.random.key(config.seed, impl='threefry2x32')
  shardings = sharding.state_sharding(jax.eval_shape(init, key), mesh)
  return jax.jit(init, out_shardings=shardings)(key)


def _from_file(path, mesh, encoder, step, heads, size):
  """Returns a file's FrozenEncoder, and its stored position table."""
  part = weights.ENCODERS.get(encoder)
  if part is None:
    raise UserError(f'which is {encoder!r}: only a training run can give that.')
  loaded = read_weights(path, step=step, heads=heads, image_size=size)
  loaded.log_notes(path)
  part = _held_encoder(path, loaded, part)
  c, params = loaded.config, loaded.params[part]
  if missing := {'mean', 'std'} - c.keys():
    missing = ' and '.join(sorted(missing))
    if c['channels'] != 3:
      raise UserError(
        f'{path} does not say the {missing} of its {c["channels"]} channels: '
        'export it anew from the run that it is of.'
      )
    logging.warning(
      "%s does not say the %s of its pixels: ImageNet's are taken.",
      path,
      missing,
    )
  frozen = FrozenEncoder(
    weights.models(c)[0],
    jax.device_put(params, sharding.state_sharding(params, mesh)),
    mean=tuple(c.get('mean', vit.IMAGENET_MEAN)),
    std=tuple(c.get('std', vit.IMAGENET_STD)),
    image_size=tuple(c['image_size']),
    channels=c['channels'],
    name=f'{epath.Path(path).name}, {weights.PARTS[part].words}',
  )
  return frozen, loaded.tables[part]


def _held_encoder(path, loaded: weights.Weights, part: str) -> str:
  """Returns `part`, or the other encoder where a path holds that alone."""
  if part in loaded.params:
    return part
  (part,) = loaded.params.keys() & set(weights.ENCODERS.values())
  words = weights.PARTS[part].words
  logging.warning('%s holds the %s alone: taken.', path, words)
  return part
