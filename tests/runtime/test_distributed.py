"""Who says that there are other processes, by the environment alone."""

import pathlib
import socket
import subprocess
import sys

import jax
import pytest

from ijepa_jax.errors import UserError
from ijepa_jax.runtime.distributed import gpus as distributed_gpus
from ijepa_jax.runtime.distributed import launchers, start

ROOT = pathlib.Path(__file__).parents[2]
SLURM = {
  'SLURM_JOB_ID': '1',
  'SLURM_STEP_ID': '0',
  'SLURM_STEP_NODELIST': 'n[1-2]',
  'SLURM_STEP_NUM_TASKS': '4',
  'SLURM_STEP_TASKS_PER_NODE': '2(x2)',
  'SLURM_NODEID': '1',
  'SLURM_PROCID': '3',
  'SLURM_LOCALID': '1',
}
TORCHRUN = {
  'MASTER_ADDR': 'm',
  'MASTER_PORT': '29500',
  'WORLD_SIZE': '4',
  'RANK': '2',
  'LOCAL_WORLD_SIZE': '2',
  'LOCAL_RANK': '0',
}
MPI = {
  name: {
    f'{prefix}_SIZE': '2',
    f'{prefix}_RANK': '1',
    f'{local}SIZE': '2',
    f'{local}RANK': '1',
  }
  for name, prefix, local in (
    ('Open MPI', 'OMPI_COMM_WORLD', 'OMPI_COMM_WORLD_LOCAL_'),
    ('MVAPICH', 'MV2_COMM_WORLD', 'MV2_COMM_WORLD_LOCAL_'),
    ('jsrun', 'JSM_NAMESPACE', 'JSM_NAMESPACE_LOCAL_'),
    ('PMIx', 'PMIX', 'PMIX_LOCAL_'),
    ('Horovod', 'HOROVOD', 'HOROVOD_LOCAL_'),
  )
}
MPI['MPI'] = {
  'PMI_SIZE': '2',
  'PMI_RANK': '1',
  'MPI_LOCALNRANKS': '2',
  'MPI_LOCALRANKID': '1',
}
FLUX = {'FLUX_JOB_SIZE': '4', 'FLUX_TASK_RANK': '3', 'FLUX_TASK_LOCAL_ID': '1'}
JAX = {
  'JAX_COORDINATOR_ADDRESS': 'c:1',
  'JAX_NUM_PROCESSES': '2',
  'JAX_PROCESS_ID': '1',
}
JAXJOB = {
  'COORDINATOR_ADDRESS': 'c',
  'COORDINATOR_PORT': '1',
  'NUM_PROCESSES': '2',
  'PROCESS_ID': '1',
}
TPU = {'TPU_ML_PLATFORM': 'JAX'}
GKE_TPU = TPU | {'TPU_WORKER_ID': '1', 'TPU_WORKER_HOSTNAMES': 'a,b'}
SLICES = {
  'MEGASCALE_NUM_SLICES': '3',
  'MEGASCALE_SLICE_ID': '2',
  'MEGASCALE_COORDINATOR_ADDRESS': 'a:8080',
}
POD = {'KUBERNETES_SERVICE_HOST': 'k', 'JOB_COMPLETION_INDEX': '1'}
MASTER = {'MASTER_ADDR': 'm', 'MASTER_PORT': '29500'}
ORTE = {'OMPI_MCA_orte_hnp_uri': '4096.0;tcp://10.1.0.1,10.2.0.1:349'}


@pytest.fixture(autouse=True)
def packages(monkeypatch):
  """Of those that JAX may ask, kubernetes is installed, mpi4py is not."""
  packages = {'kubernetes'}
  monkeypatch.setattr(
    launchers.importlib.util,
    'find_spec',
    lambda name: name if name in packages else None,
  )
  return packages


def place(env, gpus=0):
  """(processes, this one, host of the first, local GPUs); None: alone."""
  started = launchers.detect_cluster(
    env, lambda: gpus, ancestor=lambda name: 4321
  )
  if started is None:
    return None
  options = dict(started[1])
  if address := options.get('coordinator_address'):
    assert options['cluster_detection_method'] == 'deactivate'
  return (
    options.get('num_processes'),
    options.get('process_id'),
    address and address.rpartition(':')[0],
    options.get('local_device_ids'),
  )


