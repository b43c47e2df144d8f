"""Many processes of one job: who says that there are others, and where.

A launcher tells each process through its environment how many there are and
which of them it is. A job starts right from that, or it is refused in a
sentence: going on alone would train the same run several times.
"""

import importlib.util
import os
import pathlib
import re
from collections.abc import Callable, Mapping

from absl import logging

from ijepa_jax.errors import UserError
from ijepa_jax.runtime.distributed import environment
from ijepa_jax.runtime.distributed.gpus import share_gpus, visible_gpus

# Launcher -> the variables of: how many processes there are, which one this is,
# and both on this node alone. Innermost first: srun starts torchrun and the
# daemons of mpirun, it is not started by them.
_LAUNCHERS = {
  'torchrun': ('WORLD_SIZE', 'RANK', 'LOCAL_WORLD_SIZE', 'LOCAL_RANK'),
  **{
    name: tuple(f'{prefix}_{x}' for x in ('SIZE', 'RANK', *local))
    for name, prefix, local in (
      ('Horovod', 'HOROVOD', ('LOCAL_SIZE', 'LOCAL_RANK')),
      ('Open MPI', 'OMPI_COMM_WORLD', ('LOCAL_SIZE', 'LOCAL_RANK')),
      ('MVAPICH', 'MV2_COMM_WORLD', ('LOCAL_SIZE', 'LOCAL_RANK')),
      ('jsrun', 'JSM_NAMESPACE', ('LOCAL_SIZE', 'LOCAL_RANK')),
      ('PMIx', 'PMIX', ('LOCAL_SIZE', 'LOCAL_RANK')),
    )
  },
  # Of MPICH, Intel MPI and all that start processes with Hydra.
  'MPI': ('PMI_SIZE', 'PMI_RANK', 'MPI_LOCALNRANKS', 'MPI_LOCALRANKID'),
  'PALS': ('PMI_SIZE', 'PALS_RANKID', 'PALS_LOCAL_SIZE', 'PALS_LOCAL_RANKID'),
  'Flux': ('FLUX_JOB_SIZE', 'FLUX_TASK_RANK', '', 'FLUX_TASK_LOCAL_ID'),
}
_OF_MPI = 'Open MPI', 'MVAPICH', 'jsrun', 'PMIx', 'MPI', 'PALS'
_BY_HAND = (
  'give --coordinator, --num_processes and --process_id, or set '
  'JAX_NUM_PROCESSES=1 where this process is alone'
)


def surroundings(
  env: Mapping[str, str],
  gpus: Callable[[], int] = lambda: 0,
  by_hand: environment.Place | None = None,
  ancestor: Callable[[str], int] | None = None,
) -> tuple[str, dict] | None:
  """Who says that there are more processes, and how JAX is to be started.

  Args:
    env: the environment.
    gpus: how many this node has.
    by_hand: what the command line says; it goes before the environment.
    ancestor: variable -> id of the process that started all those with it.

  Returns:
    (launcher, arguments of jax.distributed.initialize); what they lack JAX
    finds out itself. None: this process is alone.

  Raises:
    UserError: there are more, and not all that is needed is told.
  """
  if not by_hand and environment.number_in(env, 'JAX_NUM_PROCESSES') == 1:
    return None
  places, incomplete = _places(env)
  chosen = next(filter(None, (by_hand, _by_jax(env, places), *places)), None)
  if chosen is None:
    found = _by_others(env)
    if found is None and incomplete:
      raise UserError(incomplete[0])
    return found
  if not 0 <= chosen.rank < chosen.count:
    raise UserError(
      f'{chosen.launcher} says that this is process {chosen.rank} of '
      f'{chosen.count}, and they count from 0: look at the environment, or '
      f'{_BY_HAND}.'
    )
  # What one launcher leaves out another may tell of the very same process.
  same = [p for p in places if (p.count, p.rank) == (chosen.count, chosen.rank)]
  local = next((p for p in (chosen, *same) if p.local >= 0), chosen)
  options = {'num_processes': chosen.count, 'process_id': chosen.rank}
  devices = share_gpus(env, local, gpus)
  address = next((p.address for p in (chosen, *same) if p.address), '')
  if not by_hand:
    address = env.get('JAX_COORDINATOR_ADDRESS') or address or _master(env)
  if not address and local.here == chosen.count:
    name = _LAUNCHERS.get(local.launcher, ('', ''))[1]
    launcher = (ancestor or _ancestor)(name)
    address = f'127.0.0.1:{environment.port_in(env, str(launcher))}'
  if address:
    if not re.fullmatch(r'.+:\d+', address):
      raise UserError(
        f'The address of process 0 is {address!r}: take host:port.'
      )
    # Asked too, JAX would take one GPU for each process.
    options |= {
      'coordinator_address': address,
      'cluster_detection_method': 'deactivate',
    }
  elif chosen.launcher in _OF_MPI and importlib.util.find_spec('mpi4py'):
    options['cluster_detection_method'] = 'mpi4py'
    if devices is None and not env.get('JAX_LOCAL_DEVICE_IDS'):
      visible = visible_gpus(env)
      devices = list(range(gpus() if visible is None else visible)) or None
  else:
    raise UserError(
      f'{chosen.launcher} started {chosen.count} processes but does not say '
      'where the first is: set MASTER_ADDR and MASTER_PORT, or '
      f'{"install mpi4py, or " if chosen.launcher in _OF_MPI else ""}'
      f'{_BY_HAND}.'
    )
  if devices is not None:
    options['local_device_ids'] = devices
  return chosen.launcher, options


