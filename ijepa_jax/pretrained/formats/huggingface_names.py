"""transformers' names for an IJepaModel: of its tensors and of its settings.

Tensors are named as transformers 4 has them in its modules, and both 4 and 5 on
the disk. Queries, keys and values, one tensor in the release, are three there.
Settings stand in config.json and, of the pixels, in preprocessor_config.json.
"""

import json
from collections.abc import Mapping

import numpy as np

from ijepa_jax.data.transforms import crop
from ijepa_jax.errors import UserError
from ijepa_jax.pretrained.formats import tensors

# In config.json: which of the two encoders, in folders from here.
ENCODER = 'ijepa_encoder'
PATCHES = 'embeddings.patch_embeddings.projection.weight'
TABLE = 'embeddings.position_embeddings'
_TOP = {
  'pos_embed': TABLE,
  'patch_embed.proj': PATCHES.removesuffix('.weight'),
  'norm': 'layernorm',
}
_BLOCK = {
  'norm1': 'layernorm_before',
  'attn.proj': 'attention.output.dense',
  'norm2': 'layernorm_after',
  'mlp.fc1': 'intermediate.dense',
  'mlp.fc2': 'output.dense',
}
_QKV = [f'attention.attention.{n}' for n in ('query', 'key', 'value')]
# The names in transformers 5's modules, should somebody have stored those.
_NEWER = {
  'attention.q_proj': _QKV[0],
  'attention.k_proj': _QKV[1],
  'attention.v_proj': _QKV[2],
  'attention.o_proj': _BLOCK['attn.proj'],
  'mlp.fc1': _BLOCK['mlp.fc1'],
  'mlp.fc2': _BLOCK['mlp.fc2'],
}
# Key of config.json -> key of `Weights.config`, and transformers' default.
_SIZES = {
  'hidden_size': ('width', 768),
  'num_hidden_layers': ('depth', 12),
  'num_attention_heads': ('heads', 12),
  'intermediate_size': ('mlp_dim', 3072),
  'patch_size': ('patch_size', 16),
  'num_channels': ('channels', 3),
}
_EPSILON = 1e-6  # of our LayerNorms (release)


def older(name: str) -> str:
  """Returns a name of transformers 5's modules as it is on the disk."""
  if not name.startswith('layers.'):
    return name
  i, _, inner = name.removeprefix('layers.').partition('.')
  layer, _, leaf = inner.rpartition('.')
  return f'encoder.layer.{i}.{_NEWER.get(layer, layer)}.{leaf}'


def from_release(arrays: Mapping) -> dict[str, np.ndarray]:
  """Renames arrays from the release; splits queries, keys and values."""
  renamed = {}
  for name, x in arrays.items():
    if name in _TOP:
      renamed[_TOP[name]] = x
      continue
    layer, _, leaf = name.rpartition('.')
    if layer in _TOP:
      renamed[f'{_TOP[layer]}.{leaf}'] = x
      continue
    _, i, layer = layer.split('.', 2)
    block = f'encoder.layer.{i}'
    if layer == 'attn.qkv':
      for part, third in zip(_QKV, np.split(x, 3), strict=True):
        renamed[f'{block}.{part}.{leaf}'] = third
    else:
      renamed[f'{block}.{_BLOCK[layer]}.{leaf}'] = x
  return renamed


def to_release(arrays: Mapping) -> dict[str, np.ndarray]:
  """Returns the inverse of `from_release`, of names that were checked."""
  top = {v: k for k, v in _TOP.items()}
  block = {v: k for k, v in _BLOCK.items()}
  renamed = {}
  for name, x in arrays.items():
    layer, _, leaf = name.rpartition('.')
    if name in top:
      renamed[top[name]] = x
    elif layer in top:
      renamed[f'{top[layer]}.{leaf}'] = x
    else:
      _, _, i, layer = layer.split('.', 3)
      if layer in block:
        renamed[f'blocks.{i}.{block[layer]}.{leaf}'] = x
      elif layer == _QKV[0]:
        thirds = [arrays[f'encoder.layer.{i}.{n}.{leaf}'] for n in _QKV]
        renamed[f'blocks.{i}.attn.qkv.{leaf}'] = np.concatenate(thirds)
  return renamed


