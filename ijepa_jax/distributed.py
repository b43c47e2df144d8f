"""Many processes of one job: who says that there are others, and where.

A launcher tells each process through its environment how many there are and
which of them it is. A job starts right from that, or it is refused in a
sentence: going on alone would train the same run several times.
"""

import collections
import dataclasses
import glob
import importlib.util
import json
import os
import pathlib
import re
import threading
import zlib
from collections.abc import Callable, Mapping

import jax
from absl import logging

from ijepa_jax.errors import UserError

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


@dataclasses.dataclass(frozen=True)
class Place:
  """Of one process in its job, as a launcher tells it.

  Attributes:
    launcher: its name.
    count: processes of the job.
    rank: of this process, from 0.
    here: processes on this node; 0: not told.
    local: of this process among them; -1: not told.
    most: processes on the fullest node.
    address: 'host:port' at which process 0 can listen; '': not told.
  """

  launcher: str
  count: int
  rank: int
  here: int = 0
  local: int = -1
  most: int = 0
  address: str = ''


def initialise(
  coordinator: str = '', num_processes: int = 0, process_id: int = -1
) -> None:
  """Starts jax.distributed where this is one process of several.

  By hand with all three arguments; else as the environment says; does nothing
  where that says nothing. Before anything that touches a device.

  Args:
    coordinator: 'host:port' of process 0.
    num_processes: of the whole job.
    process_id: of this process, from 0.

  Raises:
    UserError: arguments or variables that are incomplete or name no process of
      the job; several processes that do not say where they are, or can not
      reach one another; GPUs that do not divide over them.
  """
  by_hand = None
  if coordinator or num_processes or process_id != -1:
    if (
      not re.fullmatch(r'.+:\d+', coordinator)
      or not 0 <= process_id < num_processes
    ):
      raise UserError(
        f'coordinator = {coordinator!r}, num_processes = {num_processes} and '
        f'process_id = {process_id} do not name a process: give all three, as '
        "'host:port', 1 or more, and 0 or more but less than num_processes."
      )
    by_hand = Place('arguments', num_processes, process_id, address=coordinator)
  started = surroundings(os.environ, count_gpus, by_hand)
  if started is None:
    logging.info('One process: nothing says that there are others.')
    return
  launcher, options = started
  logging.info('One process of several, says %s: %s.', launcher, options)
  _connect(options)
  _check_devices(options.get('num_processes'))
  logging.info(
    'Process %d of %d is connected.', jax.process_index(), jax.process_count()
  )


def _connect(options):
  failures = []

  def call():
    try:
      jax.distributed.initialize(**options)
    except Exception as error:
      failures.append(error)

  # In a thread: what waits in C++ for the other processes hears no signal.
  thread = threading.Thread(target=call, daemon=True)
  thread.start()
  thread.join()
  for error in failures:
    if not isinstance(error, RuntimeError):
      raise error
    raise UserError(
      'The processes of the job did not find one another at '
      f'{options.get("coordinator_address", "the address of process 0")}: '
      f'{error}'
    ) from error


def _check_devices(count: int | None) -> None:
  """Refuses what would train several runs, or a batch that can't be split."""
  if count not in (None, jax.process_count()):
    raise UserError(
      f'{count} processes were started and JAX joins {jax.process_count()}: '
      'the devices of the kind that is used can not be joined.'
    )
  each = collections.Counter(d.process_index for d in jax.devices())
  if len(set(each.values())) > 1:
    raise UserError(
      f'The processes have {[each[i] for i in sorted(each)]} devices: start '
      'them so that each has as many, or set JAX_LOCAL_DEVICE_IDS.'
    )


