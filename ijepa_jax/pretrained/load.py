"""An encoder to look through: of a training run, or of a file from elsewhere.

Which model it is stands in the run's config.json or in the file; nothing has to
be said twice. Beside the trained ones of a run there are two to compare with:
the same encoder untrained, and none at all.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from ijepa_jax.errors import UserError
from ijepa_jax.methods import from_config
from ijepa_jax.models import positions, vit
from ijepa_jax.pretrained.formats import (
  huggingface,
  release,
  safetensors,
  weights,
)
from ijepa_jax.pretrained.frozen_encoder import FrozenEncoder, RawPixels
from ijepa_jax.runtime import files, sharding
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.runtime.config import read_run_config

WHICH = 'target', 'context', 'untrained', 'pixels'
POS_EMBED = 'recompute', 'interpolate'
_PARTS = {'target': 'target', 'context': 'encoder'}  # as in weights.PARTS


def load(
  path: str,
  *,
  mesh=None,
  which: str = 'target',
  step: int | None = None,
  image_size: int | tuple[int, int] | None = None,
  pos_embed: str = 'recompute',
  heads: int | None = None,
  dtype: str | None = None,
) -> FrozenEncoder | RawPixels:
  """Loads an encoder.

  Args:
    path: of a training workdir or an export to orbax (config.json and
      checkpoints/), a released .pth.tar file (which needs torch), or a Hugging
      Face folder.
    mesh: devices that hold the parameters, split by the rule of
      runtime/sharding.py; None: all, each with a copy.
    which: 'target', which the paper evaluates; 'context'; or of a run, to
      compare with, 'untrained', as it began, or 'pixels'. Where there is one of
      the two only, as in Hugging Face folders, it is taken, and said in words.
    step: of a run's checkpoint; None: the newest that can be read.
    image_size, pos_embed, heads, dtype: see image_encoder.load_encoder.

  Raises:
    UserError: there is nothing of the kind, it is damaged or of another model,
      or what is asked for does not fit it.
  """
  for name, value, known in (
    ('which', which, WHICH),
    ('pos_embed', pos_embed, POS_EMBED),
    ('dtype', dtype, (None, 'float32', 'bfloat16')),
  ):
    if value not in known:
      raise UserError(
        f'{name} is {value!r}: take one of {", ".join(map(str, known))}.'
      )
  path, mesh = files.resolve(path), mesh or sharding.make_mesh()
  size = _size(image_size)
  if read := detect_format(path):
    found = _from_weights(path, read, mesh, which, step, heads, size)
  else:
    found = _from_run(path, mesh, which, step)
  if which == 'pixels':
    return RawPixels(size or found['image_size'], found['channels'])
  return _frozen(mesh, size, pos_embed, dtype, **found)


def _size(image_size) -> tuple[int, int] | None:
  if image_size is None:
    return None
  pair = (image_size, image_size) if np.ndim(image_size) == 0 else image_size
  if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
    raise UserError(
      f'image_size is {image_size!r}: take a height and a width in pixels.'
    )
  return tuple(pair)


def _frozen(
  mesh, size, pos_embed, dtype, *, encoder, params, table, image_size, **kwargs
) -> FrozenEncoder:
  """Args: `table` as it is stored, for `image_size`, or None where it is none
  of its own; the others see `load` and `FrozenEncoder`."""
  p, name = encoder.patch_size, kwargs.pop('name')
  if size and (size[0] % p or size[1] % p):
    raise UserError(
      f'image_size is {size}: take a whole number of patches of {p} pixels.'
    )
  encoder = encoder.clone(dtype=jnp.dtype(dtype or encoder.dtype))
  if encoder.dtype == jnp.float32:  # cuDNN's attention is of 16 bits alone
    encoder = encoder.clone(attention='xla')
  grid = image_size[0] // p, image_size[1] // p
  if size not in (None, image_size):
    name += f', at {size[0]} x {size[1]}'
  if pos_embed == 'interpolate':
    name += ', positions interpolated'
    if table is None:
      table = positions.sincos_table(grid, encoder.width)
    table = table.reshape(*grid, -1)
  else:
    table = None
  return FrozenEncoder(
    encoder,
    params,
    image_size=size or image_size,
    name=name,
    table=table,
    **kwargs,
  )


def _from_run(path, mesh, which, step) -> dict:
  """What `_frozen` takes; of pixels, what they need."""
  config = read_run_config(path)
  if which == 'untrained' and 'converted_from' in config:
    raise UserError(f'which is {which!r}: only a training run can give that.')
  if mesh.devices.flat[0].platform != 'gpu':  # the same, without cuDNN
    config.model.attention = 'xla'
  d, model = config.data, from_config.make_method(config)
  found = {'image_size': tuple(d.image_size), 'channels': d.channels}
  if which == 'pixels':
    return found
  params, which, words = _params(path, config, model, mesh, which, step)
  return found | dict(
    encoder=model.encoder,
    params=params,
    table=_stored_table(path, which, model.encoder, found['image_size']),
    mean=model.mean,
    std=model.std,
    name=f'{epath.Path(path).name}, {words}',
    model=config.model.to_dict(),
  )


def detect_format(path):
  """What reads a file from elsewhere, or None where it is a workdir."""
  path = epath.Path(path)
  if path.is_file():
    return release.read
  try:
    config = json.loads((path / 'config.json').read_text())
  except (OSError, ValueError):
    return None
  return huggingface.read if 'model_type' in config else None


def _from_weights(path, read, mesh, which, step, heads, size) -> dict:
  """What `_frozen` takes."""
  name = _PARTS.get(which)
  if name is None:
    raise UserError(f'which is {which!r}: only a training run can give that.')
  if step is not None:
    raise UserError(f'step is {step}: only a training run has steps.')
  torch = read is release.read
  found = _read_torch(path, heads, size) if torch else read(path)
  only = name not in found.params
  if only:
    (name,) = found.params.keys() & {'encoder', 'target'}
  c, params = found.config, found.params[name]
  words = {'target': 'target', 'encoder': 'context'}[name]
  if only:
    logging.warning('%s holds the %s encoder alone: taken.', path, words)
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
  return dict(
    encoder=weights.models(c)[0],
    params=jax.device_put(params, sharding.state_sharding(params, mesh)),
    table=found.tables[name],
    mean=tuple(c.get('mean', vit.IMAGENET_MEAN)),
    std=tuple(c.get('std', vit.IMAGENET_STD)),
    image_size=tuple(c['image_size']),
    channels=c['channels'],
    name=f'{epath.Path(path).name}, {words} encoder',
    model={'size': weights.size_name(c), 'patch_size': c['patch_size']},
  )


def _read_torch(path, heads, size) -> weights.Weights:
  try:
    return release.read(path, heads=heads)
  except ValueError:
    # Perhaps it only does not say which grid its table is of.
    if size is None:
      raise
    return release.read(path, heads=heads, image_size=size)


def _params(path, config, model, mesh, which, step):
  """The encoder's parameters, which they are, and that in words."""

  def init(key):
    d = config.data
    shape = *d.image_size, d.channels
    return model.init_params(key, shape)['encoder']

  # As jobs draw, whatever generator JAX is told to use.
  key = jax.random.key(config.seed, impl='threefry2x32')
  wanted = sharding.with_shardings(jax.eval_shape(init, key), mesh)
  if which == 'untrained':
    shardings = jax.tree.map(lambda x: x.sharding, wanted)
    params = jax.jit(init, out_shardings=shardings)(key)
    return params, which, 'untrained encoder'

  def read(checkpoints):
    nonlocal which
    # What was exported may hold one of the two alone, as other files do.
    names, places = checkpoints.names(step), ('target/', 'params/encoder/')
    there = [any(n.startswith(place) for n in names) for place in places]
    if sum(there) == 1:
      other = 'target' if there[0] else 'context'
      if which != other:
        logging.warning('%s holds the %s encoder alone: taken.', path, other)
      which = other
    # As the names are in train_step.State; nothing else is read from the disk.
    tree = {'target': wanted}
    if which == 'context':
      tree = {'params': {'encoder': wanted}}
    return checkpoints.read(tree, step)

  tree, step = from_checkpoints(path, read)
  params = tree['target'] if which == 'target' else tree['params']['encoder']
  return params, which, f'step {step}, {which} encoder'


def from_checkpoints(workdir, read):
  """What `read` makes of a run's Checkpointer.

  It is called anew where a checkpoint went while it was read: a run that trains
  deletes old ones.

  Raises:
    UserError: as `read` does.
  """
  place = files.resolve(workdir) / 'checkpoints'
  with checkpointer.Checkpointer(place) as checkpoints:
    while True:
      before = checkpoints.steps()
      try:
        return read(checkpoints)
      except (ValueError, checkpointer.CheckpointError):
        if not set(before) - set(checkpoints.steps()):
          raise
        logging.info('The run at %s goes on: its newest is read anew.', workdir)


def _stored_table(path, which, encoder, image_size) -> np.ndarray | None:
  """Of an export, where it is not the table that is computed."""
  file = epath.Path(path) / positions.FILE
  part = _PARTS.get(which)
  if not file.exists() or not part:
    return None
  table = safetensors.read(file)[0].get(part)
  if table is None:
    return None
  p = encoder.patch_size
  n = (image_size[0] // p) * (image_size[1] // p)
  if table.shape != (n, encoder.width):
    raise UserError(
      f'{file}: {part} is {list(table.shape)}, which is no position table of '
      'this model.'
    )
  return weights.require_finite(np.array(table), f'{file}: {part}')
