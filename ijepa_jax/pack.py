"""Says where `python -m ijepa_jax.pack` is now."""

import sys

if __name__ == '__main__':
  sys.exit(
    'python -m ijepa_jax.pack is now python -m ijepa_jax.data.pack, with the '
    'same arguments.'
  )
