"""Folders of Hugging Face transformers, read and written.

    config.json, model.safetensors   an IJepaModel: one encoder, no predictor
    preprocessor_config.json         from pictures to pixels, where it is known

Read are also models in several files or in pytorch_model.bin, and models that
have an IJepaModel in them, such as IJepaForImageClassification. transformers is
not needed, and nothing in a folder is executed.
"""

import json
import os
import pathlib
import tempfile
from collections.abc import Mapping

import numpy as np

from ijepa_jax.errors import UserError
from ijepa_jax.models import positions
from ijepa_jax.pretrained.formats import (
  huggingface_names,
  pytorch,
  release_names,
  tensors,
  weights,
)

_WEIGHTS, _CONFIG = 'model.safetensors', 'config.json'
_PICKLED = 'pytorch_model.bin'
_PREPROCESSOR = 'preprocessor_config.json'
_JSON_LIMIT = 1_000_000  # bytes


def read(path) -> weights.Weights:
  """Reads the encoder of a folder.

  It is the context encoder, which Hugging Face's converted files hold, unless
  the folder says that it is the target encoder (those written here do).

  Returns:
    Weights, its params and tables with the key 'encoder' or 'target'; its
    config with 'mean' and 'std' where preprocessor_config.json has them.

  Raises:
    UserError: it is no such folder, it is damaged, or it does not fit.
  """
  path = pathlib.Path(path)
  model = _read_json(path / _CONFIG)
  if model.get('model_type') != 'ijepa':
    raise UserError(
      f'{path / _CONFIG} is of a {model.get("model_type")!r} model, not of an '
      "'ijepa' one."
    )
  stored, title = _read_tensors(path)
  names = tensors.only_network(stored, huggingface_names.PATCHES, title)
  network = {huggingface_names.older(k): stored[v] for k, v in names.items()}
  if len(network) < len(names):
    raise UserError(f'{title} holds tensors twice, named old and new.')
  config, notes = _config(path, model, network, title)
  part = model.get(huggingface_names.ENCODER, 'encoder')
  if part not in ('encoder', 'target'):
    raise UserError(
      f'{path / _CONFIG}: {huggingface_names.ENCODER} is {part!r}.'
    )
  dtype = tensors.dtype_names({x.dtype for x in network.values()}, title)
  arrays = huggingface_names.to_release(
    {k: _to_numpy(x, f'{title}: {k}') for k, x in network.items()}
  )
  params = release_names.from_release(arrays, 'encoder')
  params, table = weights.own_arrays((params, arrays['pos_embed'][0]))
  context_note = (
    "This is the CONTEXT encoder: Hugging Face's converted files hold it, "
    'while the paper evaluates the target encoder.'
  )
  notes = [
    *([context_note] if part == 'encoder' else []),
    *tensors.unused_note(stored, names.values()),
    *tensors.dtype_note(dtype),
    *notes,
    *positions.note(
      table,
      weights.grid(config),
      'folder',
      tolerance=positions.tolerance_of(dtype),
    ),
  ]
  return weights.Weights(config, {part: params}, {part: table}, notes)


def _config(path, model: dict, network: Mapping, title: str):
  """Returns the config of `Weights`, which the tensors fit, and notes."""
  file, shapes = path / _CONFIG, {k: tuple(x.shape) for k, x in network.items()}
  sizes = huggingface_names.to_sizes(model, shapes, file=file, title=title)
  pixels_file, pixels = path / _PREPROCESSOR, {}
  if pixels_file.is_file():
    preprocessor = _read_json(pixels_file)
    pixels = huggingface_names.normalization(
      preprocessor, sizes['channels'], pixels_file
    )
  size = model.get('image_size', 224)
  size = size if isinstance(size, list) else [size, size]
  try:
    config = weights.complete_config(
      sizes | pixels | {'image_size': size}, ['encoder']
    )
  except (TypeError, ValueError) as error:  # JSON's values may be of any type
    raise UserError(f'{path} does not fit: {error}') from error
  rows, columns = weights.grid(config)
  table = shapes.get(huggingface_names.TABLE, ())
  if (*table, 0, 0)[1] != rows * columns:
    raise UserError(
      f'{file} says image_size = {size!r}, which the position_embeddings, '
      f'{list(table)}, do not fit.'
    )
  expected = huggingface_names.from_release(
    {
      k: np.broadcast_to(np.float32(0), shape)
      for k, shape in weights.release_shapes(config, 'encoder').items()
    }
  )
  tensors.require_same_shapes(
    shapes, {k: x.shape for k, x in expected.items()}, title
  )
  notes = huggingface_names.epsilon_note(model, file)
  if pixels_file.is_file():
    notes += huggingface_names.geometry_note(preprocessor, config, pixels_file)
  return config, notes