def _places(env) -> tuple[list[environment.Place], list[str]]:
  """What the launchers say, innermost first; and what is wrong with the rest.

  One that says there is one process says nothing: it may be left over.
  """
  places, incomplete = [], []
  for launcher, names in _LAUNCHERS.items():
    count, rank, here, local = (
      environment.number_in(env, name) for name in names
    )
    if count is None or rank is None:
      lacking = names[count is not None]
      if (count or 0) > 1 or (rank or 0) > 0:
        incomplete.append(
          f'{names[count is None]} is {rank if count is None else count} and '
          f'{lacking} is not set: set or unset both, or {_BY_HAND}.'
        )
    elif count > 1:
      here = here or 0
      local = -1 if local is None else local
      address = _orte(env) if launcher == 'Open MPI' else ''
      if launcher == 'torchrun':
        address = _master(env)
        # DeepSpeed's name for it.
        here = here or environment.number_in(env, 'LOCAL_SIZE') or 0
      places.append(
        environment.Place(launcher, count, rank, here, local, here, address)
      )
  if slurm := _slurm(env):
    places.append(slurm)
  return places, incomplete


def _by_jax(env, places) -> environment.Place | None:
  """JAX's own variables, or those of a Kubeflow JAXJob."""
  prefix = 'JAX_'
  address = env.get('JAX_COORDINATOR_ADDRESS', '')
  if not address and env.get('COORDINATOR_ADDRESS'):
    prefix, address = '', env['COORDINATOR_ADDRESS']
    if port := environment.number_in(env, 'COORDINATOR_PORT'):
      address = f'{environment.host_of(address)}:{port}'
  count = environment.number_in(env, f'{prefix}NUM_PROCESSES')
  rank = environment.number_in(env, f'{prefix}PROCESS_ID')
  if count and rank is None:
    ranks = [p.rank for p in places if p.count == count]
    rank = (
      ranks[0] if ranks else environment.number_in(env, 'JOB_COMPLETION_INDEX')
    )
  if count == 1:
    return None
  if count and rank is not None:
    launcher = f'{prefix or "JAXJob: "}NUM_PROCESSES'
    return environment.Place(launcher, count, rank, address=address)
  if count or (rank is not None and not places):
    raise UserError(
      f'{prefix}NUM_PROCESSES is {count} and {prefix}PROCESS_ID is {rank}: set '
      f'or unset both, or {_BY_HAND}.'
    )
  return None


def _slurm(env) -> environment.Place | None:
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
  here = nodes[node] if node is not None and node < len(nodes) else 0
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
    here,
    environment.number_in(env, 'SLURM_LOCALID'),
    max(nodes, default=0),
    f'{host}:{port}',
  )


def _master(env) -> str:
  """Beside the store of torchrun, which itself listens at MASTER_PORT."""
  if not (host := env.get('MASTER_ADDR')):
    return ''
  taken = environment.number_in(env, 'MASTER_PORT')
  port = environment.port_in(env, str(taken))
  return f'{environment.host_of(host)}:{port + (port == taken)}'


def _orte(env) -> str:
  """Where Open MPI up to 4 has its first daemon, beside which process 0 is."""
  uri = env.get('OMPI_MCA_orte_hnp_uri', '')
  host = re.search(r'tcp6://\[([^],]+)|tcp://([^,:]+)', uri)
  if not host:
    return ''
  port = environment.port_in(env, uri.split(';')[0])
  return f'{environment.host_of(host[1] or host[2])}:{port}'


def _ancestor(name: str) -> int:
  """The nearest process above this one that has no such variable: it started
  all that have, through whatever shells.
  """
  process = os.getppid()
  while process > 1 and name:
    try:
      folder = pathlib.Path(f'/proc/{process}')
      if f'\0{name}=' not in '\0' + (folder / 'environ').read_text('latin-1'):
        break
      # pid (name) state parent ...
      process = int((folder / 'stat').read_text().rpartition(')')[2].split()[1])
    except OSError:
      break
  return process


def _by_others(env) -> tuple[str, dict] | None:
  """TPU pods, which JAX asks itself, and Kubernetes."""
  if _on_tpu(env):
    # Worker names stand in the environment on GKE only; elsewhere JAX asks the
    # metadata server, and one worker is fine with it.
    names = env.get('TPU_PROCESS_ADDRESSES', env.get('TPU_WORKER_HOSTNAMES'))
    slices = environment.number_in(env, 'MEGASCALE_NUM_SLICES') or 1
    if names is None or ',' in names or slices > 1:
      return f'TPU (workers {names or "from the metadata server"})', {}
    return None
  if 'KUBERNETES_SERVICE_HOST' in env and 'JOB_COMPLETION_INDEX' in env:
    if importlib.util.find_spec('kubernetes'):
      return 'indexed Kubernetes Job', {}
    raise UserError(
      f'This is pod {env["JOB_COMPLETION_INDEX"]} of an indexed Kubernetes '
      'Job, which only the package kubernetes can look up: install jax[k8s], '
      'or set JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES, or '
      f'{_BY_HAND}.'
    )
  for name in ('SM_HOSTS', 'TF_CONFIG', 'CLUSTER_SPEC'):
    if (count := environment.count_listed(env.get(name, ''))) > 1:
      raise UserError(
        f'{name} names {count} machines, and nothing says how JAX is to join '
        f'them: {_BY_HAND}.'
      )
  if address := env.get('JAX_COORDINATOR_ADDRESS'):
    raise UserError(
      f'JAX_COORDINATOR_ADDRESS is {address!r}, and nothing says how many '
      'processes there are: set JAX_NUM_PROCESSES and JAX_PROCESS_ID, or unset '
      'it.'
    )
  return None


def _on_tpu(env) -> bool:
  # JAX leaves this mark on import where it found TPU chips and libtpu.
  platforms = env.get('JAX_PLATFORMS')
  return env.get('TPU_ML_PLATFORM') == 'JAX' and 'tpu' in (platforms or 'tpu')