def to_sizes(model: dict, shapes: Mapping, *, file, title: str) -> dict:
  """Returns sizes of `Weights.config`, from the shapes and from config.json.

  Args:
    model: what config.json holds.
    shapes: {name: shape} of the encoder's tensors.
    file, title: of config.json and of the tensors, for sentences.

  Raises:
    UserError: config.json contradicts the shapes, or the model here.
  """
  config = tensors.sizes_from_shapes(
    shapes,
    title,
    patch=PATCHES,
    fc1='encoder.layer.0.intermediate.dense.weight',
    blocks=r'encoder\.layer\.(\d+)\.',
  )
  for key, (size, default) in _SIZES.items():
    value = model.get(key, default)
    if size == 'patch_size' and isinstance(value, list):
      value = value[0] if value and len(set(map(str, value))) == 1 else value
    # All but the heads are in the tensors' shapes.
    if type(value) is not int or value != config.setdefault(size, value):
      raise UserError(
        f'{file} says {key} = {value!r}, where '
        f'{config.get(size, "a whole number")} is expected.'
      )
  for key, value in (('hidden_act', 'gelu'), ('qkv_bias', True)):
    if model.get(key, value) != value:
      raise UserError(
        f'{file} says {key} = {model[key]!r}: the model here has {value!r}.'
      )
  return config


def from_config(config: Mapping, part: str) -> dict:
  """Returns the content of config.json for an encoder of this config."""
  h, w = config['image_size']
  return {
    'architectures': ['IJepaModel'],
    'model_type': 'ijepa',
    **{key: config[size] for key, (size, _) in _SIZES.items()},
    'image_size': h if h == w else [h, w],
    'hidden_act': 'gelu',
    'qkv_bias': True,
    'layer_norm_eps': _EPSILON,
    'hidden_dropout_prob': 0.0,
    'attention_probs_dropout_prob': 0.0,
    'initializer_range': 0.02,
    'pooler_output_size': config['width'],
    'torch_dtype': 'float32',
    ENCODER: part,
  }


def epsilon_note(model: dict, file) -> list[str]:
  """Returns a sentence where the LayerNorms' epsilon is not the one here."""
  epsilon = model.get('layer_norm_eps', 1e-12)
  if not isinstance(epsilon, int | float) or not 0 <= epsilon <= 1e-5:
    raise UserError(
      f'{file} says layer_norm_eps = {epsilon!r}: the model here has '
      f'{_EPSILON}.'
    )
  if epsilon == _EPSILON:
    return []
  return [
    f'Its LayerNorms add {epsilon} to the variance, those here {_EPSILON}: '
    'outputs differ in the last digits.'
  ]


def preprocessor(config: Mapping) -> dict:
  """Returns the preprocessor_config.json that makes our pixels.

  These are the pixels of `crop.evaluation_crop`.
  """
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


def normalization(stored: dict, channels: int, file) -> dict:
  """Returns mean and std, as far as preprocessor_config.json has them.

  Raises:
    UserError: it does not divide pixels by 255.
  """
  scaled, factor = stored.get('do_rescale', True), stored.get('rescale_factor')
  if factor is None:
    factor = 1 / 255
  if (
    not scaled or not isinstance(factor, float) or abs(255 * factor - 1) > 1e-6
  ):
    raise UserError(
      f'{file} says do_rescale = {scaled!r}, rescale_factor = {factor!r}: '
      'pixels are divided by 255 here, so say true and 1 / 255 there, with the '
      'mean and std of such pixels.'
    )
  if not stored.get('do_normalize', True):
    return {'mean': [0.0] * channels, 'std': [1.0] * channels}
  pixels = {k: stored.get(f'image_{k}') for k in ('mean', 'std')}
  return {k: v for k, v in pixels.items() if v is not None}


def geometry_note(stored: dict, config: Mapping, file) -> list[str]:
  """Returns a sentence where pictures are cut otherwise than here."""
  expected = preprocessor({'mean': 0, 'std': 0, **config})
  keys = 'do_resize', 'size', 'resample', 'do_center_crop', 'crop_size'
  settings = {k: stored.get(k) for k in keys}
  if all(settings[k] == expected[k] for k in keys):
    return []
  h, w = config['image_size']
  return [
    f'Its {file.name} says {json.dumps(settings)}; here the shorter side '
    f'of a picture is brought to {expected["size"]["shortest_edge"]} pixels '
    f'(bicubic) and its middle, {h} x {w}, is cut out. Arrays that are made '
    "the folder's way are taken as they are."
  ]
