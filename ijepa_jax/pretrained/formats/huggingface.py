"""Folders of Hugging Face transformers, in and out.

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

import jax
import numpy as np

from ijepa_jax.data.transforms import crop
from ijepa_jax.errors import UserError
from ijepa_jax.models import positions
from ijepa_jax.pretrained.formats import (
  huggingface_names,
  pytorch,
  release_names,
  safetensors,
  weights,
  wrappers,
)

_WEIGHTS, _CONFIG = 'model.safetensors', 'config.json'
_PICKLED = 'pytorch_model.bin'
_PATCHES = 'embeddings.patch_embeddings.projection.weight'
_PREPROCESSOR = 'preprocessor_config.json'
_WHICH = 'ijepa_encoder'  # in config.json: which of the two, in files from here
_JSON_LIMIT = 1_000_000  # bytes
_EPSILON = 1e-6  # of our LayerNorms (release)
# name there -> here; and what transformers takes where config.json is silent.
_SIZES = {
  'hidden_size': ('width', 768),
  'num_hidden_layers': ('depth', 12),
  'num_attention_heads': ('heads', 12),
  'intermediate_size': ('mlp_dim', 3072),
  'patch_size': ('patch_size', 16),
  'num_channels': ('channels', 3),
}


def read(path) -> weights.Weights:
  """Reads the encoder of a folder.

  It is the context encoder, which Hugging Face's converted files hold, unless
  the folder says that it is the target encoder (those written here do).

  Returns:
    Loaded, its params and tables with the key 'encoder' or 'target'; its config
    with 'mean' and 'std' where preprocessor_config.json has them.

  Raises:
    UserError: it is no such folder, it is damaged, or it does not fit.
  """
  path = pathlib.Path(path)
  said = _read_json(path / _CONFIG)
  if said.get('model_type') != 'ijepa':
    raise UserError(
      f'{path / _CONFIG} is of a {said.get("model_type")!r} model, not of an '
      "'ijepa' one."
    )
  stored, what = _stored(path)
  names_here = wrappers.only(stored, _PATCHES, what)
  tensors = {
    huggingface_names.older(k): stored[v] for k, v in names_here.items()
  }
  if len(tensors) < len(names_here):
    raise UserError(f'{what} holds tensors twice, named old and new.')
  found = {name: tuple(x.shape) for name, x in tensors.items()}
  config = _config(path, what, said, found)
  wanted = huggingface_names.from_release(
    {
      k: np.broadcast_to(np.float32(0), shape)
      for k, shape in weights.release_shapes(config, 'encoder').items()
    }
  )
  weights.require_same_shapes(
    found, {k: v.shape for k, v in wanted.items()}, what
  )
  which = said.get(_WHICH, 'encoder')
  if which not in ('encoder', 'target'):
    raise UserError(f'{path / _CONFIG}: {_WHICH} is {which!r}.')
  notes = []
  if which == 'encoder':
    notes.append(
      "This is the CONTEXT encoder: Hugging Face's converted files hold it, "
      'while the paper evaluates the target encoder.'
    )
  notes += wrappers.passed_over(stored, names_here.values())
  types = {str(x.dtype).removeprefix('torch.') for x in tensors.values()}
  types = weights.check_types(types, what)
  if types != 'float32':
    notes.append(f'The weights are stored as {types} and taken as float32.')
  notes += _epsilon_note(path, said) + _geometry_note(path, config)
  tensors = huggingface_names.to_release(
    {k: _array(x, f'{what}: {k}') for k, x in tensors.items()}
  )
  table = tensors[weights.TABLES[which]][0]
  notes += positions.note(
    table,
    tuple(n // config['patch_size'] for n in config['image_size']),
    'folder',
    tolerance=positions.tolerance_of(types),
  )
  params = {which: release_names.from_release(tensors, 'encoder')}
  return weights.Weights.told(path, config, params, {which: table}, notes)


def write(
  path,
  params: Mapping,
  config: Mapping,
  *,
  which: str = 'target',
  table: np.ndarray | None = None,
) -> None:
  """Writes one encoder as a folder that `IJepaModel.from_pretrained` takes.

  Args:
    path: of the folder, which must not be there yet, or be empty.
    params: trees of 'encoder', 'predictor' and 'target', those that there are;
      the others than `which` have no place in such a folder.
    config: as in `Weights`, or a run's config.model with image_size (H, W) and
      channels beside it; with mean and std, preprocessor_config.json is
      written too.
    which: 'target', which the paper evaluates, or 'encoder', the context's.
    table: position table [N, D] that `read` found; None: the computed one.

  Raises:
    UserError: the tree is not of this config, or the folder holds something.
  """
  path = pathlib.Path(path)
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise UserError(f'{path} is there already: take another name.')
  if which not in ('encoder', 'target') or which not in params:
    raise UserError(
      f'which is {which!r}: take encoder or target; there are '
      f'{", ".join(params)}.'
    )
  full = weights.complete_config(config, [which])
  weights.check_params({which: params[which]}, full)
  p = full['patch_size']
  if table is None:
    grid = tuple(n // p for n in full['image_size'])
    table = positions.sincos_table(grid, full['width'])
  tensors = release_names.to_release(
    jax.device_get(params[which]), 'encoder', patch_size=p
  )
  tensors['pos_embed'] = np.asarray(table)[None]
  weights.require_same_shapes(
    {k: v.shape for k, v in tensors.items()},
    weights.release_shapes(full, which),
    f'The {which}',
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent, prefix='.partial') as tmp:
    folder = pathlib.Path(tmp) / 'folder'
    folder.mkdir()
    _write_json(folder / _CONFIG, _their_config(full, which))
    if 'mean' in full and 'std' in full:
      _write_json(folder / _PREPROCESSOR, _preprocessor(full))
    safetensors.write(
      folder / _WEIGHTS,
      huggingface_names.from_release(tensors),
      {'format': 'pt'},
    )
    os.replace(folder, path)  # Over an empty folder, if there is one.


def _stored(path) -> tuple[dict, str]:
  """All tensors of a folder by name, still on the disk, and where they are.

  Those of pytorch_model.bin are PyTorch's, the others NumPy's.
  """
  for whole in _WEIGHTS, _PICKLED:
    if (path / whole).is_file():
      return _read_file(path / whole), str(path / whole)
    index = path / f'{whole}.index.json'
    if not index.is_file():
      continue
    places = _read_json(index).get('weight_map')
    if not isinstance(places, dict) or not places:
      raise UserError(f'{index} has no weight_map.')
    tensors = {}
    for file in sorted(set(map(str, places.values()))):
      if file != pathlib.PurePath(file).name:
        raise UserError(f'{index} names {file!r}, which is no file beside it.')
      tensors |= _read_file(path / file)
    if differ := tensors.keys() ^ places.keys():
      raise UserError(
        f'{index} does not list what its files hold: {weights.some(differ)}.'
      )
    return tensors, str(index)
  there = weights.some(p.name for p in path.iterdir()) or 'nothing'
  raise UserError(
    f'{path} has neither {_WEIGHTS} nor {_PICKLED}, whole or in parts with an '
    f'index: it has {there}.'
  )


def _read_file(path) -> dict:
  if path.suffix == '.safetensors':
    return safetensors.read(path)[0]
  pytorch.check(path)
  torch = pytorch.import_torch()
  tensors = pytorch.read(torch, path)
  if not isinstance(tensors, dict):
    raise UserError(f'{path} is not a table of tensors.')
  for name, x in tensors.items():
    pytorch.check_tensor(torch, x, f'{path}: {name}')
    pytorch.check_size(x, f'{path}: {name}', path)
  return tensors


def _array(x, name: str) -> np.ndarray:
  """A tensor of either kind, float32."""
  x = x if isinstance(x, np.ndarray) else x.detach().float().numpy()
  return weights.require_finite(x, name)


def _config(path, what: str, said: dict, found: Mapping) -> dict:
  """Ours, from the tensors, where config.json does not contradict them."""
  config = weights.sizes_from_shapes(
    found,
    what,
    patch=_PATCHES,
    fc1='encoder.layer.0.intermediate.dense.weight',
    blocks=r'encoder\.layer\.(\d+)\.',
  )
  where = path / _CONFIG
  for theirs, (ours, silent) in _SIZES.items():
    value = said.get(theirs, silent)
    if ours == 'patch_size' and isinstance(value, list):
      value = value[0] if value and len(set(map(str, value))) == 1 else value
    # All but the heads are in the tensors' shapes.
    if type(value) is not int or value != config.setdefault(ours, value):
      raise UserError(
        f'{where} says {theirs} = {value!r}, where '
        f'{config.get(ours, "a whole number")} is expected.'
      )
  for name, value in (('hidden_act', 'gelu'), ('qkv_bias', True)):
    if said.get(name, value) != value:
      raise UserError(
        f'{where} says {name} = {said[name]!r}: the model here has {value!r}.'
      )
  size = said.get('image_size', 224)
  size = size if isinstance(size, list) else [size, size]
  try:
    given = {
      'image_size': size,
      **_normalization(path, config['channels']),
    }
    config = weights.complete_config(config | given, ['encoder'])
  except (TypeError, ValueError) as error:
    raise UserError(f'{path} does not fit: {error}') from error
  (h, w), p = config['image_size'], config['patch_size']
  table = found.get('embeddings.position_embeddings', ())
  if (*table, 0, 0)[1] != (h // p) * (w // p):
    raise UserError(
      f'{where} says image_size = {size!r}, which the position_embeddings, '
      f'{list(table)}, do not fit.'
    )
  return config


def _their_config(config: Mapping, which: str) -> dict:
  h, w = config['image_size']
  return {
    'architectures': ['IJepaModel'],
    'model_type': 'ijepa',
    **{theirs: config[ours] for theirs, (ours, _) in _SIZES.items()},
    'image_size': h if h == w else [h, w],
    'hidden_act': 'gelu',
    'qkv_bias': True,
    'layer_norm_eps': _EPSILON,
    'hidden_dropout_prob': 0.0,
    'attention_probs_dropout_prob': 0.0,
    'initializer_range': 0.02,
    'pooler_output_size': config['width'],
    'torch_dtype': 'float32',
    _WHICH: which,
  }


def _epsilon_note(path, said: dict) -> list[str]:
  """Of a LayerNorm that adds another number to the variance than ours."""
  epsilon = said.get('layer_norm_eps', 1e-12)
  if not isinstance(epsilon, int | float) or not 0 <= epsilon <= 1e-5:
    raise UserError(
      f'{path / _CONFIG} says layer_norm_eps = {epsilon!r}: the model here has '
      f'{_EPSILON}.'
    )
  if epsilon == _EPSILON:
    return []
  return [
    f'Its LayerNorms add {epsilon} to the variance, those here {_EPSILON}: '
    'outputs differ in the last digits.'
  ]


def _preprocessor(config: Mapping) -> dict:
  """What makes the pixels that `crop.evaluation_crop` makes."""
  h, w = config['image_size']
  # Pictures of other channels transformers can't resize: it takes their arrays.
  picture = config['channels'] in (1, 3)
  return {
    # ViTImageProcessor cuts nothing out in transformers 4.
    'image_processor_type': 'CLIPImageProcessor',
    'do_convert_rgb': config['channels'] == 3,
    'do_resize': picture,
    'size': {'shortest_edge': crop.evaluation_crop((h, w)).resize},
    'resample': 3,  # bicubic
    'do_center_crop': picture,
    'crop_size': {'height': h, 'width': w},
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': config['mean'],
    'image_std': config['std'],
  }


def _normalization(path, channels: int) -> dict:
  """mean and std as preprocessor_config.json says them, if it does."""
  where = path / _PREPROCESSOR
  if not where.is_file():
    return {}
  said = _read_json(where)
  scaled, factor = said.get('do_rescale', True), said.get('rescale_factor')
  if factor is None:
    factor = 1 / 255
  if (
    not scaled or not isinstance(factor, float) or abs(255 * factor - 1) > 1e-6
  ):
    raise UserError(
      f'{where} says do_rescale = {scaled!r}, rescale_factor = {factor!r}: '
      'pixels are divided by 255 here, so say true and 1 / 255 there, with the '
      'mean and std of such pixels.'
    )
  if not said.get('do_normalize', True):
    return {'mean': [0.0] * channels, 'std': [1.0] * channels}
  found = {k: said.get(f'image_{k}') for k in ('mean', 'std')}
  return {k: v for k, v in found.items() if v is not None}


def _geometry_note(path, config: Mapping) -> list[str]:
  """Where the folder has pictures cut otherwise than they are here."""
  where = path / _PREPROCESSOR
  if not where.is_file():
    return []
  said, ours = _read_json(where), _preprocessor({'mean': 0, 'std': 0, **config})
  keys = 'do_resize', 'size', 'resample', 'do_center_crop', 'crop_size'
  theirs = {k: said.get(k) for k in keys}
  if all(theirs[k] == ours[k] for k in keys):
    return []
  h, w = config['image_size']
  return [
    f'Its {_PREPROCESSOR} says {json.dumps(theirs)}; here the shorter side '
    f'of a picture is brought to {ours["size"]["shortest_edge"]} pixels '
    f'(bicubic) and its middle, {h} x {w}, is cut out. Arrays that are made '
    "the folder's way are taken as they are."
  ]


def _read_json(path) -> dict:
  if not path.is_file() or path.stat().st_size > _JSON_LIMIT:
    raise UserError(
      f'{path} is not there, or far too long: a Hugging Face folder has '
      f'{_CONFIG} and {_WEIGHTS}.'
    )
  try:
    said = json.loads(path.read_text('utf-8'))
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f'{path} is not JSON ({type(error).__name__}).') from error
  if not isinstance(said, dict):
    raise UserError(f'{path} is not a JSON table.')
  return said


def _write_json(path, table: dict) -> None:
  path.write_text(json.dumps(table, indent=2) + '\n')
