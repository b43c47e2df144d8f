"""Training workdirs, and exports that every job takes for one.

config.json                    of the run, or `plain_config` of an export
checkpoints/<step>/            arrays named as in train_step.State, perhaps
                               not all of them
position_tables.safetensors    of an export, the position tables that
                               differ from the sin-cos table, by part
"""

import pathlib
import re

import jax
import numpy as np
import optax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from ijepa_jax.errors import UserError
from ijepa_jax.methods import from_config, train_step
from ijepa_jax.methods.optim import adamw
from ijepa_jax.models import vit
from ijepa_jax.pretrained.formats import tensors, weights
from ijepa_jax.runtime import files, sharding
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.runtime.config import read_run_config, write_config

POSITION_TABLES = 'position_tables.safetensors'


def read(
  path,
  *,
  step: int | None = None,
  optimizer: bool = False,
  encoder: str | None = None,
  mesh=None,
) -> weights.Weights:
  """Reads a checkpoint of a run or of an export.

  Args:
    path: of the workdir.
    step: of the checkpoint; None: the newest that can be read.
    optimizer: read AdamW's state too, where the checkpoint holds it.
    encoder: 'encoder' or 'target': read this part alone, or the other one
      where the checkpoint holds only that; None: all parts.
    mesh: devices that hold the arrays, split by runtime/sharding.py; None:
      NumPy arrays on the host.

  Raises:
    UserError: it is no workdir, or the arrays are not of its config.
    checkpointer.CheckpointError: the checkpoints are damaged.
  """
  config = read_run_config(path)

  def read_tree(checkpoints):
    names = checkpoints.names(step)
    sizes, tree = _abstract_tree(path, config, names, encoder, optimizer)
    if mesh is not None:
      tree = sharding.with_shardings(tree, mesh)
    else:  # Orbax gives NumPy arrays for these, which take no memory.
      tree = jax.tree.map(
        lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), tree
      )
    return sizes, *checkpoints.read(tree, step)

  sizes, tree, step = _while_a_run_trains(path, read_tree)
  params = dict(tree.get('params', {}))
  if 'target' in tree:
    params['target'] = tree['target']
  notes, moments = [], None
  if encoder is None:
    notes = [
      f'There is no {weights.PARTS[name].words}.'
      for name in from_config.method_class(config).parts
      if name not in params
    ]
  if 'opt_state' in tree:
    state, get = tree['opt_state'], optax.tree_utils.tree_get
    mu = jax.tree.map(
      lambda x: x.astype(np.float32, copy=False), get(state, 'mu')
    )
    moments = weights.Optimizer(step, mu, get(state, 'nu'))
  tables = _read_tables(epath.Path(path) / POSITION_TABLES, sizes, params)
  return weights.Weights(sizes, params, tables, notes, moments, config, step)


def _abstract_tree(path, config, names, encoder, optimizer):
  """Returns the sizes, and the shapes as in train_step.State that are read."""
  parts = [
    name
    for name in from_config.method_class(config).parts
    if any(leaf.startswith(weights.PARTS[name].prefix) for leaf in names)
  ]
  encoders = [name for name in weights.ENCODERS.values() if name in parts]
  if not encoders:
    raise UserError(f'{path} holds no encoder: it is no run of pre-training.')
  if encoder:
    parts = [encoder] if encoder in encoders else encoders
  try:
    d = config.data
    sizes = weights.complete_config(
      {
        **config.model.to_dict(),
        'image_size': tuple(d.image_size),
        **dict(channels=d.channels, mean=d.mean, std=d.std),
      },
      parts,
    )
    tree = nested({part: weights.shapes(sizes, part) for part in parts})
    stored = any(leaf.startswith('opt_state/') for leaf in names)
    # It is over all that is trained: without a part it can't be read.
    if optimizer and stored and set(weights.TRAINED) <= set(parts):
      tree['opt_state'] = _opt_state(tree['params'], config)
  except (AttributeError, KeyError, TypeError) as error:
    # ConfigDict's own words are a paragraph.
    raise UserError(
      f"{path}'s config.json is not of a run of pre-training, or lacks a part "
      f'of it ({type(error).__name__}).'
    ) from error
  return sizes, tree