@pytest.mark.parametrize(
  ('env', 'expected'),
  [
    (TORCHRUN, (4, 2, 'm', None)),
    (SLURM, (4, 3, 'n1', None)),
    (SLURM | {'SLURM_STEP_NODELIST': 'a07,b[1-2]'}, (4, 3, 'a07', None)),
    (SLURM | {'SLURM_STEP_NODELIST': 'a[007,9]-x,b'}, (4, 3, 'a007-x', None)),
    *((env, (2, 1, '127.0.0.1', None)) for env in MPI.values()),
    (MPI['Open MPI'] | ORTE, (2, 1, '10.1.0.1', None)),
    (
      MPI['Open MPI'] | {'OMPI_MCA_orte_hnp_uri': '1.0;tcp6://[fe::1,fe::2]:3'},
      (2, 1, '[fe::1]', None),
    ),
    (MPI['MPI'] | {'MPI_LOCALNRANKS': '1'} | MASTER, (2, 1, 'm', None)),
    (FLUX | MASTER, (4, 3, 'm', None)),
    (JAX, (2, 1, 'c', None)),
    (JAXJOB, (2, 1, 'c', None)),
    (TPU, (None, None, None, None)),  # by the metadata server
    (GKE_TPU, (2, 1, 'a', None)),
    (GKE_TPU | POD, (2, 1, 'a', None)),
    (GKE_TPU | {'TPU_PROCESS_ADDRESSES': 'c:1,d:1'}, (2, 1, 'c', None)),
    (GKE_TPU | SLICES, (6, 5, 'a', None)),
    (GKE_TPU | SLICES | {'MEGASCALE_SLICE_ID': '0'}, (6, 1, 'a', None)),
    (
      GKE_TPU | SLICES | {'TPU_WORKER_HOSTNAMES': 'e', 'TPU_WORKER_ID': '0'},
      (3, 2, 'a', None),
    ),
    (GKE_TPU | JAX, (2, 1, 'c', None)),
    (POD, (None, None, None, None)),
    # Two at once: what is started by the other one is right.
    (TORCHRUN | SLURM, (4, 2, 'm', None)),
    (TORCHRUN | SLURM | {'SLURM_STEP_NUM_TASKS': '2'}, (4, 2, 'm', None)),
    (MPI['MPI'] | SLURM, (2, 1, '127.0.0.1', None)),
    (MPI['Open MPI'] | ORTE | {'SLURM_NTASKS': '9'}, (2, 1, '10.1.0.1', None)),
    (TORCHRUN | POD, (4, 2, 'm', None)),
    # One tells of the same process what the other does not.
    (SLURM | {'PMI_SIZE': '4', 'PMI_RANK': '3'}, (4, 3, 'n1', None)),
    (SLURM | {'PMIX_RANK': '3'}, (4, 3, 'n1', None)),
    # What was left over or exported for another.
    (SLURM | {'WORLD_SIZE': '1', 'RANK': '0'}, (4, 3, 'n1', None)),
    (SLURM | {'WORLD_SIZE': '4'} | MASTER, (4, 3, 'n1', None)),
    # JAX's own go first, and may lack what another tells.
    (TORCHRUN | JAX, (2, 1, 'c', None)),
    (SLURM | {'JAX_COORDINATOR_ADDRESS': 'c:1'}, (4, 3, 'c', None)),
    (POD | JAX | {'JAX_PROCESS_ID': ''}, (2, 1, 'c', None)),
    (SLURM | {'JAX_NUM_PROCESSES': '4'}, (4, 3, 'n1', None)),
  ],
)
def test_started_right(env, expected):
  assert place(env) == expected


