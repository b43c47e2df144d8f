"""The GPUs of a machine, shared by the processes on it."""

import glob
import pathlib
import re

from absl import logging

from ijepa_jax.errors import UserError
from ijepa_jax.runtime.distributed import environment, slurm


def count_gpus() -> int:
  """Counts this node's GPUs by its kernel's devices, before JAX may start."""
  nvidia = [p for p in glob.glob('/dev/nvidia*') if re.search(r'\d$', p)]
  if nvidia or (nvidia := glob.glob('/proc/driver/nvidia/gpus/*')):
    return len(nvidia)
  amd = 0
  for path in glob.glob('/sys/class/kfd/kfd/topology/nodes/*/gpu_id'):
    try:
      amd += pathlib.Path(path).read_text().strip() not in ('', '0')
    except OSError:  # of another user
      continue
  return amd


def visible_gpus(env) -> int | None:
  """Counts the GPUs that this process may see; None: no variable limits it."""
  counts = []
  for name in (
    'CUDA_VISIBLE_DEVICES',
    'HIP_VISIBLE_DEVICES',
    'ROCR_VISIBLE_DEVICES',
  ):
    if name in env:
      ids = [x.strip() for x in env[name].split(',')]
      # The driver ends the list at the first that is no GPU.
      ends = [i for i, x in enumerate(ids) if x in ('', '-1', 'NoDevFiles')]
      counts.append(min(ends, default=len(ids)))
  return min(counts, default=None)


def share_gpus(env, place: environment.Place, gpus) -> list[int] | None:
  """Returns the indices of this process's GPUs among those that it sees.

  Processes on one node share evenly, unless each sees its own only.

  Args:
    env: the environment.
    gpus: a function that counts this node's GPUs.

  Returns:
    None: all GPUs that it sees.

  Raises:
    UserError: the GPUs don't divide over the processes.
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
  local_count, local_rank = place.local_count, place.local_rank
  if local_rank < 0 or (local_count == 1 and place.max_local_count < 2):
    return None
  visible, by_slurm = visible_gpus(env), None
  if place.launcher == 'SLURM':
    by_slurm = slurm.count_gpus(env)
    per_task = env.get('SLURM_GPUS_PER_TASK', '').split(':')[-1]
    if visible and per_task == str(visible):
      return None
  n = next((x for x in (visible, by_slurm) if x is not None), None)
  n = gpus() if n is None else n
  if visible and visible < (by_slurm or local_count):
    return None
  if not n:
    return None
  # With one GPU a process, as JAX has it, if their number is unknown.
  local_count = local_count or n
  most = max(local_count, place.max_local_count)
  per_process = next((n // k for k in (most, local_count) if n % k == 0), 0)
  if not per_process or local_rank >= local_count:
    raise UserError(
      f'The {n} GPUs of this node do not divide over its {most} processes: '
      'start as many as divide them, or set CUDA_VISIBLE_DEVICES or '
      'JAX_LOCAL_DEVICE_IDS for each (JAX_PLATFORMS=cpu: none is used).'
    )
  if per_process * local_count < n:
    logging.warning(
      'Of the %d GPUs of this node %d stay idle: another node has more '
      'processes, and each has as many GPUs.',
      n,
      n - per_process * local_count,
    )
  first = local_rank * per_process
  return list(range(first, first + per_process))