def _while_a_run_trains(workdir, read):
  """Returns what `read` returns for the Checkpointer of a workdir.

  A run that trains deletes old checkpoints: `read` is called again where one
  disappeared while it was read.

  Raises:
    UserError: as `read` does.
  """
  folder = files.resolve(workdir) / 'checkpoints'
  with checkpointer.Checkpointer(folder) as checkpoints:
    while True:
      before = checkpoints.steps()
      try:
        return read(checkpoints)
      except ValueError:
        if not set(before) - set(checkpoints.steps()):
          raise
        logging.info('The run at %s goes on: its newest is read anew.', workdir)


def _read_tables(path, config, params) -> dict[str, np.ndarray]:
  """Returns the position tables of `params` that an export keeps."""
  if not path.exists():
    return {}
  (rows, columns), tables = weights.grid(config), {}
  for part, table in tensors.read_safetensors(path).items():
    if part in weights.PARTS and part not in params:
      continue  # of a part that is not read
    width = config[weights.PARTS[part].width] if part in params else None
    if table.shape != (rows * columns, width):
      raise UserError(
        f'{path}: {part} is {list(table.shape)}, which is no position table of '
        'this model.'
      )
    tables[part] = tensors.require_finite(table, f'{path}: {part}')
  return tables


def write(path, loaded: weights.Weights, config: ConfigDict, step: int):
  """Writes a folder that `read` takes.

  With AdamW's state and all three parts it holds the whole state, from which a
  run of this config goes on.

  Args:
    path: of the folder.
    loaded: the weights; its tables are those that the folder keeps.
    config: of the run, or `plain_config`.
    step: finished steps.
  """
  tree = nested(loaded.params)
  if loaded.optimizer:
    _, mu, nu = loaded.optimizer
    mu = jax.tree.map(lambda x: x.astype(mu_dtype_of(config)), mu)
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
    tensors.write_safetensors(epath.Path(path) / POSITION_TABLES, loaded.tables)
  folder = epath.Path(path) / 'checkpoints'
  with checkpointer.Checkpointer(folder) as checkpoints:
    checkpoints.save(step, tree)
  # Orbax asks only whether this file exists, and writes the folder's path into
  # it, which an export must not tell.
  for mark in pathlib.Path(folder).rglob('commit_success.txt'):
    mark.write_text('Checkpoint commit was successful.')


def plain_config(config, source: str, size: str) -> ConfigDict:
  """Returns the smallest config.json from which every job builds the model.

  Args:
    config: as in `Weights`.
    source: name of the file that was converted.
    size: name of the model's size, or ''.

  Raises:
    UserError: how pixels are normalized is not known and can't be guessed.
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
  model |= {k: c[k] for k in weights.SIZE_KEYS if k in c}
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
  """Nests {part: tree} as train_step.State does; leaves absent parts out."""
  trained = {k: v for k, v in params.items() if k in weights.TRAINED}
  tree = {'params': trained} if trained else {}
  return tree | {k: v for k, v in params.items() if k == 'target'}


def _opt_state(params, config):
  """Returns AdamW's state over shaped leaves, as jax.ShapeDtypeStruct."""
  tx = adamw.adamw(
    lr=lambda step: 0.0,
    weight_decay=lambda step: 0.0,
    # These two alone change what the state is made of.
    mu_dtype=mu_dtype_of(config),
    clip_norm=config.optim.clip_norm,
  )
  return jax.eval_shape(tx.init, params)


def mu_dtype_of(config) -> str:
  """Returns the type of AdamW's first moment in the checkpoints of a config."""
  return config.optim.get('mu_dtype', 'float32')  # older configs lack it
