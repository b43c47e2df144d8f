"""JAX's own flags: the numbers of a job depend on its config alone."""

import jax
from absl import logging

# Each changes numbers without a word, or stops what optax, Flax or we compile.
_SETTLED = {
  'jax_enable_x64': False,
  'jax_default_matmul_precision': None,
  'jax_numpy_dtype_promotion': 'standard',
  'jax_numpy_rank_promotion': 'allow',
  'jax_default_prng_impl': 'threefry2x32',
  'jax_threefry_partitionable': True,
  'jax_disable_jit': False,
  'jax_transfer_guard': None,
}


def settle() -> None:
  """Puts the flags that would change a job's numbers to what they are by
  default; the log names those that the environment had otherwise.

  For the entry points alone: whoever imports this package keeps their flags.
  """
  for name, value in _SETTLED.items():
    # Versions of JAX differ in what they have.
    if (found := getattr(jax.config, name, value)) != value:
      jax.config.update(name, value)
      logging.warning(
        '%s=%s in the environment is set aside: the config alone says what a '
        'job computes.',
        name.upper(),
        found,
      )
