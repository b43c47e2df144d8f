"""The model in a file: its three parts, its sizes, and whether they fit.

The architecture is read from the tensors' shapes, never from what a file only
claims. So nothing larger than the file itself is ever built, and a claim that
does not fit is refused with its name.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from ijepa_jax.errors import UserError
from ijepa_jax.models import positions, vit
from ijepa_jax.pretrained.formats import release_names, tensors


class Part(NamedTuple):
  """One of the three networks of a pre-training state.

  Attributes:
    words: its name in sentences.
    prefix: what its leaves' names begin with in a checkpoint of
      `train_step.State`.
    release_key: its key in a .pth.tar file.
    network: 'encoder' or 'predictor', whose modules and names it has.
    table: name of its position table in the release.
    width: key of its width in `Weights.config`.
  """

  words: str
  prefix: str
  release_key: str
  network: str
  table: str
  width: str


_ENCODER = dict(network='encoder', table='pos_embed', width='width')
PARTS = {
  'encoder': Part(
    'context encoder', 'params/encoder/', release_key='encoder', **_ENCODER
  ),
  'predictor': Part(
    'predictor',
    'params/predictor/',
    release_key='predictor',
    network='predictor',
    table='predictor_pos_embed',
    width='predictor_width',
  ),
  'target': Part(
    'target encoder', 'target/', release_key='target_encoder', **_ENCODER
  ),
}
TRAINED = 'encoder', 'predictor'  # the parts that have an optimizer's state
# The two encoders as `which` of load_encoder and --which name them -> part.
ENCODERS = {'target': 'target', 'context': 'encoder'}
SIZE_KEYS = (
  *('width', 'depth', 'heads', 'mlp_dim', 'patch_size'),
  *('predictor_width', 'predictor_depth', 'predictor_heads'),
)


class Optimizer(NamedTuple):
  """AdamW's state.

  Attributes:
    step: updates that it has finished.
    mu, nu: first and second moments over the parameters, {'encoder',
      'predictor'}, trees of float32 NumPy arrays as in `Weights.params`,
      whatever type the run keeps the first one in.
  """

  step: int
  mu: dict
  nu: dict


class Weights(NamedTuple):
  """The content of a file or of a checkpoint.

  Attributes:
    config: width, depth, heads, mlp_dim, patch_size, image_size (H, W) and
      channels; of a predictor predictor_width, _depth and _heads; mean and std
      of the pixels where the file has them.
    params: part -> tree as in `train_step.State`, of those parts of PARTS that
      the file holds; float32 NumPy arrays, or jax.Array where a mesh was given.
    tables: part -> position table as stored, float32 [N, D]; of a run those
      alone that are not the sin-cos table, which the model computes.
    notes: sentences that a user of these weights should know.
    optimizer: AdamW's state, where it was asked for and the file holds it.
    run_config: the ConfigDict of a training run or an export to orbax.
    step: finished steps, where the file says them.
  """

  config: dict
  params: dict[str, dict]
  tables: dict[str, np.ndarray]
  notes: list[str]
  optimizer: Optimizer | None = None
  run_config: object = None
  step: int = 0

  def log_notes(self, path) -> None:
    """Logs the notes as warnings that name `path`."""
    for note in self.notes:
      logging.warning('%s: %s', path, note)


def own_arrays(tree):
  """Copies the arrays that still lie in a file: the file may go."""
  return jax.tree.map(lambda x: np.require(x, requirements='O'), tree)


def models(config: Mapping) -> tuple[vit.Encoder, vit.Predictor]:
  """Makes the modules of a config of `Weights`, or of a run's config.model.

  Raises:
    UserError: no model has these sizes.
  """
  sizes = {k: config[k] for k in ('size', *SIZE_KEYS) if config.get(k)}
  sizes.setdefault('size', 'base')
  sizes.setdefault('predictor_depth', 1)
  if 'predictor_width' not in sizes and 'width' in sizes:
    # Where there is no predictor, its usual width need not suit the heads.
    sizes['predictor_width'] = sizes['width']
  return vit.make_models(**sizes)


def encoder_sizes(encoder: vit.Encoder) -> dict:
  """Returns the sizes of an encoder by name, and `size`, their name or ''."""
  names = 'width', 'depth', 'heads', 'mlp_dim', 'patch_size'
  sizes = {k: getattr(encoder, k) for k in names}
  return {**sizes, 'size': size_name(sizes)}


def size_name(config: Mapping) -> str:
  """Returns the name in `vit.SIZES` of an encoder of these sizes, or ''."""
  for name, sizes in vit.SIZES.items():
    if all(config[k] == v for k, v in sizes.items()):
      return name
  return ''


def complete_config(config: Mapping, parts: Iterable[str]) -> dict:
  """Returns the config of `Weights` with every size of these parts.

  Raises:
    UserError: no model has these sizes, or the image does not fit them.
  """
  if missing := {'patch_size', 'image_size', 'channels'} - set(config):
    raise UserError(f'The config has no {", ".join(sorted(missing))}.')
  encoder, predictor = models(config)
  full = encoder_sizes(encoder)
  del full['size']
  h, w = full['image_size'] = tuple(config['image_size'])
  full['channels'] = config['channels']
  if 'predictor' in parts:
    for k in ('width', 'depth', 'heads'):
      full[f'predictor_{k}'] = getattr(predictor, k)
  for name, n in {**full, 'image_size': h, 'image_size ': w}.items():
    if not isinstance(n, int) or n < 1:
      raise UserError(f'{name.strip()} is {n!r}: take 1 or more.')
  for name in 'mean', 'std':
    if config.get(name):
      full[name] = tuple(map(float, config[name]))
      if len(full[name]) != full['channels'] or not all(
        np.isfinite(x) and (x > 0 or name == 'mean') for x in full[name]
      ):
        raise UserError(
          f'{name} is {full[name]}: take a number for each of the '
          f'{full["channels"]} channels, a std above 0.'
        )
  p = full['patch_size']
  if h % p or w % p:
    raise UserError(
      f'An image of {h} x {w} pixels is not a whole number of {p} x {p} '
      'patches.'
    )
  return full


def shapes(config: Mapping, part: str) -> dict:
  """Returns the tree of one part, its leaves jax.ShapeDtypeStruct."""
  encoder, predictor = models(config)
  model = predictor if part == 'predictor' else encoder
  # A copy, since the cached tree must not change.
  return jax.tree.map(
    lambda x: x, _shapes(model, encoder.width, config['channels'])
  )


@functools.cache
def _shapes(model, width: int, channels: int) -> dict:
  index = np.zeros((1, 1), np.int32)

  def init(key):
    if isinstance(model, vit.Predictor):
      z = np.zeros((1, 1, width), np.float32)
      return model.init(key, z, index, index[None], (1, 1))
    p = model.patch_size
    return model.init(key, np.zeros((1, p, p, channels), np.float32))

  return jax.eval_shape(init, jax.random.key(0))['params']


def grid(config: Mapping) -> tuple[int, int]:
  """Returns the rows and columns of patches of a config's images."""
  h, w = config['image_size']
  return h // config['patch_size'], w // config['patch_size']