@pytest.mark.parametrize(
  'env',
  [
    {},
    {'WORLD_SIZE': '1'},
    {'WORLD_SIZE': '1', 'RANK': '0', **MASTER},
    MASTER,
    {'RANK': '0'},
    {'SLURM_JOB_ID': '1', 'SLURM_NTASKS': '4'},  # salloc
    {
      'SLURM_JOB_ID': '1',
      'SLURM_NTASKS': '4',
      'SLURM_PROCID': '0',
      'SLURM_LOCALID': '0',
    },  # sbatch without srun
    SLURM | {'SLURM_STEP_NUM_TASKS': '1', 'SLURM_NTASKS': '4'},
    {'OMPI_COMM_WORLD_SIZE': '1', 'OMPI_COMM_WORLD_RANK': '0', **ORTE},
    {'PMI_SIZE': '1', 'PMI_RANK': '0'},
    {'WORLD_SIZE': '', 'PMI_SIZE': ''},
    {'NUM_PROCESSES': '8'},  # of whatever else
    SLURM | {'JAX_NUM_PROCESSES': '1'},
    POD | {'JAX_NUM_PROCESSES': '1'},
    TPU | {'JAX_PLATFORMS': 'cpu'},
    TPU | {'TPU_WORKER_HOSTNAMES': 'localhost'},
    TPU | POD | {'TPU_WORKER_HOSTNAMES': 'localhost'},
    {'KUBERNETES_SERVICE_HOST': 'k'},
    {'SM_HOSTS': '["algo-1"]'},
    {'TF_CONFIG': 'none'},
  ],
)
def test_alone(env):
  assert place(env) is None


@pytest.mark.parametrize(
  ('env', 'words'),
  [
    ({'WORLD_SIZE': '2'}, 'WORLD_SIZE is 2 and RANK is not set'),
    ({'RANK': '1'}, 'RANK is 1 and WORLD_SIZE is not set'),
    ({'PMIX_RANK': '1'}, 'PMIX_RANK is 1 and PMIX_SIZE is not'),
    ({'WORLD_SIZE': 'two', 'RANK': '0'}, "WORLD_SIZE is 'two' .* whole number"),
    (SLURM | {'SLURM_LOCALID': 'x'}, "SLURM_LOCALID is 'x'"),
    (TORCHRUN | {'MASTER_PORT': '29500/tcp'}, "MASTER_PORT is '29500/tcp'"),
    (TORCHRUN | {'RANK': '4'}, 'process 4 of 4, and they count from 0'),
    (TORCHRUN | {'MASTER_ADDR': ''}, 'torchrun started 4.*set MASTER_ADDR'),
    (
      MPI['Open MPI'] | {'OMPI_COMM_WORLD_LOCAL_SIZE': '1'},
      'Open MPI started 2 .* install mpi4py',
    ),
    (MPI['MPI'] | {'MPI_LOCALNRANKS': '1'}, 'MPI started 2 .* mpi4py'),
    (FLUX, 'Flux started 4'),
    ({'JAX_NUM_PROCESSES': '2'}, 'JAX_NUM_PROCESSES is 2 and JAX_PROCESS_ID'),
    ({'JAX_PROCESS_ID': '1'}, 'JAX_NUM_PROCESSES is None'),
    ({'JAX_COORDINATOR_ADDRESS': 'c:1'}, 'nothing says how many'),
    (JAX | {'JAX_COORDINATOR_ADDRESS': ''}, 'NUM_PROCESSES started 2'),
    (JAX | {'JAX_COORDINATOR_ADDRESS': 'c'}, "'c': take host:port"),
    (JAX | {'JAX_LOCAL_DEVICE_IDS': 'all'}, "DEVICE_IDS is 'all'"),
    (GKE_TPU | {'TPU_WORKER_ID': ''}, 'WORKER_ID is None .* 2 workers of a'),
    (GKE_TPU | {'TPU_WORKER_ID': '2'}, 'WORKER_ID is 2 .* from 0 to 1'),
    (GKE_TPU | {'MEGASCALE_NUM_SLICES': '2'}, 'SLICE_ID is None .* 2 slices'),
    (
      GKE_TPU | SLICES | {'MEGASCALE_COORDINATOR_ADDRESS': ''},
      'COORDINATOR_ADDRESS is not set',
    ),
    ({'SM_HOSTS': '["algo-1", "algo-2"]'}, 'SM_HOSTS names 2 machines'),
    (
      {'TF_CONFIG': '{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}}'},
      'TF_CONFIG names 2 machines',
    ),
  ],
)
def test_refused_in_a_sentence(env, words):
  with pytest.raises(UserError, match=words):
    place(env)


