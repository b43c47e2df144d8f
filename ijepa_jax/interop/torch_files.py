"""The released .pth.tar files: read and written with PyTorch.

    encoder, predictor, target_encoder   {name: tensor}, names as in release.py,
                                         all with `module.` before them or none
    opt, scaler, epoch, ...              passed over
    ijepa_jax                            in files from here: what the tensors do
                                         not say (heads, image_size, ...)

PyTorch (the extra `torch`) is imported only when a file is read or written.
Such a file is a zip archive around a pickle; only tensors and plain values are
taken from it (`weights_only`), so nothing in it is ever executed, and nothing
is unpacked to the disk.
"""

import os
import pathlib
import pickle
from collections.abc import Mapping

import jax
import numpy as np

from ijepa_jax import vit
from ijepa_jax.interop import architecture, archive, release

_NAMES = {
  'encoder': 'encoder',
  'predictor': 'predictor',
  'target': 'target_encoder',
}
_OURS = 'ijepa_jax'
_DDP = 'module.'


def read(
  path,
  *,
  heads: int | None = None,
  image_size: tuple[int, int] | None = None,
) -> architecture.Loaded:
  """Reads the networks of a released file, or of one written here.

  Args:
    path: of the file.
    heads: of the encoder, which a released file does not say; None: the
      method's for this width.
    image_size: (H, W) in pixels; None: what the position table tells.

  Raises:
    ValueError: it is no such file, it is damaged, or it does not fit.
  """
  torch = _torch()
  file = _load(torch, path)
  parts = {
    part: _without_ddp(torch, file[name], f"{path}'s {name}")
    for part, name in _NAMES.items()
    if file.get(name) is not None
  }
  if not {'encoder', 'target'} & set(parts):
    raise ValueError(
      f'{path} holds neither an encoder nor a target_encoder: it is not of '
      f'I-JEPA (it has {", ".join(sorted(map(str, file))[:3]) or "nothing"}).'
    )
  said = file.get(_OURS, {})
  found = {
    part: {name: tuple(t.shape) for name, t in tensors.items()}
    for part, tensors in parts.items()
  }
  config = _config(path, found, said, heads, notes := [])
  dtype = _dtypes(torch, path, parts, notes)
  tolerance = architecture.table_tolerance(dtype)
  config['image_size'] = image_size or said.get('image_size')
  config |= {k: said[k] for k in ('mean', 'std') if k in said}
  if config['image_size'] is None:
    table = _table(path, parts, found)
    grid = architecture.find_grid(table, str(path), tolerance=tolerance)
    config['image_size'] = tuple(n * config['patch_size'] for n in grid)
  try:
    config = architecture.complete(config, parts)
  except (TypeError, ValueError) as error:
    raise ValueError(f'{path} does not fit: {error}') from error
  params, tables = {}, {}
  for part in parts:
    name = f"{path}'s {_NAMES[part]}"
    architecture.check(
      found[part], architecture.release_shapes(config, part), name
    )
    tensors = {
      k: _numpy(t, f'{name}: {k}', path) for k, t in parts[part].items()
    }
    tables[part] = tensors[architecture.TABLES[part]][0]
    notes += architecture.table_note(
      tables[part],
      tuple(n // config['patch_size'] for n in config['image_size']),
      _NAMES[part],
      tolerance=tolerance,
    )
    network = 'predictor' if part == 'predictor' else 'encoder'
    params[part] = release.from_release(tensors, network)
  if said and said != _said(config):
    raise ValueError(
      f'{path} says of itself {said}, and its tensors say {_said(config)}.'
    )
  for part, why in (
    ('target', 'the context encoder is what there is'),
    ('predictor', 'enough to evaluate, not to go on with pre-training'),
  ):
    if part not in parts:
      notes.append(f'There is no {_NAMES[part]}: {why}.')
  if rest := sorted(map(str, file.keys() - {*_NAMES.values(), _OURS})):
    notes.append(f'Passed over: {", ".join(rest)}.')
  return architecture.Loaded.told(path, config, params, tables, notes)


def write(
  path,
  params: Mapping,
  config: Mapping,
  *,
  tables: Mapping[str, np.ndarray] | None = None,
  ddp: bool = True,
) -> None:
  """Writes a file as the released ones are.

  Args:
    path: of the file, which must not be there yet.
    params: trees of 'encoder', 'predictor' and 'target', those that there are.
    config: as in `Loaded`, or a run's config.model with image_size (H, W) and
      channels beside it, and mean and std to have them kept.
    tables: position tables [N, D] that `read` found; None: computed ones.
    ddp: `module.` before every name, as DistributedDataParallel has it and the
      released files have.

  Raises:
    ValueError: the trees are not of this config, or the file is there already.
  """
  torch = _torch()
  path = pathlib.Path(path)
  if path.exists():
    raise ValueError(f'{path} is there already: take another name.')
  config = architecture.complete(config, params)
  architecture.check_params(params, config)
  grid = tuple(n // config['patch_size'] for n in config['image_size'])
  file = {_OURS: _said(config)}
  for part, tree in params.items():
    network = 'predictor' if part == 'predictor' else 'encoder'
    tensors = release.to_release(
      jax.device_get(tree), network, patch_size=config['patch_size']
    )
    table = (tables or {}).get(part)
    if table is None:
      width = config['predictor_width' if part == 'predictor' else 'width']
      table = vit.sincos_table(grid, width)
    tensors[architecture.TABLES[part]] = np.asarray(table)[None]
    architecture.check(
      {k: v.shape for k, v in tensors.items()},
      architecture.release_shapes(config, part),
      f'The {part}',
    )
    prefix = _DDP if ddp else ''
    # Copied, for PyTorch wants to be able to write to them.
    file[_NAMES[part]] = {
      prefix + k: torch.from_numpy(np.array(v, np.float32, order='C'))
      for k, v in tensors.items()
    }
  partial = path.with_name(path.name + '.partial')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(file, partial)
    os.replace(partial, path)
  except RuntimeError as error:  # PyTorch's, of a full disk among others.
    raise OSError(f'{path} could not be written: {error}') from error
  finally:
    partial.unlink(missing_ok=True)


def _torch():
  try:
    import torch
  except ImportError as error:
    raise ValueError(
      "Files of PyTorch need PyTorch: pip install 'ijepa_jax[torch]'."
    ) from error
  return torch


def _load(torch, path) -> dict:
  archive.check(path)
  try:
    file = torch.load(
      os.fspath(path), map_location='cpu', weights_only=True, mmap=True
    )
  except MemoryError:
    raise
  except pickle.UnpicklingError as error:
    raise ValueError(
      f'{path} holds more than tensors and plain values: what it holds would '
      'have to be executed, and never is here.'
    ) from error
  except Exception as error:
    # A hostile pickle can make its reader fail in any way.
    raise ValueError(
      f'{path} can not be read as a file of PyTorch ({type(error).__name__}).'
    ) from error
  if not isinstance(file, dict) or not isinstance(file.get(_OURS, {}), dict):
    raise ValueError(f'{path} is not a table of networks, as I-JEPA files are.')
  return file


def _without_ddp(torch, tensors, what: str) -> dict:
  if not isinstance(tensors, dict) or not all(
    isinstance(k, str) for k in tensors
  ):
    raise ValueError(f'{what} is not a table of tensors.')
  while tensors and all(k.startswith(_DDP) for k in tensors):
    tensors = {k.removeprefix(_DDP): v for k, v in tensors.items()}
  for name, tensor in tensors.items():
    if (
      not isinstance(tensor, torch.Tensor)
      or tensor.layout != torch.strided
      or tensor.is_nested
      or tensor.device.type != 'cpu'
    ):
      raise ValueError(f'{what}: {name} is no plain tensor.')
  return tensors


def _config(path, found, said, heads, notes: list[str]) -> dict:
  part = 'target' if 'target' in found else 'encoder'
  config = architecture.sizes(
    found[part],
    f"{path}'s {_NAMES[part]}",
    patch='patch_embed.proj.weight',
    fc1='blocks.0.mlp.fc1.weight',
    blocks=r'blocks\.(\d+)\.',
  )
  config['heads'] = heads or said.get('heads')
  if not config['heads']:
    known = {s['width']: s['heads'] for s in vit.SIZES.values()}
    if config['width'] not in known:
      raise ValueError(
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
      predictor_depth=architecture.depth(
        found['predictor'], r'predictor_blocks\.(\d+)\.'
      ),
      predictor_heads=said.get('predictor_heads', config['heads']),
    )
    if not config['predictor_width'] or not config['predictor_depth']:
      raise ValueError(
        f"{path}'s predictor is none of I-JEPA: it has no "
        'predictor_embed.weight, or no predictor_blocks.'
      )
  return config


def _said(config: Mapping) -> dict:
  """A config as it is kept in a file: plain values alone."""
  return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}


def _dtypes(torch, path, parts, notes: list[str]) -> str:
  found = {t.dtype for tensors in parts.values() for t in tensors.values()}
  known = torch.float32, torch.float64, torch.float16, torch.bfloat16
  names = ', '.join(sorted(str(d).removeprefix('torch.') for d in found))
  if not found <= set(known):
    raise ValueError(f'{path} holds weights of the types {names}: not I-JEPA.')
  if found != {torch.float32}:
    notes.append(f'The weights are stored as {names} and taken as float32.')
  return names


def _table(path, parts, found) -> np.ndarray:
  part = 'target' if 'target' in parts else 'encoder'
  name = architecture.TABLES[part]
  shape = found[part].get(name, ())
  if len(shape) != 3 or shape[0] != 1 or not shape[1]:
    raise ValueError(
      f"{path}'s {_NAMES[part]} has no {name} of the shape [1, N, D]."
    )
  return _numpy(parts[part][name], name, path)[0]


def _numpy(tensor, name: str, path) -> np.ndarray:
  # A pickle may describe a tensor far larger than what lies behind it.
  stored = min(tensor.untyped_storage().nbytes(), os.path.getsize(path))
  if tensor.numel() * tensor.element_size() > stored:
    raise ValueError(f'{name} is larger than what is stored of it.')
  return architecture.finite(tensor.detach().float().numpy(), name)
