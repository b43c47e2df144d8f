"""The released .pth.tar files, read and written with PyTorch.

    encoder, predictor, target_encoder   {name: tensor}, names as in
                                         formats/release_names.py, perhaps
                                         others before them, and heads
    opt                                  AdamW's state, see
                                         formats/release_adamw.py
    scaler, epoch, ...                   passed over
    ijepa_jax                            in files from here: what the tensors
                                         do not say (heads, image_size, ...)

Others keep one table of all networks' tensors, under `state_dict` (Lightning)
or as the whole file. PyTorch (the extra `torch`) is imported only when a file
is read or written.
"""

import pathlib
from collections.abc import Mapping

import numpy as np

from ijepa_jax.errors import UserError
from ijepa_jax.models import positions, vit
from ijepa_jax.pretrained.formats import (
  pytorch,
  release_adamw,
  release_names,
  tensors,
  weights,
)

_METADATA, _OPTIMIZER = 'ijepa_jax', 'opt'
_DDP = 'module.'
_IF_MISSING = {
  'target': 'the context encoder is what there is',
  'predictor': 'enough to evaluate, not to go on with pre-training',
}


def read(
  path,
  *,
  heads: int | None = None,
  image_size: tuple[int, int] | None = None,
  optimizer: bool = False,
) -> weights.Weights:
  """Reads the networks of a released file, or of one written here.

  Args:
    path: of the file.
    heads: of the encoder, which a released file does not say; None: the
      method's for this width.
    image_size: (H, W) in pixels, where the position table does not tell.
    optimizer: take AdamW's state too, where it is there and whole; a note says
      why where it is not.

  Raises:
    UserError: it is no such file, it is damaged, or it does not fit.
  """
  torch, file = _open(path)
  networks, used, notes = pytorch.find_networks(torch, file, path)
  if not {'encoder', 'target'} & set(networks):
    raise UserError(
      f'{path} holds neither an encoder nor a target_encoder: it is not of '
      f'I-JEPA (it has {", ".join(sorted(map(str, file))[:3]) or "nothing"}).'
    )
  metadata = file.get(_METADATA, {})
  config, dtype = _config(path, networks, metadata, heads, image_size, notes)
  params, tables = {}, {}
  for part, network in networks.items():
    params[part], tables[part] = _read_part(path, part, network, config)
    notes += positions.note(
      tables[part],
      weights.grid(config),
      weights.PARTS[part].release_key,
      tolerance=positions.tolerance_of(dtype),
    )
  if metadata and metadata != _plain(config):
    raise UserError(
      f'{path} says of itself {metadata}, and its tensors say {_plain(config)}.'
    )
  notes += [
    f'There is no {weights.PARTS[part].release_key}: {words}.'
    for part, words in _IF_MISSING.items()
    if part not in networks
  ]
  moments = None
  if optimizer:
    try:
      moments = release_adamw.read(torch, file.get(_OPTIMIZER), networks, path)
    except UserError as error:
      notes.append(f"The optimizer's state is not taken: {error}")
  used |= {_METADATA, _OPTIMIZER} if optimizer else {_METADATA}
  if unused := sorted(map(str, file.keys() - used)):
    notes.append(f'Passed over: {", ".join(unused)}.')
  step = moments.step if moments else 0
  return weights.Weights(config, params, tables, notes, moments, step=step)


def write(
  path,
  params: Mapping,
  config: Mapping,
  *,
  tables: Mapping[str, np.ndarray] | None = None,
  optimizer: weights.Optimizer | None = None,
) -> None:
  """Writes a file as the released ones are.

  Every name begins with `module.`, as DistributedDataParallel has it.

  Args:
    path: of the file, which must not be there yet.
    params: trees of 'encoder', 'predictor' and 'target', those that there are.
    config: as in `Weights`, or a run's config.model with image_size (H, W) and
      channels beside it, and mean and std to have them kept.
    tables: part -> position table [N, D] to keep; of others the computed one.
    optimizer: AdamW's state over encoder and predictor, to be kept too.

  Raises:
    UserError: the trees are not of this config, or the file is there already.
  """
  torch = pytorch.import_torch()
  path = pathlib.Path(path)
  if path.exists():
    raise UserError(f'{path} is there already: take another name.')
  config = weights.complete_config(config, params)
  weights.check_params(params, config)
  networks = {}
  for part, tree in params.items():
    arrays = weights.release_tensors(
      config, part, tree, (tables or {}).get(part)
    )
    # A module's own parameters come before its layers'.
    networks[part] = {
      k: pytorch.from_numpy(torch, x)
      for k, x in sorted(arrays.items(), key=lambda item: '.' in item[0])
    }
  file = {_METADATA: _plain(config)} | {
    weights.PARTS[part].release_key: {_DDP + k: x for k, x in network.items()}
    for part, network in networks.items()
  }
  if optimizer:
    file[_OPTIMIZER] = release_adamw.write(torch, optimizer, networks, config)
  pytorch.write(torch, path, file)


