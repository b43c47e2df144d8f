"""What SLURM says of a task: its place in the job, and its GPUs."""

import re

from absl import logging

from ijepa_jax.runtime.distributed import environment


def place(env) -> environment.Place | None:
  """Returns the place of a task of srun; None: srun did not start this."""
  count = environment.number_in(env, 'SLURM_STEP_NUM_TASKS')
  count = environment.number_in(env, 'SLURM_NTASKS') if count is None else count
  if (count or 1) < 2:
    return None
  names = 'SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID', 'SLURM_LOCALID'
  if not all(env.get(name) for name in names):
    logging.warning(
      'SLURM has %d tasks, but srun did not start this one: it runs alone.',
      count,
    )
    return None
  text = env.get('SLURM_STEP_TASKS_PER_NODE') or env.get('SLURM_TASKS_PER_NODE')
  nodes = []  # tasks on each, from '2(x3),1'
  for tasks, times in re.findall(r'(\d+)(?:\(x(\d+)\))?', text or ''):
    nodes += [int(tasks)] * int(times or 1)
  node = environment.number_in(env, 'SLURM_NODEID')
  if node is None and len(set(nodes)) == 1:
    node = 0
  known = node is not None and node < len(nodes)
  # 'n[001-003,7],m1' -> 'n001'
  host = re.sub(r'\[(\w+)[^]]*\]', r'\1', env['SLURM_STEP_NODELIST'])
  host = host.split(',')[0]
  port = environment.port_in(
    env, env['SLURM_JOB_ID'], env.get('SLURM_STEP_ID', '')
  )
  return environment.Place(
    'SLURM',
    count,
    environment.number_in(env, 'SLURM_PROCID'),
    nodes[node] if known else 0,
    environment.number_in(env, 'SLURM_LOCALID'),
    max(nodes, default=0),
    f'{host}:{port}',
  )


def count_gpus(env) -> int | None:
  """Counts the GPUs of this step on this node, over all its tasks."""
  if ids := env.get('SLURM_STEP_GPUS'):
    return len(ids.split(','))
  if count := environment.number_in(env, 'SLURM_GPUS_ON_NODE'):
    return count
  if ids := env.get('SLURM_JOB_GPUS'):
    return len(ids.split(','))
  return None
