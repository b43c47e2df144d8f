"""The released .pth.tar files: read and written with PyTorch.

    encoder, predictor, target_encoder   {name: tensor}, names as in
                                         formats/release_names.py, perhaps
    others before them, and heads opt                                  AdamW's
    state, see formats/release_adamw.py scaler, epoch, ...
    passed over ijepa_jax                            in files from here: what
                                         the tensors do not say (heads,
                                         image_size, ...)

Others keep one table of all networks' tensors, under `state_dict` (Lightning)
or as the whole file. PyTorch (the extra `torch`) is imported only when a file
is read or written.
"""

import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from ijepa_jax.errors import UserError
from ijepa_jax.models import positions, vit
from ijepa_jax.pretrained.formats import (
  pytorch,
  release_adamw,
  release_names,
  weights,
  wrappers,
)

_NAMES = {
  'encoder': 'encoder',
  'predictor': 'predictor',
  'target': 'target_encoder',
}
_OURS, _OPTIMIZER = 'ijepa_jax', 'opt'
_DDP = 'module.'
_ANCHORS = {
  'encoder': 'patch_embed.proj.weight',
  'predictor': 'predictor_embed.weight',
  'target': 'patch_embed.proj.weight',
}
# Where others keep one table of everything; and their names of the encoders.
_WHOLE = 'state_dict', 'model_state_dict', 'model'
_WORDS = {
  'encoder': 'encoder',
  'context_encoder': 'encoder',
  'target_encoder': 'target',
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
    image_size: (H, W) in pixels; None: what the position table tells.
    optimizer: take AdamW's state too, where it is there and whole; a note says
      why where it is not.

  Raises:
    UserError: it is no such file, it is damaged, or it does not fit.
  """
  pytorch.check(path)
  torch = pytorch.import_torch()
  file = pytorch.read(torch, path)
  if not isinstance(file, dict) or not isinstance(file.get(_OURS, {}), dict):
    raise UserError(f'{path} is not a table of networks, as I-JEPA files are.')
  parts, used, notes = _networks(torch, file, path)
  if not {'encoder', 'target'} & set(parts):
    raise UserError(
      f'{path} holds neither an encoder nor a target_encoder: it is not of '
      f'I-JEPA (it has {", ".join(sorted(map(str, file))[:3]) or "nothing"}).'
    )
  said = file.get(_OURS, {})
  found = {
    part: {name: tuple(t.shape) for name, t in tensors.items()}
    for part, tensors in parts.items()
  }
  config = _config(path, found, said, heads, notes)
  dtype = _dtypes(path, parts, notes)
  tolerance = positions.tolerance_of(dtype)
  config['image_size'] = image_size or said.get('image_size')
  config |= {k: said[k] for k in ('mean', 'std') if k in said}
  if config['image_size'] is None:
    table = _table(path, parts, found)
    grid = positions.find_grid(table, str(path), tolerance=tolerance)
    config['image_size'] = tuple(n * config['patch_size'] for n in grid)
  try:
    config = weights.complete_config(config, parts)
  except (TypeError, ValueError) as error:
    raise UserError(f'{path} does not fit: {error}') from error
  params, tables = {}, {}
  for part in parts:
    name = f"{path}'s {_NAMES[part]}"
    weights.require_same_shapes(
      found[part], weights.release_shapes(config, part), name
    )
    tensors = {
      k: pytorch.to_numpy(t, f'{name}: {k}', path)
      for k, t in parts[part].items()
    }
    tables[part] = tensors[weights.TABLES[part]][0]
    notes += positions.note(
      tables[part],
      tuple(n // config['patch_size'] for n in config['image_size']),
      _NAMES[part],
      tolerance=tolerance,
    )
    network = 'predictor' if part == 'predictor' else 'encoder'
    params[part] = release_names.from_release(tensors, network)
  if said and said != _said(config):
    raise UserError(
      f'{path} says of itself {said}, and its tensors say {_said(config)}.'
    )
  for part, why in (
    ('target', 'the context encoder is what there is'),
    ('predictor', 'enough to evaluate, not to go on with pre-training'),
  ):
    if part not in parts:
      notes.append(f'There is no {_NAMES[part]}: {why}.')
  used, moments = used | {_OURS}, None
  if optimizer:
    used.add(_OPTIMIZER)
    try:
      moments = release_adamw.read(torch, file.get(_OPTIMIZER), parts, path)
    except ValueError as error:
      notes.append(f"The optimiser's state is not taken: {error}")
  if rest := sorted(map(str, file.keys() - used)):
    notes.append(f'Passed over: {", ".join(rest)}.')
  return weights.Weights.told(path, config, params, tables, notes, moments)


def write(
  path,
  params: Mapping,
  config: Mapping,
  *,
  tables: Mapping[str, np.ndarray] | None = None,
  ddp: bool = True,
  optimizer: weights.Optimizer | None = None,
) -> None:
  """Writes a file as the released ones are.

  Args:
    path: of the file, which must not be there yet.
    params: trees of 'encoder', 'predictor' and 'target', those that there are.
    config: as in `Weights`, or a run's config.model with image_size (H, W) and
      channels beside it, and mean and std to have them kept.
    tables: position tables [N, D] that `read` found; None: computed ones.
    ddp: `module.` before every name, as DistributedDataParallel has it and the
      released files have.
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
  grid = tuple(n // config['patch_size'] for n in config['image_size'])
  file = {_OURS: _said(config)}
  for part, tree in params.items():
    network = 'predictor' if part == 'predictor' else 'encoder'
    tensors = release_names.to_release(
      jax.device_get(tree), network, patch_size=config['patch_size']
    )
    table = (tables or {}).get(part)
    if table is None:
      width = config['predictor_width' if part == 'predictor' else 'width']
      table = positions.sincos_table(grid, width)
    tensors[weights.TABLES[part]] = np.asarray(table)[None]
    weights.require_same_shapes(
      {k: v.shape for k, v in tensors.items()},
      weights.release_shapes(config, part),
      f'The {part}',
    )
    # A module's own parameters come before its layers'. They are copied, for
    # PyTorch wants to be able to write to them.
    file[_NAMES[part]] = {
      k: torch.from_numpy(np.array(v, np.float32, order='C'))
      for k, v in sorted(tensors.items(), key=lambda item: '.' in item[0])
    }
  if optimizer:
    file[_OPTIMIZER] = release_adamw.write(torch, optimizer, file, config)
  for name in file.keys() & set(_NAMES.values()) if ddp else ():
    file[name] = {_DDP + k: v for k, v in file[name].items()}
  pytorch.write(torch, path, file)


def _networks(torch, file: dict, path) -> tuple[dict, set, list[str]]:
  """{part: {its own name: tensor}}, the file's keys that they are from, and
  what is to know of them.

  Raises:
    UserError: networks that can't be told apart, or that hold something else
      than tensors.
  """
  tables = {
    part: file[name]
    for part, name in _NAMES.items()
    if file.get(name) is not None
  }
  used, notes = {_NAMES[part] for part in tables}, []
  for part, table in tables.items():
    if not isinstance(table, dict) or not all(
      isinstance(k, str) for k in table
    ):
      raise UserError(f"{path}'s {_NAMES[part]} is not a table of tensors.")
  if tables:
    own = {
      part: wrappers.only(table, _ANCHORS[part], f"{path}'s {_NAMES[part]}")
      for part, table in tables.items()
    }
    for part, table in tables.items():
      notes += wrappers.passed_over(table, own[part].values())
  else:
    used = {k for k in _WHOLE if isinstance(file.get(k), dict)}
    table = file[min(used)] if len(used) == 1 else file
    table = {k: x for k, x in table.items() if isinstance(x, torch.Tensor)}
    own = _told_apart(table, path, notes)
    tables = dict.fromkeys(own, table)
    if own:
      taken = [kept for names in own.values() for kept in names.values()]
      notes += wrappers.passed_over(table, taken)
      used = used if len(used) == 1 else set(table)
  parts = {}
  for part, names in own.items():
    parts[part] = {k: tables[part][kept] for k, kept in names.items()}
    for name, tensor in parts[part].items():
      what = f"{path}'s {_NAMES[part]}: {name}"
      pytorch.check_tensor(torch, tensor, what)
  return parts, used, notes


def _told_apart(table: dict, path, notes: list[str]) -> dict[str, dict]:
  """Of one table of all tensors: {part: {its own name: name in the table}}."""
  found, own = {}, {}
  for part in 'encoder', 'predictor':
    try:
      networks = wrappers.networks(table, _ANCHORS[part])
    except ValueError as error:
      raise UserError(f'{path} {error}') from error
    for prefix, names in networks.items():
      word = prefix.removesuffix('.').rpartition('.')[2]
      told = 'predictor' if part == 'predictor' else _WORDS.get(word)
      found.setdefault(told, []).append(prefix)
      own[told] = wrappers.without_heads(names)
  if found.keys() == {None} and len(found[None]) == 1:
    notes.append(
      'It does not say which of the two encoders it holds: it is taken for the '
      'context encoder.'
    )
    return {'encoder': own[None]}
  if None in found or any(len(prefixes) > 1 for prefixes in found.values()):
    prefixes = sorted(p for prefixes in found.values() for p in prefixes)
    raise UserError(
      f'{path} holds networks whose names begin with '
      f'{", ".join(map(repr, prefixes))}: which are the context and the target '
      'encoder can not be known, so save them under the keys encoder and '
      'target_encoder.'
    )
  return own


def _config(path, found, said, heads, notes: list[str]) -> dict:
  part = 'target' if 'target' in found else 'encoder'
  config = weights.sizes_from_shapes(
    found[part],
    f"{path}'s {_NAMES[part]}",
    patch='patch_embed.proj.weight',
    fc1='blocks.0.mlp.fc1.weight',
    blocks=r'blocks\.(\d+)\.',
  )
  config['heads'] = heads or said.get('heads')
  if config['heads'] != said.get('heads', config['heads']):
    raise UserError(
      f'{path} says that its encoder has {said["heads"]!r} heads, not {heads}.'
    )
  if not config['heads']:
    known = {s['width']: s['heads'] for s in vit.SIZES.values()}
    if config['width'] not in known:
      raise UserError(
        f'{path} does not say how many heads its encoder of width '
        f'{config["width"]} has: give heads=.'
      )
    config['heads'] = known[config['width']]
    notes.append(
      f'The number of heads is not in the file: {config["heads"]} are taken, '
      f"the method's for a width of {config['width']}."
    )
  if 'predictor' in found:
    embed = found['predictor'].get('predictor_embed.weight', ())
    config |= dict(
      predictor_width=(*embed, 0)[0],
      predictor_depth=weights.depth(
        found['predictor'], r'predictor_blocks\.(\d+)\.'
      ),
      predictor_heads=said.get('predictor_heads', config['heads']),
    )
    if not config['predictor_width'] or not config['predictor_depth']:
      raise UserError(
        f"{path}'s predictor is none of I-JEPA: it has no "
        'predictor_embed.weight, or no predictor_blocks.'
      )
  return config


def _said(config: Mapping) -> dict:
  """A config as it is kept in a file: plain values alone."""
  return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}


def _dtypes(path, parts, notes: list[str]) -> str:
  found = {t.dtype for tensors in parts.values() for t in tensors.values()}
  types = {str(d).removeprefix('torch.') for d in found}
  names = weights.check_types(types, path)
  if names != 'float32':
    notes.append(f'The weights are stored as {names} and taken as float32.')
  return names


def _table(path, parts, found) -> np.ndarray:
  part = 'target' if 'target' in parts else 'encoder'
  name = weights.TABLES[part]
  shape = found[part].get(name, ())
  if len(shape) != 3 or shape[0] != 1 or not shape[1]:
    raise UserError(
      f"{path}'s {_NAMES[part]} has no {name} of the shape [1, N, D]."
    )
  return pytorch.to_numpy(parts[part][name], name, path)[0]
