"""The machine: starting many processes, the mesh, and who holds what.

One mesh of two axes, `('data', 'fsdp')`. A batch is split over both; the state
over 'fsdp' alone, by one rule that looks at shapes only, so that parameters,
EMA target and Adam's moments lie alike.
"""

import importlib.util
import math
import os
import re

import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(*, data: int = -1, fsdp: int = 1, devices=None) -> Mesh:
  """All devices as a mesh with axes ('data', 'fsdp'), both AxisType.Auto.

  Neighbours along 'fsdp', which gathers parameters in every step, are close in
  the network; slices of a multi-slice TPU are split over 'data'.

  Args:
    data, fsdp: devices along each axis; -1, for one of them, is what is left.
    devices: all of `jax.devices()` by default.

  Raises:
    ValueError: the devices don't divide like that.
  """
  devices = jax.devices() if devices is None else list(devices)
  n, asked = len(devices), f'mesh.data = {data} and mesh.fsdp = {fsdp}'
  sizes = [size for size in (data, fsdp) if size != -1]
  if not sizes or min(sizes) < 1:
    raise ValueError(f'{asked}: take 1 or more, or -1 for one of the two.')
  known = math.prod(sizes)
  if n % known or (len(sizes) == 2 and known != n):
    raise ValueError(
      f'{asked} do not make the {n} devices: take divisors of {n} whose '
      'product it is, or -1 for one of the two.'
    )
  shape = tuple(n // known if size == -1 else size for size in (data, fsdp))
  # Not jax.make_mesh: it refuses several slices, and any machine with several
  # GPU hosts may look like that.
  slices = len({getattr(d, 'slice_index', 0) for d in devices})
  if devices[0].platform != 'tpu' or slices == 1:
    grid = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
  elif shape[0] % slices:
    raise ValueError(
      f'mesh.fsdp = {shape[1]} leaves {shape[0]} along data, which does not '
      f'divide over the {slices} TPU slices: take a smaller mesh.fsdp.'
    )
  else:
    grid = mesh_utils.create_hybrid_device_mesh(
      (shape[0] // slices, shape[1]),
      (slices, 1),
      devices,
      allow_split_physical_axes=True,
    )
  return Mesh(grid, ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The first axis split over all devices."""
  return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def state_sharding(abstract_tree, mesh: Mesh, min_size: int = 2**16):
  """A tree of NamedSharding for a tree of shaped leaves, by one rule.

  The largest axis that mesh.shape['fsdp'] divides is split over 'fsdp' (the
  first of equals). Leaves of fewer than `min_size` elements, and those that
  nothing divides, are replicated: gathering them costs more than they weigh.
  (The rule of big_vision's sharding.py, on any tree.)
  """
  n = mesh.shape['fsdp']

  def rule(leaf):
    axes = [i for i, size in enumerate(leaf.shape) if size and size % n == 0]
    if n == 1 or not axes or math.prod(leaf.shape) < min_size:
      return replicated(mesh)
    axis = max(axes, key=lambda i: leaf.shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, 'fsdp'))

  return jax.tree.map(rule, abstract_tree)


def abstract(shapes, mesh: Mesh):
  """A tree of shaped leaves as jax.ShapeDtypeStruct with `state_sharding`."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    state_sharding(shapes, mesh),
  )


def to_global(batch, mesh: Mesh):
  """This process's rows to global arrays: [b, ...] each to [B, ...].

  Args:
    batch: tree of numpy arrays of b rows, B = b * jax.process_count(), the
      same b on every process; B divides over the devices.
  """
  sharding = batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    batch,
  )


def split_rows(x, mesh, dtype, fill=0) -> jax.Array:
  """A host array [N, ...], split by rows over all devices.

  Rows of `fill` make it up to a multiple of them. Each process reads its own
  devices' rows only.
  """
  n = -(-len(x) // mesh.size) * mesh.size

  def rows(index):
    start, stop, _ = index[0].indices(n)
    part = np.asarray(x[start:stop], dtype)
    pad = [(0, stop - start - len(part))] + [(0, 0)] * (part.ndim - 1)
    return np.pad(part, pad, constant_values=fill)

  return jax.make_array_from_callback(
    (n, *np.shape(x)[1:]), batch_sharding(mesh), rows
  )


def initialise_distributed(
  coordinator: str = '', num_processes: int = 0, process_id: int = -1
) -> None:
  """Starts jax.distributed where this is one process of several.

  By hand with all three arguments; else where SLURM's srun, Open MPI, a TPU pod
  or an indexed Kubernetes Job says so; otherwise does nothing. Before anything
  that touches a device.

  Args:
    coordinator: 'host:port' of process 0.
    num_processes: of the whole job.
    process_id: of this process, from 0.

  Raises:
    ValueError: arguments that are incomplete or no process of the job, or an
      environment that has several processes but does not say where they are;
      going on alone would train the same run several times.
  """
  if coordinator or num_processes or process_id != -1:
    if (
      not re.fullmatch(r'.+:\d+', coordinator)
      or not 0 <= process_id < num_processes
    ):
      raise ValueError(
        f'coordinator = {coordinator!r}, num_processes = {num_processes} and '
        f'process_id = {process_id} do not name a process: give all three, as '
        "'host:port', 1 or more, and 0 or more but less than num_processes."
      )
    where = f'arguments (coordinator {coordinator})'
    options = {
      'coordinator_address': coordinator,
      'num_processes': num_processes,
      'process_id': process_id,
    }
  elif found := _surroundings(os.environ):
    where, options = found
  else:
    logging.info('One process: nothing says that there are others.')
    return
  logging.info('One process of several, says: %s.', where)
  jax.distributed.initialize(**options)
  logging.info(
    'Process %d of %d is connected.', jax.process_index(), jax.process_count()
  )


def _surroundings(env) -> tuple[str, dict] | None:
  """Who says that there are more processes, and arguments to start with.

  None: nobody does. JAX finds out the rest itself, in the same order.
  """
  if int(env.get('OMPI_COMM_WORLD_SIZE', 1)) > 1:
    if 'OMPI_MCA_orte_hnp_uri' in env:
      return 'Open MPI', {}
    # Open MPI 5 no longer tells where rank 0 is.
    if importlib.util.find_spec('mpi4py'):
      return 'Open MPI', {'cluster_detection_method': 'mpi4py'}
    raise ValueError(
      f'Open MPI started {env["OMPI_COMM_WORLD_SIZE"]} processes but does not '
      'say where the first is: install mpi4py, or give --coordinator, '
      '--num_processes and --process_id.'
    )

  tasks = int(env.get('SLURM_STEP_NUM_TASKS', env.get('SLURM_NTASKS', 1)))
  if tasks > 1:
    needed = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID')
    if all(name in env for name in (*needed, 'SLURM_LOCALID')):
      options = {'num_processes': tasks}
      if (gpus := _slurm_gpus(env)) is not None:
        options['local_device_ids'] = gpus
      return f'SLURM step of {tasks} tasks', options
    logging.warning(
      'SLURM has %d tasks, but srun did not start this one: it runs alone.',
      tasks,
    )

  if _on_tpu(env):
    # Worker names stand in the environment on GKE only; elsewhere JAX asks the
    # metadata server, and one worker is fine with it.
    names = env.get('TPU_PROCESS_ADDRESSES', env.get('TPU_WORKER_HOSTNAMES'))
    slices = int(env.get('MEGASCALE_NUM_SLICES') or 1)
    if names is None or ',' in names or slices > 1:
      return f'TPU (workers {names or "from the metadata server"})', {}
    return None

  if 'KUBERNETES_SERVICE_HOST' in env and 'JOB_COMPLETION_INDEX' in env:
    if importlib.util.find_spec('kubernetes'):
      return 'indexed Kubernetes Job', {}
    raise ValueError(
      f'This is pod {env["JOB_COMPLETION_INDEX"]} of an indexed Kubernetes '
      'Job, which only the package kubernetes can look up: install jax[k8s], '
      'or give --coordinator, --num_processes and --process_id.'
    )
  return None


def _on_tpu(env) -> bool:
  # JAX leaves this mark on import where it found TPU chips and libtpu.
  platforms = env.get('JAX_PLATFORMS')
  return env.get('TPU_ML_PLATFORM') == 'JAX' and 'tpu' in (platforms or 'tpu')


def _slurm_gpus(env) -> list[int] | None:
  """This task's share of the GPUs that it sees; None: JAX's choice.

  JAX takes GPU number SLURM_LOCALID, which leaves seven of eight idle with one
  task a node, and is not there where SLURM shows each task only its own.
  """
  n = len([x for x in env.get('CUDA_VISIBLE_DEVICES', '').split(',') if x])
  here = re.match(r'\d+', env.get('SLURM_STEP_TASKS_PER_NODE', ''))
  if not n or not here or 'JAX_LOCAL_DEVICE_IDS' in env:
    return None
  tasks, task = int(here[0]), int(env['SLURM_LOCALID'])
  each = env.get('SLURM_GPUS_PER_TASK', '').split(':')[-1]
  if n < tasks or each == str(n):
    return list(range(n))
  share = n // tasks
  return list(range(task * share, (task + 1) * share))