def computed_table(config: Mapping, part: str) -> np.ndarray:
  """Returns the sin-cos position table [N, D] that the model computes."""
  return positions.sincos_table(grid(config), config[PARTS[part].width])


def release_shapes(config: Mapping, part: str) -> dict[str, tuple[int, ...]]:
  """Returns {name in a released file: shape} of one part, with its table."""
  # Zeros that take no memory, so that the names stand in
  # formats/release_names.py alone.
  zeros = jax.tree.map(
    lambda x: np.broadcast_to(np.float32(0), x.shape), shapes(config, part)
  )
  arrays = release_names.to_release(
    zeros, PARTS[part].network, patch_size=config['patch_size']
  )
  rows, columns = grid(config)
  table = 1, rows * columns, config[PARTS[part].width]
  return {k: x.shape for k, x in arrays.items()} | {PARTS[part].table: table}


def release_tensors(
  config: Mapping, part: str, tree, table: np.ndarray | None = None
) -> dict[str, np.ndarray]:
  """Returns one part's arrays by their names in a released file.

  Args:
    config: as in `Weights`.
    tree: the part's parameters.
    table: its position table [N, D]; None: the computed one.

  Raises:
    UserError: an array is not of the config's model.
  """
  arrays = release_names.to_release(
    jax.device_get(tree), PARTS[part].network, patch_size=config['patch_size']
  )
  if table is None:
    table = computed_table(config, part)
  arrays[PARTS[part].table] = np.asarray(table)[None]
  tensors.require_same_shapes(
    {k: x.shape for k, x in arrays.items()},
    release_shapes(config, part),
    f'The {part}',
  )
  return arrays


def check_params(params: Mapping, config: Mapping) -> None:
  """Refuses trees that are not of the config's model, before they are written.

  Raises:
    UserError: a part is unknown, no encoder is there, or a tensor is not as
      the model has it.
  """
  unknown = set(params) - set(PARTS)
  if unknown or not {'encoder', 'target'} & set(params):
    raise UserError(
      f'There are the parts {sorted(params)}: of {", ".join(PARTS)}, at least '
      'one of the two encoders is needed, and nothing else has a place.'
    )
  for part, tree in params.items():
    actual, expected = (
      {
        jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(t)
      }
      for t in (tree, shapes(config, part))
    )
    tensors.require_same_shapes(actual, expected, f'The {part}')
