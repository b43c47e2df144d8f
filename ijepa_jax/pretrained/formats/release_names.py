"""Parameter names of the released PyTorch I-JEPA, to and from our trees.

The release has one module a block, weights as [out, in] and convolutions as
[out, in, rows, columns]; here blocks are stacked [depth, ...] and weights are
[in, out]. The sin-cos tables are computed, never loaded.
"""

from collections.abc import Mapping

import numpy as np

from ijepa_jax.errors import UserError

# Name in the release -> name in our tree.
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


def from_release(tensors: Mapping[str, np.ndarray], network: str) -> dict:
  """Returns a Flax parameter tree of arrays under the release's names.

  Args:
    tensors: name -> array, of one network.
    network: 'encoder' (the target encoder too) or 'predictor'.

  Raises:
    UserError: a name is missing, or one is left over.
  """
  unused = {k: v for k, v in tensors.items() if k not in _TABLES}

  def pop(name):
    if name not in unused:
      raise UserError(
        f'The {network} has no {name!r}: not an I-JEPA {network}.'
      )
    return np.asarray(unused.pop(name))

  def layer(name):
    weight, bias = pop(f'{name}.weight'), pop(f'{name}.bias')
    if weight.ndim == 1:
      return {'scale': weight, 'bias': bias}
    if weight.ndim == 4:
      weight = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)
    return {'kernel': weight.T, 'bias': bias}

  def stacked(name):
    layers = [layer(f'{_BLOCKS[network]}.{i}.{name}') for i in range(depth)]
    return {k: np.stack([x[k] for x in layers]) for k in layers[0]}

  depth = 0
  while f'{_BLOCKS[network]}.{depth}.norm1.weight' in unused:
    depth += 1
  if not depth:
    raise UserError(f'The {network} has no blocks: not an I-JEPA {network}.')
  params = {key: layer(name) for name, key in _TOP[network].items()}
  params['blocks'] = {key: stacked(name) for name, key in _LAYERS.items()}
  if network == 'predictor':
    params['mask_token'] = pop('mask_token').reshape(-1)
  if unused:
    raise UserError(
      f'The {network} has {len(unused)} tensors that I-JEPA has no place for, '
      f'{", ".join(sorted(unused)[:3])} among them.'
    )
  return params


def to_release(
  params, network: str, *, patch_size: int
) -> dict[str, np.ndarray]:
  """Returns the inverse of `from_release`, without the sin-cos tables.

  The names come in the order of the released files, by which an optimizer's
  state counts.
  """
  tensors = {}

  def add(name, layer):
    layer = {k: np.asarray(v) for k, v in layer.items()}
    weight = layer['scale'] if 'scale' in layer else layer['kernel'].T
    if name == 'patch_embed.proj':
      p = patch_size
      weight = weight.reshape(len(weight), p, p, -1).transpose(0, 3, 1, 2)
    tensors[f'{name}.weight'] = weight
    tensors[f'{name}.bias'] = layer['bias']

  if network == 'predictor':
    tensors['mask_token'] = np.asarray(params['mask_token'])[None, None]
  (first, key), *last = _TOP[network].items()
  add(first, params[key])
  blocks = params['blocks']
  for i in range(len(blocks['norm1']['bias'])):
    for name, key in _LAYERS.items():
      add(
        f'{_BLOCKS[network]}.{i}.{name}',
        {k: v[i] for k, v in blocks[key].items()},
      )
  for name, key in last:
    add(name, params[key])
  return tensors
