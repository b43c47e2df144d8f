"""Compares the kernels of model.attention=pallas with XLA where they run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from ijepa_jax.errors import UserError
from ijepa_jax.models import functions

# Less than the 128 lanes of a register, and more; neither is a multiple of 8.
TOKENS = 43, 150


def check_attention(method, interpret: bool = False) -> None:
  """Refuses kernels that compute something else than XLA on this device.

  A training calls it at its start: the kernels were compiled for TPUs and
  computed on CPUs, and no TPU has run them yet.

  Args:
    method: has an encoder, and maybe a predictor, whose sizes are taken.
    interpret: see pallas_attention.py.

  Raises:
    UserError: attention or its gradient differs by more than rounding.
  """
  for name in ('encoder', 'predictor'):
    module = getattr(method, name, None)
    if getattr(module, 'attention', 'xla') != 'pallas':
      continue
    errors = [_error(module, tokens, interpret) for tokens in TOKENS]
    error = np.max(errors)  # nan, if one is; Python's max may leave it out
    if not error < 0.03:  # bfloat16's rounding is a tenth of it; nan is not
      raise UserError(
        f"model.attention is 'pallas', and the {name}'s kernel computes "
        f'something else than XLA on this device, by {error:.3g} of the '
        'largest number: take xla, and report it.'
      )
    logging.info(
      "The %s's kernel computes what XLA does on this device, within %.2g of "
      'the largest number.',
      name,
      error,
    )


def _error(module, tokens: int, interpret: bool) -> float:
  """The largest difference, as a share of the largest number."""
  from ijepa_jax.models import pallas_attention  # see functions.attention

  shape = 2 * pallas_attention.IMAGES, tokens, module.width
  keys = jax.random.split(jax.random.key(0))
  qkv = jax.random.normal(keys[0], (*shape[:2], 3 * shape[2]), module.dtype)
  dy = jax.random.normal(keys[1], shape, module.dtype)

  @functools.partial(jax.jit, static_argnums=(0, 1))
  def compute(attention, setting, qkv, dy):
    y, back = jax.vjp(lambda x: attention(x, module.heads, setting), qkv)
    return [x.astype(jnp.float32) for x in (y, *back(dy))]

  kernel = compute(pallas_attention.attention, interpret, qkv, dy)
  reference = compute(functions.attention, 'xla', qkv, dy)
  # By NumPy: the largest of jax.numpy may leave nan out, on CPUs.
  pairs = zip(*map(jax.device_get, (kernel, reference)), strict=True)
  return np.max([np.abs(x - y).max() / np.abs(y).max() for x, y in pairs])
