"""Detects the launcher of a job, and where its processes find each other.

A launcher sets environment variables: how many processes there are and which
one this is. If they are incomplete the job is refused in a sentence: each
process alone would train the same run.
"""

import importlib.util
import os
import pathlib
import re
from collections.abc import Callable, Mapping

from ijepa_jax.errors import UserError
from ijepa_jax.runtime.distributed import environment, slurm, tpus
from ijepa_jax.runtime.distributed.gpus import share_gpus, visible_gpus

# Launcher -> its variables: number of processes, rank, and both on this node.
# Innermost first: srun starts torchrun and the daemons of mpirun, and is not
# started by them.
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
  # MPICH, Intel MPI and all others that start processes with Hydra.
  'MPI': ('PMI_SIZE', 'PMI_RANK', 'MPI_LOCALNRANKS', 'MPI_LOCALRANKID'),
  'PALS': ('PMI_SIZE', 'PALS_RANKID', 'PALS_LOCAL_SIZE', 'PALS_LOCAL_RANKID'),
  'Flux': ('FLUX_JOB_SIZE', 'FLUX_TASK_RANK', '', 'FLUX_TASK_LOCAL_ID'),
}
_OF_MPI = 'Open MPI', 'MVAPICH', 'jsrun', 'PMIx', 'MPI', 'PALS'
_BY_HAND = (
  'give --coordinator, --num_processes and --process_id, or set '
  'JAX_NUM_PROCESSES=1 where this process is alone'
)


def detect_cluster(
  env: Mapping[str, str],
  gpus: Callable[[], int] = lambda: 0,
  by_hand: environment.Place | None = None,
  ancestor: Callable[[str], int] | None = None,
) -> tuple[str, dict] | None:
  """Detects SLURM, Open MPI, torchrun, TPU, Kubernetes, ... .

  Args:
    env: the environment.
    gpus: counts the GPUs of this node.
    by_hand: from the command line; it overrides the environment.
    ancestor: variable -> id of the process that started all those with it.

  Returns:
    (launcher, arguments of jax.distributed.initialize); JAX itself detects
    those that are left out. None: this process is alone.

  Raises:
    UserError: there are several processes, and a variable is missing or wrong.
  """
  if not by_hand and environment.number_in(env, 'JAX_NUM_PROCESSES') == 1:
    return None
  places, incomplete = _places(env)
  place = next(filter(None, (by_hand, _by_jax(env, places), *places)), None)
  place = place or tpus.place(env)
  if place is None:
    cluster = _without_ranks(env)
    if cluster is None and incomplete:
      raise UserError(incomplete[0])
    return cluster
  count, rank = place.count, place.rank
  if not 0 <= rank < count:
    raise UserError(
      f'{place.launcher} says that this is process {rank} of {count}, and they '
      f'count from 0: look at the environment, or {_BY_HAND}.'
    )
  # What one launcher leaves out another one may say of the same process.
  same = [place, *(p for p in places if (p.count, p.rank) == (count, rank))]
  local = next((p for p in same if p.local_rank >= 0), place)
  devices = share_gpus(env, local, gpus)
  options = {'num_processes': count, 'process_id': rank}
  address = next((p.address for p in same if p.address), '')
  if not by_hand:
    address = env.get('JAX_COORDINATOR_ADDRESS') or address or _master(env)
  if not address and local.local_count == count:
    variable = _LAUNCHERS.get(local.launcher, ('', ''))[1]
    launcher = (ancestor or _ancestor)(variable)
    address = f'127.0.0.1:{environment.port_in(env, str(launcher))}'
  if address:
    # With a detection method JAX would take one GPU for each process.
    options['coordinator_address'] = _checked_address(address)
    options['cluster_detection_method'] = 'deactivate'
  else:
    options['cluster_detection_method'] = _require_mpi4py(place)
    if devices is None and not env.get('JAX_LOCAL_DEVICE_IDS'):
      visible = visible_gpus(env)
      devices = list(range(gpus() if visible is None else visible)) or None
  if devices is not None:
    options['local_device_ids'] = devices
  return place.launcher, options