def test_without_the_packages_that_jax_would_ask(packages):
  packages.clear()
  with pytest.raises(UserError, match=r'install jax\[k8s\].*--coordinator'):
    place(POD)
  packages.add('mpi4py')
  env = MPI['Open MPI'] | {'OMPI_COMM_WORLD_LOCAL_SIZE': '1'}
  _, options = launchers.detect_cluster(env, lambda: 8)
  assert options == {
    'num_processes': 2,
    'process_id': 1,
    'cluster_detection_method': 'mpi4py',
    'local_device_ids': list(range(8)),
  }


def port(env):
  options = launchers.detect_cluster(env, ancestor=lambda name: 4321)[1]
  return int(options['coordinator_address'].rpartition(':')[2])


def test_all_take_the_same_port_and_another_job_another():
  for env, mine, job in (
    (TORCHRUN, {'RANK': '0', 'LOCAL_RANK': '0'}, {'MASTER_PORT': '29501'}),
    (SLURM, {'SLURM_PROCID': '0', 'SLURM_NODEID': '0'}, {'SLURM_STEP_ID': '1'}),
    (
      MPI['Open MPI'] | ORTE,
      {'OMPI_COMM_WORLD_RANK': '0'},
      {'OMPI_MCA_orte_hnp_uri': '8192.0;tcp://10.1.0.1:4'},
    ),
    (GKE_TPU, {'TPU_WORKER_ID': '0'}, {'TPU_WORKER_HOSTNAMES': 'x,b'}),
  ):
    assert port(env) == port(env | mine) != port(env | job)
    assert 61440 <= port(env) < 65536
    assert port(env | {'JAX_COORDINATOR_PORT': '1234'}) == 1234
  # torchrun itself listens at MASTER_PORT.
  for taken in range(61440, 65536):
    assert port(TORCHRUN | {'MASTER_PORT': str(taken)}) != taken


@pytest.mark.parametrize(
  ('env', 'gpus', 'devices'),
  [
    # One task a node takes all, told or not.
    (
      SLURM | {'SLURM_STEP_TASKS_PER_NODE': '1(x4)', 'SLURM_LOCALID': '0'},
      8,
      None,
    ),
    # Several share them.
    (SLURM, 8, [4, 5, 6, 7]),
    (SLURM | {'CUDA_VISIBLE_DEVICES': '0,1,2,3'}, 8, [2, 3]),
    (SLURM | {'ROCR_VISIBLE_DEVICES': '0,1'}, 0, [1]),
    (SLURM | {'SLURM_GPUS_ON_NODE': '4'}, 8, [2, 3]),
    (SLURM | {'SLURM_JOB_GPUS': '2,3,5,7'}, 8, [2, 3]),
    (SLURM | {'CUDA_VISIBLE_DEVICES': ''}, 8, None),
    (SLURM | {'CUDA_VISIBLE_DEVICES': '-1'}, 8, None),
    # Each is shown its own: bound by --gpu-bind or --gpus-per-task.
    (SLURM | {'CUDA_VISIBLE_DEVICES': '2'}, 8, None),
    (
      SLURM | {'CUDA_VISIBLE_DEVICES': '2,3', 'SLURM_GPUS_ON_NODE': '4'},
      8,
      None,
    ),
    (
      SLURM | {'CUDA_VISIBLE_DEVICES': '0,1', 'SLURM_GPUS_PER_TASK': 'a:2'},
      4,
      None,
    ),
    # Uneven: all have as many as those on the fullest node.
    (
      SLURM
      | {
        'SLURM_STEP_NUM_TASKS': '7',
        'SLURM_STEP_TASKS_PER_NODE': '2(x3),1',
        'SLURM_NODEID': '3',
        'SLURM_PROCID': '6',
        'SLURM_LOCALID': '0',
      },
      4,
      [0, 1],
    ),
    (
      SLURM
      | {
        'SLURM_STEP_NUM_TASKS': '7',
        'SLURM_STEP_TASKS_PER_NODE': '4,3',
        'SLURM_GPUS_ON_NODE': '3',
      },
      4,
      [1],
    ),
    # Tasks of SLURM that see half of the node each, and torchrun in each.
    (
      SLURM
      | TORCHRUN
      | {'CUDA_VISIBLE_DEVICES': '4,5,6,7', 'SLURM_GPUS_ON_NODE': '8'},
      8,
      [0, 1],
    ),
    (TORCHRUN, 8, [0, 1, 2, 3]),
    (TORCHRUN | {'LOCAL_RANK': '1', 'RANK': '3'}, 2, [1]),
    (TORCHRUN | {'CUDA_VISIBLE_DEVICES': '5'}, 8, None),
    (TORCHRUN | {'JAX_PLATFORMS': 'cpu'}, 3, None),
    (TORCHRUN | {'JAX_LOCAL_DEVICE_IDS': '3'}, 8, None),
    # A pod of Kubeflow's PyTorchJob: one process.
    ({k: v for k, v in TORCHRUN.items() if 'LOCAL' not in k}, 8, None),
    *((env, 4, [2, 3]) for env in MPI.values()),
    (FLUX | MASTER, 4, [1]),
  ],
)
def test_gpus(env, gpus, devices):
  assert place(env, gpus)[3] == devices