def _read_tensors(path) -> tuple[dict, str]:
  """Returns all tensors of a folder by name, and the file they are from.

  Those of pytorch_model.bin are PyTorch's, still on the disk; the others are
  NumPy's.
  """
  for name in _WEIGHTS, _PICKLED:
    if (path / name).is_file():
      return _read_file(path / name), str(path / name)
    index = path / f'{name}.index.json'
    if not index.is_file():
      continue
    file_of = _read_json(index).get('weight_map')
    if not isinstance(file_of, dict) or not file_of:
      raise UserError(f'{index} has no weight_map.')
    stored = {}
    for file in sorted(set(map(str, file_of.values()))):
      if file != pathlib.PurePath(file).name:
        raise UserError(f'{index} names {file!r}, which is no file beside it.')
      stored |= _read_file(path / file)
    if differ := stored.keys() ^ file_of.keys():
      raise UserError(
        f'{index} does not list what its files hold: '
        f'{tensors.first_names(differ)}.'
      )
    return stored, str(index)
  content = tensors.first_names(p.name for p in path.iterdir()) or 'nothing'
  raise UserError(
    f'{path} has neither {_WEIGHTS} nor {_PICKLED}, whole or in parts with an '
    f'index: it has {content}.'
  )


def _read_file(path) -> dict:
  if path.suffix == '.safetensors':
    return tensors.read_safetensors(path)
  pytorch.check(path)
  torch = pytorch.import_torch()
  stored = pytorch.read(torch, path)
  if not isinstance(stored, dict):
    raise UserError(f'{path} is not a table of tensors.')
  for name, x in stored.items():
    pytorch.check_tensor(torch, x, f'{path}: {name}')
    pytorch.check_size(x, f'{path}: {name}', path)
  return stored


def _to_numpy(x, name: str) -> np.ndarray:
  """Returns a tensor of NumPy or PyTorch as a float32 array."""
  x = x if isinstance(x, np.ndarray) else x.detach().float().numpy()
  return tensors.require_finite(x, name)


def _read_json(path) -> dict:
  if not path.is_file() or path.stat().st_size > _JSON_LIMIT:
    raise UserError(
      f'{path} is not there, or far too long: a Hugging Face folder has '
      f'{_CONFIG} and {_WEIGHTS}.'
    )
  try:
    table = json.loads(path.read_text('utf-8'))
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f'{path} is not JSON ({type(error).__name__}).') from error
  if not isinstance(table, dict):
    raise UserError(f'{path} is not a JSON table.')
  return table


def write(
  path,
  params: Mapping,
  config: Mapping,
  *,
  part: str = 'target',
  table: np.ndarray | None = None,
) -> None:
  """Writes one encoder as a folder that `IJepaModel.from_pretrained` takes.

  Args:
    path: of the folder, which must not be there yet, or be empty.
    params: trees of 'encoder', 'predictor' and 'target', those that there are;
      such a folder has no place for other ones than `part`.
    config: as in `Weights`, or a run's config.model with image_size (H, W) and
      channels beside it; with mean and std, preprocessor_config.json is
      written too.
    part: 'target', which the paper evaluates, or 'encoder', the context's.
    table: position table [N, D] to keep; None: the computed one.

  Raises:
    UserError: the tree is not of this config, or the folder holds something.
  """
  path = pathlib.Path(path)
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise UserError(f'{path} is there already: take another name.')
  if part not in ('encoder', 'target') or part not in params:
    raise UserError(
      f'part is {part!r}: take encoder or target; there are '
      f'{", ".join(params)}.'
    )
  config = weights.complete_config(config, [part])
  weights.check_params({part: params[part]}, config)
  arrays = weights.release_tensors(config, part, params[part], table)
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent, prefix='.partial') as tmp:
    folder = pathlib.Path(tmp) / 'folder'
    folder.mkdir()
    _write_json(folder / _CONFIG, huggingface_names.from_config(config, part))
    if 'mean' in config and 'std' in config:
      _write_json(
        folder / _PREPROCESSOR, huggingface_names.preprocessor(config)
      )
    tensors.write_safetensors(
      folder / _WEIGHTS,
      huggingface_names.from_release(arrays),
      {'format': 'pt'},
    )
    os.replace(folder, path)  # Over an empty folder, if there is one.


def _write_json(path, table: dict) -> None:
  path.write_text(json.dumps(table, indent=2) + '\n')
