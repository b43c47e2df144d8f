"""Which GPUs of a machine a process takes."""

import glob
import pathlib
import re

from absl import logging

from ijepa_jax.errors import UserError
from ijepa_jax.runtime.distributed import environment


def count_gpus() -> int:
  """Of this node, by the devices of its kernel: JAX is not asked yet."""
  nvidia = [p for p in glob.glob('/dev/nvidia*') if re.search(r'\d$', p)]
  if nvidia or (nvidia := glob.glob('/proc/driver/nvidia/gpus/*')):
    return len(nvidia)
  amd = 0
  for path in glob.glob('/sys/class/kfd/kfd/topology/nodes/*/gpu_id'):
    try:
      amd += pathlib.Path(path).read_text().strip() not in ('', '0')
    except OSError:  # of somebody else
      continue
  return amd


def visible_gpus(env) -> int | None:
  """GPUs that the environment leaves to this process; None: it says nothing."""
  counts = []
  for name in (
    'CUDA_VISIBLE_DEVICES',
    'HIP_VISIBLE_DEVICES',
    'ROCR_VISIBLE_DEVICES',
  ):
    if name in env:
      ids = [x.strip() for x in env[name].split(',')]
      # The driver ends the list at the first that is none.
      none = [i for i, x in enumerate(ids) if x in ('', '-1', 'NoDevFiles')]
      counts.append(min(none, default=len(ids)))
  return min(counts, default=None)


def _slurm_gpus(env) -> int | None:
  """GPUs of this step on this node, whoever of its tasks sees them."""
  if ids := env.get('SLURM_STEP_GPUS'):
    return len(ids.split(','))
  if count := environment.number_in(env, 'SLURM_GPUS_ON_NODE'):
    return count
  if ids := env.get('SLURM_JOB_GPUS'):
    return len(ids.split(','))
  return None


def share_gpus(env, place: environment.Place, gpus) -> list[int] | None:
  """This process's GPUs, by their numbers among those that it sees.

  Processes on one node share evenly, unless each sees its own only.

  Returns:
    None: all that it sees.
  """
  if ids := env.get('JAX_LOCAL_DEVICE_IDS'):
    if not re.fullmatch(r'\d+(,\d+)*', ids):
      raise UserError(
        f'JAX_LOCAL_DEVICE_IDS is {ids!r}: take numbers, as in 0,1.'
      )
    return None
  platforms = env.get('JAX_PLATFORMS') or 'gpu'
  if not any(x in platforms for x in ('cuda', 'rocm', 'gpu')):
    return None
  if place.local < 0 or (place.here == 1 and place.most < 2):
    return None
  visible, by_slurm = visible_gpus(env), None
  if place.launcher == 'SLURM':
    by_slurm = _slurm_gpus(env)
    each = env.get('SLURM_GPUS_PER_TASK', '').split(':')[-1]
    if visible and each == str(visible):
      return None
  n = next((x for x in (visible, by_slurm) if x is not None), None)
  n = gpus() if n is None else n
  if visible and visible < (by_slurm or place.here):
    return None
  if not n:
    return None
  if not place.here:
    # One a process, as JAX has it: how many share them is not told.
    here = most = n
  else:
    here, most = place.here, max(place.here, place.most)
  each = next((n // x for x in (most, here) if n % x == 0), 0)
  if not each or place.local >= here:
    raise UserError(
      f'The {n} GPUs of this node do not divide over its {most} processes: '
      'start as many as divide them, or set CUDA_VISIBLE_DEVICES or '
      'JAX_LOCAL_DEVICE_IDS for each (JAX_PLATFORMS=cpu: none is used).'
    )
  if each * here < n:
    logging.warning(
      'Of the %d GPUs of this node %d stay idle: another node has more '
      'processes, and each has as many GPUs.',
      n,
      n - each * here,
    )
  return list(range(place.local * each, (place.local + 1) * each))
