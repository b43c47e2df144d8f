"""Flags with which XLA compiles the tests in a quarter of the time."""

import importlib.metadata
import os


def quick() -> str:
  """Without LLVM's passes and XLA's newer kernels.

  Nothing where XLA_FLAGS has a level: whoever sets one has the rest too.
  """
  if 'xla_backend_optimization_level' in os.environ.get('XLA_FLAGS', ''):
    return ''
  flags = '--xla_backend_optimization_level=0 '
  # From 0.12 there is no older way, and XLA ends at a flag it does not know.
  if int(importlib.metadata.version('jaxlib').split('.')[1]) < 12:
    flags += '--xla_cpu_use_fusion_emitters=false '
  return flags
