"""Flags with which XLA compiles the tests sooner."""

import importlib.metadata
import os


def quick() -> str:
  """Returns flags that leave out LLVM's passes and XLA's newer kernels.

  Where XLA_FLAGS sets an optimization level, the flags are empty: whoever asks
  for the passes gets the kernels of a user's run too.
  """
  if 'xla_backend_optimization_level' in os.environ.get('XLA_FLAGS', ''):
    return ''
  flags = '--xla_backend_optimization_level=0 '
  # jaxlib 0.11.2 has no older kernels, and XLA ends at a flag it does not know.
  if int(importlib.metadata.version('jaxlib').split('.')[1]) < 11:
    flags += '--xla_cpu_use_fusion_emitters=false '
  return flags