@pytest.mark.parametrize(
  ('env', 'gpus'),
  [
    (SLURM, 3),
    (SLURM, 1),
    (TORCHRUN, 5),
    (SLURM | {'CUDA_VISIBLE_DEVICES': '0,1,2', 'SLURM_GPUS_ON_NODE': '3'}, 8),
    (FLUX | MASTER, 1),
  ],
)
def test_gpus_that_do_not_divide(env, gpus):
  with pytest.raises(UserError, match=r'The \d GPUs .* do not divide'):
    place(env, gpus)


def test_uneven_gpus_are_told(monkeypatch):
  """Where only all processes together can see it."""
  devices = [type('Device', (), {'process_index': i}) for i in (0, 0, 1)]
  monkeypatch.setattr(jax, 'devices', lambda: devices)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(UserError, match=r'have \[2, 1\] devices'):
    start._check_devices(2)
  with pytest.raises(UserError, match=r'3 processes .* JAX joins 2'):
    start._check_devices(3)


@pytest.fixture
def started(monkeypatch):
  """Calls of jax.distributed.initialize, from an environment without a job."""
  calls = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda **options: calls.append(options)
  )
  monkeypatch.setattr(start, '_check_devices', lambda count: None)
  monkeypatch.setattr(distributed_gpus, 'count_gpus', lambda: 4)
  monkeypatch.setattr(launchers.os, 'environ', {})
  return calls


def test_by_hand(started):
  start.initialize('host:1234', 2, 0)
  assert started == [
    {
      'coordinator_address': 'host:1234',
      'num_processes': 2,
      'process_id': 0,
      'cluster_detection_method': 'deactivate',
      'initialization_timeout': 600,
      'heartbeat_timeout_seconds': 260,
    }
  ]


def test_by_hand_where_tasks_share_gpus(started):
  launchers.os.environ.update(SLURM)
  start.initialize('host:1234', 4, 3)
  assert started[0]['coordinator_address'] == 'host:1234'
  assert started[0]['local_device_ids'] == [2, 3]


@pytest.mark.parametrize(
  'arguments',
  [('host:1', 0, -1), ('', 2, 0), ('host:1', 2, 2), ('host', 2, 0), ('', 0, 0)],
)
def test_by_hand_incomplete(started, arguments):
  with pytest.raises(UserError, match='give all three'):
    start.initialize(*arguments)
  assert not started


def test_others_that_are_not_found(started, monkeypatch):
  def initialize(**options):
    raise RuntimeError('DEADLINE_EXCEEDED')

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  with pytest.raises(UserError, match=r'one another at h:1: DEADLINE'):
    start.initialize('h:1', 2, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('rank', 'words'),
  [(0, 'process 0 is there, others are not'), (1, 'process 0 cannot be rea')],
)
def test_one_alone_is_told_so(rank, words):
  """Where JAX by itself would dump its stack and abort."""
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  script = f"""
from ijepa_jax.runtime import cli, preemption
from ijepa_jax.runtime.distributed import start
with preemption.job(), cli.one_sentence():
  start._connect({{
    'coordinator_address': 'localhost:{port}',
    'num_processes': 2,
    'process_id': {rank},
    'cluster_detection_method': 'deactivate',
  }}, 100.0, patience=2.0)
"""
  run = subprocess.run(
    [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True
  )
  assert run.returncode == 1
  *_, sentence = run.stderr.splitlines()
  assert sentence.startswith(
    'The processes of the job did not find one another'
  )
  assert words in sentence
