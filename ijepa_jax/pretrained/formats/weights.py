"""What files of weights say about the model, and whether they fit it.

The architecture is read from the tensors' shapes, never from what a file only
claims: so nothing larger than the file itself is ever built, and a claim that
does not fit is refused with its name.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from ijepa_jax.errors import UserError
from ijepa_jax.models import vit
from ijepa_jax.pretrained.formats import release_names

PARTS = 'encoder', 'predictor', 'target'
TABLES = {
  'encoder': 'pos_embed',
  'predictor': 'predictor_pos_embed',
  'target': 'pos_embed',
}
_MODEL = (
  *('size', 'width', 'depth', 'heads', 'mlp_dim', 'patch_size'),
  *('predictor_width', 'predictor_depth', 'predictor_heads'),
)
_NAMES_SHOWN = 3
_TYPES = {'float32', 'float64', 'float16', 'bfloat16'}


class Optimizer(NamedTuple):
  """Where AdamW was.

  Attributes:
    step: updates that it has finished.
    mu, nu: first and second moments over the parameters, {'encoder',
      'predictor'}, trees of float32 NumPy arrays as in `Loaded.params`.
  """

  step: int
  mu: dict
  nu: dict


class Weights(NamedTuple):
  """What a file held.

  Attributes:
    config: width, depth, heads, mlp_dim, patch_size, image_size (H, W) and
      channels; of a predictor predictor_width, _depth and _heads; mean and std
      of the pixels where the file says them.
    params: those of 'encoder' (context), 'predictor' and 'target' that are
      there, as in `train_step.State`: trees of float32 NumPy arrays.
    tables: the position tables as stored, float32 [N, D], by the same names;
      the model computes its own.
    notes: sentences that whoever uses it should know; `read` logged them.
    optimizer: its state, where it was asked for and is there.
  """

  config: dict
  params: dict[str, dict]
  tables: dict[str, np.ndarray]
  notes: list[str]
  optimizer: Optimizer | None = None

  @classmethod
  def told(
    cls, path, config, params, tables, notes, optimizer=None
  ) -> 'Weights':
    for note in notes:
      logging.warning('%s: %s', path, note)

    def own(tree):
      # What still lies in the file is copied: the file may go.
      return jax.tree.map(lambda x: np.require(x, requirements='O'), tree)

    if optimizer:
      mu, nu = own(optimizer.mu), own(optimizer.nu)
      optimizer = optimizer._replace(mu=mu, nu=nu)
    return cls(config, own(params), own(tables), notes, optimizer)


def models(config: Mapping) -> tuple[vit.Encoder, vit.Predictor]:
  """The modules of a config as in `Weights`, or with `size` and what differs.

  Raises:
    UserError: no model has these sizes.
  """
  known = {k: config[k] for k in _MODEL if config.get(k)}
  known.setdefault('size', 'base')
  known.setdefault('predictor_depth', 1)
  if 'predictor_width' not in known and 'width' in known:
    # Where there is no predictor, its usual width need not suit the heads.
    known['predictor_width'] = known['width']
  return vit.make_models(**known)


def size_name(config: Mapping) -> str:
  """Of an encoder of these sizes, as in `vit.SIZES`; '' where it has none."""
  for name, sizes in vit.SIZES.items():
    if all(config[k] == v for k, v in sizes.items()):
      return name
  return ''


def complete_config(config: Mapping, parts: Iterable[str]) -> dict:
  """The config of `Weights` with every size spelt out, for these parts.

  Raises:
    UserError: no model has these sizes, or the image does not fit them.
  """
  if missing := {'patch_size', 'image_size', 'channels'} - set(config):
    raise UserError(f'The config has no {", ".join(sorted(missing))}.')
  encoder, predictor = models(config)
  full = {
    k: getattr(encoder, k)
    for k in ('width', 'depth', 'heads', 'mlp_dim', 'patch_size')
  }
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
  """The tree of one part, its leaves jax.ShapeDtypeStruct; no memory."""
  encoder, predictor = models(config)
  model = predictor if part == 'predictor' else encoder
  # A copy: what is kept is not to be changed.
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


def release_shapes(config: Mapping, part: str) -> dict[str, tuple[int, ...]]:
  """{name in a released file: shape} of one part, with its table."""
  # Zeros that take no memory, so that the names stand in
  # formats/release_names.py alone.
  zeros = jax.tree.map(
    lambda x: np.broadcast_to(np.float32(0), x.shape), shapes(config, part)
  )
  network = 'predictor' if part == 'predictor' else 'encoder'
  tensors = release_names.to_release(
    zeros, network, patch_size=config['patch_size']
  )
  wanted = {k: v.shape for k, v in tensors.items()}
  (h, w), p = config['image_size'], config['patch_size']
  width = config['predictor_width' if part == 'predictor' else 'width']
  wanted[TABLES[part]] = (1, (h // p) * (w // p), width)
  return wanted


def some(names: Iterable[str]) -> str:
  """The first few of these names, and how many more there are."""
  names = sorted(names)
  more = len(names) - _NAMES_SHOWN
  shown = ', '.join(names[:_NAMES_SHOWN])
  return f'{shown} and {more} more' if more > 0 else shown


def require_same_shapes(found: Mapping, wanted: Mapping, what: str) -> None:
  """Compares {name: shape}.

  Raises:
    UserError: one is missing, left over or of another shape; with names.
  """

  faults = []
  if missing := wanted.keys() - found.keys():
    faults.append(f'lacks {some(missing)}')
  if extra := found.keys() - wanted.keys():
    faults.append(f'has what I-JEPA has no place for: {some(extra)}')
  wrong = [
    f'{k} as {list(found[k])} instead of {list(wanted[k])}'
    for k in wanted.keys() & found.keys()
    if tuple(found[k]) != tuple(wanted[k])
  ]
  if wrong:
    faults.append(f'has {some(wrong)}')
  if faults:
    raise UserError(f'{what} does not fit: it {"; it ".join(faults)}.')


def check_params(params: Mapping, config: Mapping) -> None:
  """Whether trees to be written are those of the config's model.

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
    require_same_shapes(
      *(
        {k: x.shape for k, x in _named(t)} for t in (tree, shapes(config, part))
      ),
      f'The {part}',
    )


