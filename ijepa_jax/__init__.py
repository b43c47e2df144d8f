"""I-JEPA in JAX and Flax.

encoder = ijepa_jax.load_encoder('runs/vit_l16')
features = encoder.features(['a.jpg', 'b.jpg'])
"""


def __getattr__(name: str):
  # Only when asked for: Grain's workers import this package and need no JAX.
  if name == 'load_encoder':
    from ijepa_jax.pretrained.load import load_encoder

    return load_encoder
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return sorted([*globals(), 'load_encoder'])