def _plain(config: Mapping) -> dict:
  """Returns a config as a file keeps it: plain values alone."""
  return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}


def _open(path):
  """Returns the module torch, and the table that the file holds."""
  pytorch.check(path)
  torch = pytorch.import_torch()
  file = pytorch.read(torch, path)
  if not isinstance(file, dict) or not isinstance(
    file.get(_METADATA, {}), dict
  ):
    raise UserError(f'{path} is not a table of networks, as I-JEPA files are.')
  return torch, file


def _config(path, networks, metadata, heads, image_size, notes):
  """Returns the config of `Weights`, and the names of the stored types."""
  config = _sizes(path, networks, metadata, heads, notes)
  dtypes = {x.dtype for network in networks.values() for x in network.values()}
  dtype = tensors.dtype_names(dtypes, path)
  notes += tensors.dtype_note(dtype)
  config['image_size'] = metadata.get('image_size')
  if config['image_size'] is None:
    table = _encoder_table(path, networks)
    tolerance = positions.tolerance_of(dtype)
    grid = positions.find_grid(table, tolerance=tolerance)
    if grid:
      image_size = tuple(n * config['patch_size'] for n in grid)
    elif image_size is None:
      raise UserError(
        f'{path} has {len(table)} positions, which are no square, and whose '
        'table is not the sin-cos of another grid: give '
        'image_size=(height, width).'
      )
    config['image_size'] = image_size
  config |= {k: metadata[k] for k in ('mean', 'std') if k in metadata}
  try:
    return weights.complete_config(config, networks), dtype
  except (TypeError, ValueError) as error:  # metadata may be of any type
    raise UserError(f'{path} does not fit: {error}') from error


def _sizes(path, networks, metadata, heads, notes: list[str]) -> dict:
  """Returns the sizes of the networks, from their shapes and the metadata."""
  shapes = {
    part: {name: tuple(x.shape) for name, x in network.items()}
    for part, network in networks.items()
  }
  part = 'target' if 'target' in shapes else 'encoder'
  config = tensors.sizes_from_shapes(
    shapes[part],
    pytorch.title_of(path, part),
    patch='patch_embed.proj.weight',
    fc1='blocks.0.mlp.fc1.weight',
    blocks=r'blocks\.(\d+)\.',
  )
  config['heads'] = heads or metadata.get('heads')
  if config['heads'] != metadata.get('heads', config['heads']):
    raise UserError(
      f'{path} says that its encoder has {metadata["heads"]!r} heads, not '
      f'{heads}.'
    )
  if not config['heads']:
    heads_of_width = {s['width']: s['heads'] for s in vit.SIZES.values()}
    if config['width'] not in heads_of_width:
      raise UserError(
        f'{path} does not say how many heads its encoder of width '
        f'{config["width"]} has: give heads=.'
      )
    config['heads'] = heads_of_width[config['width']]
    notes.append(
      f'The number of heads is not in the file: {config["heads"]} are taken, '
      f"the method's for a width of {config['width']}."
    )
  if 'predictor' in shapes:
    embed = shapes['predictor'].get('predictor_embed.weight', ())
    config |= dict(
      predictor_width=(*embed, 0)[0],
      predictor_depth=tensors.depth(
        shapes['predictor'], r'predictor_blocks\.(\d+)\.'
      ),
      predictor_heads=metadata.get('predictor_heads', config['heads']),
    )
    if not config['predictor_width'] or not config['predictor_depth']:
      raise UserError(
        f"{path}'s predictor is none of I-JEPA: it has no "
        'predictor_embed.weight, or no predictor_blocks.'
      )
  return config


def _encoder_table(path, networks) -> np.ndarray:
  """Returns the position table [N, D] of one of the encoders."""
  part = 'target' if 'target' in networks else 'encoder'
  name = weights.PARTS[part].table
  table = networks[part].get(name)
  if table is None or table.ndim != 3 or len(table) != 1 or not table.shape[1]:
    raise UserError(
      f'{pytorch.title_of(path, part)} has no {name} of the shape [1, N, D].'
    )
  return pytorch.to_numpy(table, name, path)[0]


def _read_part(path, part: str, network: Mapping, config: Mapping):
  """Returns the parameters and the position table [N, D] of one network."""
  title = pytorch.title_of(path, part)
  tensors.require_same_shapes(
    {name: tuple(x.shape) for name, x in network.items()},
    weights.release_shapes(config, part),
    title,
  )
  arrays = {
    name: pytorch.to_numpy(x, f'{title}: {name}', path)
    for name, x in network.items()
  }
  tree = release_names.from_release(arrays, weights.PARTS[part].network)
  return weights.own_arrays((tree, arrays[weights.PARTS[part].table][0]))
