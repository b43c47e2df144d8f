"""I-JEPA in JAX and Flax.

encoder = ijepa_jax.load_encoder('runs/vit_l16')
features = encoder.features(['a.jpg', 'b.jpg'])

pretrained_names() lists the models that come with the package.
"""

import importlib

# Attribute -> its module.
_PUBLIC = {
  'load_encoder': 'ijepa_jax.pretrained.load',
  'pretrained_names': 'ijepa_jax.pretrained.shipped',
}


def __getattr__(name: str):
  # Only when asked for: Grain's workers import this package and need no JAX.
  if name in _PUBLIC:
    return getattr(importlib.import_module(_PUBLIC[name]), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return sorted([*globals(), *_PUBLIC])
