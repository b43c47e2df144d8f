"""Says where `python -m ijepa_jax.interop` is now."""

import sys

if __name__ == '__main__':
  sys.exit(
    'python -m ijepa_jax.interop is now python -m ijepa_jax.convert, with the '
    'same arguments.'
  )
