"""Workdirs, and folders that look like one to every job: read and written.

config.json          of the run; of a file from elsewhere what
                     pretrained/load.py and method.build_model look at
checkpoints/<step>/  arrays named as in train_step.State, perhaps not all of
them position_tables.safetensors   those that differ from what is computed
"""

import re

import jax
import numpy as np
import optax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from ijepa_jax.errors import UserError
from ijepa_jax.methods import optim, train_step
from ijepa_jax.models import vit
from ijepa_jax.pretrained import load
from ijepa_jax.pretrained.formats import safetensors, weights
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.runtime.config import read_run_config, write_config

WORDS = {
  'encoder': 'context encoder',
  'predictor': 'predictor',
  'target': 'target encoder',
}
_PLACES = {
  'encoder': 'params/encoder/',
  'predictor': 'params/predictor/',
  'target': 'target/',
}
_TABLES = 'position_tables.safetensors'
_MODEL = (
  *('width', 'depth', 'heads', 'mlp_dim', 'patch_size'),
  *('predictor_width', 'predictor_depth', 'predictor_heads'),
)


def read(
  path, *, step: int | None = None, optimizer: bool = False
) -> tuple[weights.Weights, int]:
  """What a checkpoint holds, and its step; see anything.read."""
  config = read_run_config(path)
  tree, step, parts, sizes = load.from_checkpoints(
    path, lambda checkpoints: _tree(path, config, checkpoints, step, optimizer)
  )
  found = {'target': tree.get('target'), **tree.get('params', {})}
  params, moments = {part: found[part] for part in parts}, None
  if 'opt_state' in tree:
    state, get = tree['opt_state'], optax.tree_utils.tree_get
    moments = weights.Optimizer(step, get(state, 'mu'), get(state, 'nu'))
  notes = [
    f'There is no {w}.' for part, w in WORDS.items() if part not in parts
  ]
  for note in notes:
    logging.warning('%s: %s', path, note)
  tables = _read_tables(epath.Path(path) / _TABLES, sizes, params)
  return weights.Weights(sizes, params, tables, notes, moments), step


def _tree(path, config, checkpoints, step, optimizer):
  """What is there as in train_step.State, its step, its parts and their
  sizes."""
  names = checkpoints.names(step)
  parts = [
    part
    for part, place in _PLACES.items()
    if any(name.startswith(place) for name in names)
  ]
  if not {'encoder', 'target'} & set(parts):
    raise UserError(f'{path} holds no encoder: it is no run of pre-training.')
  try:
    sizes = _sizes(config, parts)
    encoder = weights.shapes(sizes, 'encoder')
    shapes = {'encoder': encoder, 'target': encoder}
    if 'predictor' in parts:
      shapes['predictor'] = weights.shapes(sizes, 'predictor')
    tree = nested({part: shapes[part] for part in parts})
    if optimizer and any(name.startswith('opt_state/') for name in names):
      tree['opt_state'] = _opt_state(tree['params'], config)
  except (AttributeError, KeyError, TypeError) as error:
    # ConfigDict's own words are a paragraph.
    raise UserError(
      f"{path}'s config.json is not of a run of pre-training, or lacks a part "
      f'of it ({type(error).__name__}).'
    ) from error
  # NumPy's leaves are read as such: no device needs to hold them.
  tree = jax.tree.map(
    lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), tree
  )
  return *checkpoints.read(tree, step), parts, sizes


def write(path, loaded: weights.Weights, config: ConfigDict, step: int):
  """Writes a folder that `read` takes.

  With AdamW's state and all three parts it holds the whole state, from which a
  run of this config goes on.

  Args:
    path: of the folder.
    loaded: its tables are those to be kept.
    config: of the run, or `plain_config`.
    step: finished steps.
  """
  tree = nested(loaded.params)
  if loaded.optimizer:
    _, mu, nu = loaded.optimizer
    count = np.asarray(step, np.int32)
    opt_state = optax.tree_utils.tree_set(
      _opt_state(tree['params'], config), count=count, mu=mu, nu=nu
    )
    tree = train_step.State(step=count, opt_state=opt_state, **tree)
  text = config.to_json_best_effort()
  for name, value in re.findall(r'"(\w+)": "([/~][^"]*)"', text):
    logging.warning('config.json, kept whole, says %s = %s.', name, value)
  write_config(path, text)
  if loaded.tables:
    safetensors.write(epath.Path(path) / _TABLES, loaded.tables, {})
  with checkpointer.Checkpointer(
    epath.Path(path) / 'checkpoints'
  ) as checkpoints:
    checkpoints.save(step, tree)


def plain_config(config, source: str, size: str) -> ConfigDict:
  """The least that pretrained/load.py and method.build_model take.

  Args:
    config: as in `Weights`.
    source: name of the file that was converted.
    size: name of the model's size, or ''.

  Raises:
    UserError: how pixels are normalised is not known and can't be guessed.
  """
  c = dict(config)
  if c['channels'] == 3:  # as pretrained/load.py takes them
    c = {'mean': vit.IMAGENET_MEAN, 'std': vit.IMAGENET_STD} | c
  if missing := {'mean', 'std'} - set(c):
    raise UserError(
      f'{source} does not say the {min(missing)} of its {c["channels"]} '
      'channels, which --to=orbax needs: take --to=release or huggingface.'
    )
  model = {'size': size or 'base', 'init': 'release'}
  # Where there is no predictor, one that suits any heads.
  model |= {'predictor_width': c['width'], 'predictor_depth': 1}
  model |= {k: c[k] for k in _MODEL if k in c}
  data = {k: c[k] for k in ('image_size', 'channels', 'mean', 'std')}
  return ConfigDict(
    {
      'seed': 0,
      'converted_from': source,
      'model': model,
      'loss': {'kind': 'smooth_l1', 'normalize_targets': True},
      'data': data,
      'optim': {'clip_norm': 0.0},
    }
  )


def nested(params) -> dict:
  """{'encoder', 'predictor', 'target'} as in train_step.State, those there
  are."""
  trained = {k: v for k, v in params.items() if k != 'target'}
  tree = {'params': trained} if trained else {}
  return tree | {k: v for k, v in params.items() if k == 'target'}


def _sizes(config, parts) -> dict:
  d = config.data
  pixels = dict(channels=d.channels, mean=d.mean, std=d.std)
  image_size = tuple(d.image_size)
  return weights.complete_config(
    {**config.model.to_dict(), 'image_size': image_size, **pixels}, parts
  )


def _opt_state(params, config):
  """AdamW's state over shaped leaves, its own leaves jax.ShapeDtypeStruct."""
  tx = optim.adamw(
    lr=lambda step: 0.0,
    weight_decay=lambda step: 0.0,
    # Clipping alone changes what the state is made of.
    clip_norm=config.optim.clip_norm,
  )
  return jax.eval_shape(tx.init, params)


def _read_tables(path, config, params) -> dict[str, np.ndarray]:
  if not path.exists():
    return {}
  tables, _ = safetensors.read(path)
  wanted = {
    part: weights.release_shapes(config, part)[weights.TABLES[part]]
    for part in params
  }
  for part, table in tables.items():
    if (1, *table.shape) != wanted.get(part):
      raise UserError(
        f'{path}: {part} is {list(table.shape)}, which is no position table of '
        'this model.'
      )
  return {
    k: weights.require_finite(np.array(x), f'{path}: {k}')
    for k, x in tables.items()
  }
