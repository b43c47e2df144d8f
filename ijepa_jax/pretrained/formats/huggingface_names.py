"""Tensors' names in transformers' IJepaModel, to and from the release's.

As transformers 4 has them in its modules and both 4 and 5 on the disk. Queries,
keys and values, one tensor in the release, are three there.
"""

from collections.abc import Mapping

import numpy as np

_TOP = {
  'pos_embed': 'embeddings.position_embeddings',
  'patch_embed.proj': 'embeddings.patch_embeddings.projection',
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


def older(name: str) -> str:
  """A name of transformers 5's modules as it is on the disk."""
  if not name.startswith('layers.'):
    return name
  i, _, rest = name.removeprefix('layers.').partition('.')
  layer, _, leaf = rest.rpartition('.')
  return f'encoder.layer.{i}.{_NEWER.get(layer, layer)}.{leaf}'


def from_release(tensors: Mapping) -> dict[str, np.ndarray]:
  """From the release's names to theirs; queries, keys and values apart."""
  theirs = {}
  for name, x in tensors.items():
    if name in _TOP:
      theirs[_TOP[name]] = x
      continue
    layer, _, leaf = name.rpartition('.')
    if layer in _TOP:
      theirs[f'{_TOP[layer]}.{leaf}'] = x
      continue
    _, i, layer = layer.split('.', 2)
    block = f'encoder.layer.{i}'
    if layer == 'attn.qkv':
      for part, third in zip(_QKV, np.split(x, 3), strict=True):
        theirs[f'{block}.{part}.{leaf}'] = third
    else:
      theirs[f'{block}.{_BLOCK[layer]}.{leaf}'] = x
  return theirs


def to_release(theirs: Mapping) -> dict[str, np.ndarray]:
  """The inverse of `from_release`, of names that were checked."""
  top = {v: k for k, v in _TOP.items()}
  block = {v: k for k, v in _BLOCK.items()}
  tensors = {}
  for name, x in theirs.items():
    layer, _, leaf = name.rpartition('.')
    if name in top:
      tensors[top[name]] = x
    elif layer in top:
      tensors[f'{top[layer]}.{leaf}'] = x
    else:
      _, _, i, layer = layer.split('.', 3)
      if layer in block:
        tensors[f'blocks.{i}.{block[layer]}.{leaf}'] = x
      elif layer == _QKV[0]:
        thirds = [theirs[f'encoder.layer.{i}.{n}.{leaf}'] for n in _QKV]
        tensors[f'blocks.{i}.attn.qkv.{leaf}'] = np.concatenate(thirds)
  return tensors