def _checked_address(address: str) -> str:
  if not re.fullmatch(r'.+:\d+', address):
    raise UserError(f'The address of process 0 is {address!r}: take host:port.')
  return address


def _require_mpi4py(place) -> str:
  """Returns the detection method with which JAX finds process 0 by itself."""
  if place.launcher in _OF_MPI and importlib.util.find_spec('mpi4py'):
    return 'mpi4py'
  raise UserError(
    f'{place.launcher} started {place.count} processes but does not say where '
    'the first is: set MASTER_ADDR and MASTER_PORT, or '
    f'{"install mpi4py, or " if place.launcher in _OF_MPI else ""}{_BY_HAND}.'
  )


def _places(env) -> tuple[list[environment.Place], list[str]]:
  """-> the places that launchers give, innermost first; and a sentence for
  each launcher whose variables are incomplete.

  A launcher of one process counts as none: its variables may be left over.
  """
  places, incomplete = [], []
  for launcher, names in _LAUNCHERS.items():
    count, rank, local_count, local_rank = (
      environment.number_in(env, name) for name in names
    )
    if count is None or rank is None:
      missing = names[count is not None]
      if (count or 0) > 1 or (rank or 0) > 0:
        incomplete.append(
          f'{names[count is None]} is {rank if count is None else count} and '
          f'{missing} is not set: set or unset both, or {_BY_HAND}.'
        )
    elif count > 1:
      local_count = local_count or 0
      local_rank = -1 if local_rank is None else local_rank
      address = _orte(env) if launcher == 'Open MPI' else ''
      if launcher == 'torchrun':
        address = _master(env)
        # LOCAL_SIZE is DeepSpeed's name of it.
        local_count = local_count or environment.number_in(env, 'LOCAL_SIZE')
        local_count = local_count or 0
      places.append(
        environment.Place(
          *(launcher, count, rank),
          *(local_count, local_rank, local_count, address),
        )
      )
  if place := slurm.place(env):
    places.append(place)
  return places, incomplete


def _by_jax(env, places) -> environment.Place | None:
  """-> the place by JAX's own variables, or by those of a Kubeflow JAXJob."""
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


def _master(env) -> str:
  """-> an address on MASTER_ADDR; torchrun itself listens at MASTER_PORT."""
  if not (host := env.get('MASTER_ADDR')):
    return ''
  master_port = environment.number_in(env, 'MASTER_PORT')
  port = environment.port_in(env, str(master_port))
  return f'{environment.host_of(host)}:{port + (port == master_port)}'


def _orte(env) -> str:
  """-> an address on the node of Open MPI's first daemon, where process 0 is.

  Open MPI 5 has no such variable.
  """
  uri = env.get('OMPI_MCA_orte_hnp_uri', '')
  host = re.search(r'tcp6://\[([^],]+)|tcp://([^,:]+)', uri)
  if not host:
    return ''
  port = environment.port_in(env, uri.split(';')[0])
  return f'{environment.host_of(host[1] or host[2])}:{port}'


def _ancestor(name: str) -> int:
  """-> id of the nearest ancestor of this process without this variable.

  It started all processes that have the variable, also through shells.
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


def _without_ranks(env) -> tuple[str, dict] | None:
  """Detects TPU VMs and Kubernetes, of which JAX itself finds the rank."""
  if tpus.on_tpu(env):
    # Only GKE has worker names in the environment, see `tpus`. Elsewhere JAX
    # asks the metadata server, which also serves a single worker.
    names = env.get('TPU_PROCESS_ADDRESSES', env.get('TPU_WORKER_HOSTNAMES'))
    return ('TPU (by the metadata server)', {}) if names is None else None
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