def surroundings(
  env: Mapping[str, str],
  gpus: Callable[[], int] = lambda: 0,
  by_hand: Place | None = None,
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
  if not by_hand and _number(env, 'JAX_NUM_PROCESSES') == 1:
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
  devices = _share(env, local, gpus)
  address = next((p.address for p in (chosen, *same) if p.address), '')
  if not by_hand:
    address = env.get('JAX_COORDINATOR_ADDRESS') or address or _master(env)
  if not address and local.here == chosen.count:
    name = _LAUNCHERS.get(local.launcher, ('', ''))[1]
    launcher = (ancestor or _ancestor)(name)
    address = f'127.0.0.1:{_port(env, str(launcher))}'
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
      visible = _visible(env)
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


def _number(env, name: str) -> int | None:
  text = env.get(name, '').strip() if name else ''
  if not text:
    return None
  if not re.fullmatch(r'-?\d+', text):
    raise UserError(
      f'{name} is {text!r} in the environment: it should be a whole number, '
      'so correct it or unset it.'
    )
  return int(text)


def _places(env) -> tuple[list[Place], list[str]]:
  """What the launchers say, innermost first; and what is wrong with the rest.

  One that says there is one process says nothing: it may be left over.
  """
  places, incomplete = [], []
  for launcher, names in _LAUNCHERS.items():
    count, rank, here, local = (_number(env, name) for name in names)
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
        here = here or _number(env, 'LOCAL_SIZE') or 0
      places.append(Place(launcher, count, rank, here, local, here, address))
  if slurm := _slurm(env):
    places.append(slurm)
  return places, incomplete


def _by_jax(env, places) -> Place | None:
  """JAX's own variables, or those of a Kubeflow JAXJob."""
  prefix = 'JAX_'
  address = env.get('JAX_COORDINATOR_ADDRESS', '')
  if not address and env.get('COORDINATOR_ADDRESS'):
    prefix, address = '', env['COORDINATOR_ADDRESS']
    if port := _number(env, 'COORDINATOR_PORT'):
      address = f'{_host(address)}:{port}'
  count = _number(env, f'{prefix}NUM_PROCESSES')
  rank = _number(env, f'{prefix}PROCESS_ID')
  if count and rank is None:
    ranks = [p.rank for p in places if p.count == count]
    rank = ranks[0] if ranks else _number(env, 'JOB_COMPLETION_INDEX')
  if count == 1:
    return None
  if count and rank is not None:
    launcher = f'{prefix or "JAXJob: "}NUM_PROCESSES'
    return Place(launcher, count, rank, address=address)
  if count or (rank is not None and not places):
    raise UserError(
      f'{prefix}NUM_PROCESSES is {count} and {prefix}PROCESS_ID is {rank}: set '
      f'or unset both, or {_BY_HAND}.'
    )
  return None


def _slurm(env) -> Place | None:
  count = _number(env, 'SLURM_STEP_NUM_TASKS')
  count = _number(env, 'SLURM_NTASKS') if count is None else count
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
  node = _number(env, 'SLURM_NODEID')
  if node is None and len(set(nodes)) == 1:
    node = 0
  here = nodes[node] if node is not None and node < len(nodes) else 0
  # 'n[001-003,7],m1' -> 'n001'
  host = re.sub(r'\[(\w+)[^]]*\]', r'\1', env['SLURM_STEP_NODELIST'])
  host = host.split(',')[0]
  port = _port(env, env['SLURM_JOB_ID'], env.get('SLURM_STEP_ID', ''))
  return Place(
    'SLURM',
    count,
    _number(env, 'SLURM_PROCID'),
    here,
    _number(env, 'SLURM_LOCALID'),
    max(nodes, default=0),
    f'{host}:{port}',
  )


def _port(env, *names: str) -> int:
  """The same on every node for the same job, most likely another for another.

  Above the ports that Linux gives away.
  """
  return _number(env, 'JAX_COORDINATOR_PORT') or (
    61440 + zlib.crc32(' '.join(names).encode()) % 4095
  )


def _host(name: str) -> str:
  return f'[{name}]' if ':' in name and name[0] != '[' else name


def _master(env) -> str:
  """Beside the store of torchrun, which itself listens at MASTER_PORT."""
  if not (host := env.get('MASTER_ADDR')):
    return ''
  taken = _number(env, 'MASTER_PORT')
  port = _port(env, str(taken))
  return f'{_host(host)}:{port + (port == taken)}'


def _orte(env) -> str:
  """Where Open MPI up to 4 has its first daemon, beside which process 0 is."""
  uri = env.get('OMPI_MCA_orte_hnp_uri', '')
  host = re.search(r'tcp6://\[([^],]+)|tcp://([^,:]+)', uri)
  if not host:
    return ''
  return f'{_host(host[1] or host[2])}:{_port(env, uri.split(";")[0])}'


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
    slices = _number(env, 'MEGASCALE_NUM_SLICES') or 1
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
    if (count := _listed(env.get(name, ''))) > 1:
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


def _listed(text: str) -> int:
  """Machines in the JSON of SageMaker, TensorFlow and Vertex AI."""
  try:
    found = json.loads(text or '[]')
  except ValueError:
    return 0
  if isinstance(found, dict):
    cluster = found.get('cluster')
    lists = cluster.values() if isinstance(cluster, dict) else ()
    found = [x for part in lists if isinstance(part, list) for x in part]
  return len(found) if isinstance(found, list) else 0


def _on_tpu(env) -> bool:
  # JAX leaves this mark on import where it found TPU chips and libtpu.
  platforms = env.get('JAX_PLATFORMS')
  return env.get('TPU_ML_PLATFORM') == 'JAX' and 'tpu' in (platforms or 'tpu')


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


def _visible(env) -> int | None:
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
  if count := _number(env, 'SLURM_GPUS_ON_NODE'):
    return count
  if ids := env.get('SLURM_JOB_GPUS'):
    return len(ids.split(','))
  return None


def _share(env, place: Place, gpus) -> list[int] | None:
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
  visible, by_slurm = _visible(env), None
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


def log_devices() -> None:
  """Logs which process of how many this is, and its devices."""
  logging.info(
    'Process %d of %d, devices: %s',
    jax.process_index(),
    jax.process_count(),
    ', '.join(f'{d} ({d.device_kind})' for d in jax.local_devices()),
  )
