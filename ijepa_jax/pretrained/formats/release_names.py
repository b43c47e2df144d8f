"""Parameter names of the released PyTorch I-JEPA, to and from ours.

The release has one module a block, weights as [out, in] and convolutions as
[out, in, rows, columns]; here blocks are stacked [depth, ...] and weights are
[in, out]. The sin-cos tables are computed, never loaded.
"""

from collections.abc import Mapping

import numpy as np

from ijepa_jax.errors import UserError

_LAYERS = {
  'norm1': 'norm1',
  'attn.qkv': 'qkv',
  'attn.proj': 'proj',
  'norm2': 'norm2',
  'mlp.fc1': 'fc1',
  'mlp.fc2': 'fc2',
}
_TOP = {
  'encoder': {'patch_embed.proj': 'patch_embed', 'norm': 'norm'},
  'predictor': {
    'predictor_embed': 'embed',
    'predictor_norm': 'norm',
    'predictor_proj': 'proj',
  },
}
_BLOCKS = {'encoder': 'blocks', 'predictor': 'predictor_blocks'}
_TABLES = {'pos_embed', 'predictor_pos_embed'}


def from_release(tensors: Mapping[str, np.ndarray], part: str) -> dict:
  """A Flax parameter tree from arrays under the release's names.

  Args:
    tensors: name -> array, of one network.
    part: 'encoder' (the target encoder too) or 'predictor'.

  Raises:
    UserError: a name is missing, or one is left over.
  """
  left = {k: v for k, v in tensors.items() if k not in _TABLES}

  def take(name):
    if name not in left:
      raise UserError(f'The {part} has no {name!r}: not an I-JEPA {part}.')
    return np.asarray(left.pop(name))

  def layer(name):
    weight, bias = take(f'{name}.weight'), take(f'{name}.bias')
    if weight.ndim == 1:
      return {'scale': weight, 'bias': bias}
    if weight.ndim == 4:
      weight = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)
    return {'kernel': weight.T, 'bias': bias}

  depth = 0
  while f'{_BLOCKS[part]}.{depth}.norm1.weight' in left:
    depth += 1
  if not depth:
    raise UserError(f'The {part} has no blocks: not an I-JEPA {part}.')
  params = {ours: layer(name) for name, ours in _TOP[part].items()}
  params['blocks'] = {
    ours: _stack([layer(f'{_BLOCKS[part]}.{i}.{name}') for i in range(depth)])
    for name, ours in _LAYERS.items()
  }
  if part == 'predictor':
    params['mask_token'] = take('mask_token').reshape(-1)
  if left:
    raise UserError(
      f'The {part} has {len(left)} tensors that I-JEPA has no place for, '
      f'{", ".join(sorted(left)[:3])} among them.'
    )
  return params


def _stack(layers):
  return {k: np.stack([layer[k] for layer in layers]) for k in layers[0]}


def to_release(params, part: str, *, patch_size: int) -> dict[str, np.ndarray]:
  """The inverse of `from_release`, without the sin-cos tables.

  The names come in the order of the released files, by which an optimiser's
  state counts.
  """
  tensors = {}

  def put(name, layer):
    layer = {k: np.asarray(v) for k, v in layer.items()}
    weight = layer['scale'] if 'scale' in layer else layer['kernel'].T
    if name == 'patch_embed.proj':
      p = patch_size
      weight = weight.reshape(len(weight), p, p, -1).transpose(0, 3, 1, 2)
    tensors[f'{name}.weight'] = weight
    tensors[f'{name}.bias'] = layer['bias']

  if part == 'predictor':
    tensors['mask_token'] = np.asarray(params['mask_token'])[None, None]
  (first, ours), *last = _TOP[part].items()
  put(first, params[ours])
  blocks = params['blocks']
  for i in range(len(blocks['norm1']['bias'])):
    for name, ours in _LAYERS.items():
      put(
        f'{_BLOCKS[part]}.{i}.{name}',
        {k: v[i] for k, v in blocks[ours].items()},
      )
  for name, ours in last:
    put(name, params[ours])
  return tensors