def _named(tree):
  return [
    (jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]


def sizes_from_shapes(
  found: Mapping, what: str, *, patch: str, fc1: str, blocks: str
) -> dict[str, int]:
  """width, depth, mlp_dim, patch_size and channels from {name: shape}.

  Args:
    found: of an encoder.
    what: it is, for the sentence.
    patch, fc1: names of the patch embedding's weight [D, C, P, P] and of the
      first block's first MLP weight [mlp_dim, D].
    blocks: pattern that a block's tensors start with, its number in a group.

  Raises:
    UserError: they are not there, or of another kind.
  """
  kernel, mlp = tuple(found.get(patch, ())), tuple(found.get(fc1, ()))
  if len(kernel) != 4 or kernel[2] != kernel[3] or len(mlp) != 2:
    some = ', '.join(sorted(found)[:_NAMES_SHOWN]) or 'nothing'
    raise UserError(
      f'{what} is no I-JEPA encoder: its {patch} is {list(kernel)} and its '
      f'{fc1} is {list(mlp)}, where [D, C, P, P] and [mlp, D] are expected '
      f'(it has {some}, ...).'
    )
  return dict(
    width=kernel[0],
    depth=depth(found, blocks),
    mlp_dim=mlp[0],
    patch_size=kernel[2],
    channels=kernel[1],
  )


def depth(found: Iterable[str], blocks: str) -> int:
  """How many blocks there are; `check` tells if one of them is missing."""
  return len({m[1] for m in map(re.compile(blocks).match, found) if m})


def check_types(types: Iterable[str], what: str) -> str:
  """The names of the types that weights are stored in, in words.

  Raises:
    UserError: one is not of floating point.
  """
  names = ', '.join(sorted(types))
  if not set(types) <= _TYPES:
    raise UserError(f'{what} holds weights of the types {names}: not I-JEPA.')
  return names


def require_finite(array: np.ndarray, name: str) -> np.ndarray:
  """The array, float32.

  Raises:
    UserError: it has an entry that is not a finite number.
  """
  array = np.asarray(array, np.float32)
  if not np.isfinite(array).all():
    raise UserError(f'{name} holds numbers that are not finite.')
  return array
