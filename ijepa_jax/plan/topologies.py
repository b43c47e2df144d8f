"""Devices that are not there, for the compiler alone.

TPUs come from libtpu, GPUs from the wheels of JAX's CUDA plugin with a
description of the chip. Neither needs the hardware; both need the variables of
`environment` before JAX starts.
"""

import dataclasses
import importlib.util
import math
import os
import re

from ijepa_jax.errors import UserError, one_of
from ijepa_jax.plan.chips import CHIPS, Chip

EXAMPLES = {2: '8x8', 3: '2x4x4'}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Chips and how they are joined.

  Attributes:
    name: of CHIPS; 'cpu': virtual devices of this machine; '': the devices
      that are here.
    shape: of a TPU slice; (hosts, devices a host) of GPUs and of CPUs.
    slices: of TPUs.
  """

  name: str = ''
  shape: tuple[int, ...] = ()
  slices: int = 1

  @property
  def chip(self) -> Chip | None:
    return CHIPS.get(self.name)

  def __str__(self) -> str:
    text = f'{self.name}:{"x".join(map(str, self.shape))}'
    return f'{self.slices} x {text}' if self.slices > 1 else text


def parse(text: str, slices: int = 1) -> Topology:
  """Reads 'v5e:8x8', 'h100:2x8', 'cpu', 'cpu:8' or ''.

  Raises:
    UserError: it is no such thing; the sentence says what there is.
  """
  name, _, sizes = text.partition(':')
  if name in ('', 'cpu'):
    known = not sizes if not name else re.fullmatch(r'[1-9]\d*|', sizes)
    if not known or slices != 1:
      raise UserError(
        f'--topology is {text!r} and --slices {slices}: take cpu, or cpu:8 for '
        '8 virtual devices, without slices.'
      )
    return Topology(name, (int(sizes),) if sizes else ())
  chip = CHIPS[one_of('The chip of --topology', name, ['cpu', *CHIPS])]
  shape = (
    tuple(map(int, sizes.split('x')))
    if re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', sizes)
    else ()
  )
  if chip.platform == 'gpu':
    shape = (1, *shape) if len(shape) == 1 else shape
    if len(shape) != 2 or slices != 1:
      raise UserError(
        f'--topology is {text!r} and --slices {slices}: of GPUs say hosts x '
        f'devices of a host, as in {name}:2x8, without slices.'
      )
  elif len(shape) != chip.axes or slices < 1:
    raise UserError(
      f'--topology is {text!r} and --slices {slices}: a slice of {name} is '
      f'named by {chip.axes} numbers of chips, as in '
      f'{name}:{EXAMPLES[chip.axes]}, and --slices is 1 or more.'
    )
  return Topology(name, shape, slices)


def single_chip(name: str) -> Topology:
  """Returns a topology of one TPU; `name` is a key of CHIPS."""
  return Topology(name, (1,) * CHIPS[name].axes)


def environment(topology: Topology, env=os.environ) -> dict[str, str]:
  """Variables without which JAX would look for chips, or not compile for them.

  Args:
    env: that they are added to.
  """
  flags, variables = [], {}
  if topology.name:
    variables['JAX_PLATFORMS'] = 'cpu'
  if topology.name == 'cpu' and topology.shape:
    count = topology.shape[0]
    flags.append(f'--xla_force_host_platform_device_count={count}')
  chip = topology.chip
  if chip and chip.platform == 'tpu':
    # Nothing asks a metadata server what this machine is, and two planners may
    # load libtpu at once: its lock is for chips, of which there are none.
    variables |= {
      'TPU_SKIP_MDS_QUERY': '1',
      'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
      'TPU_WORKER_HOSTNAMES': 'localhost',
      'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    }
  if chip and chip.platform == 'gpu':
    # Its tiles are chosen by trying them on a GPU.
    flags.append('--xla_gpu_enable_triton_gemm=false')
  if flags:
    own = env.get('XLA_FLAGS', '') + ' '
    variables['XLA_FLAGS'] = (own + ' '.join(flags)).strip()
  return variables


def devices(topology: Topology) -> list:
  """The devices of a topology, which may be compiled for.

  Raises:
    UserError: what it takes isn't installed, or there are no such chips.
  """
  import jax

  chip = topology.chip
  if chip is None:
    return jax.devices()
  make = _tpus if chip.platform == 'tpu' else _gpus
  try:
    return list(make(topology, chip).devices)
  except UserError:
    raise
  except Exception as error:  # of libtpu or the plugin, of many types
    reason = str(error).partition('\n')[0]
    raise UserError(
      f'--topology is {topology}, and the compiler has no such chips: {reason}'
    ) from error


def _tpus(topology: Topology, chip: Chip):
  from jax.experimental import topologies

  if importlib.util.find_spec('libtpu') is None:
    raise UserError(
      f'--topology is {topology}, and to compile for TPUs libtpu is missing: '
      "pip install 'ijepa_jax[plan-tpu]'."
    )
  options = {}
  if chip.megacore:
    options['chip_config_name'] = 'megacore'
  if math.prod(topology.shape) == 1:  # else a host has four chips
    options['chips_per_host_bounds'] = 1, 1, 1
  if topology.slices > 1:
    options['num_slices'] = topology.slices
  shape = 'x'.join(map(str, topology.shape))
  return topologies.get_topology_desc(
    f'{chip.topology}:{shape}', platform='tpu', **options
  )


def _gpus(topology: Topology, chip: Chip):
  from jax.experimental import topologies

  plugins = [f'jax_cuda{n}_plugin' for n in (12, 13)]
  if not any(map(importlib.util.find_spec, plugins)):
    raise UserError(
      f"--topology is {topology}, and to compile for GPUs JAX's CUDA plugin is "
      "missing: pip install 'ijepa_jax[plan-gpu]'."
    )
  hosts, per_host = topology.shape
  return topologies.get_topology_desc(
    platform='cuda',
    target_config=target_config(chip),
    topology=f'1x{hosts}x{per_host}',
  )


def per_host(topology: Topology, devices: list) -> int:
  """How many devices share a host; of TPUs, all that share a slice."""
  if topology.chip is None or topology.chip.platform == 'tpu':
    return len(devices) // topology.slices
  return topology.shape[1]


def target_config(chip: Chip) -> str:
  """A GPU as XLA wants it described: the text of a GpuTargetConfigProto."""
  gpu, kind = chip.gpu, chip.kinds[0]
  major, minor = gpu.compute_capability
  features = 'ACCELERATED_FEATURES' if major >= 9 else 'NONE'
  return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_memory}
  shared_memory_per_block_optin: {gpu.shared_memory_per_block}
  threads_per_core_limit: 2048
  core_count: {gpu.cores}
  fpus_per_core: {gpu.lanes}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  memory_bandwidth: {math.floor(chip.bandwidth)}
  l2_cache_size: {gpu.l2}
  clock_rate_ghz: {chip.clock / 1e9}
  device_memory_size: {chip.memory}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{
    major: {major}
    minor: {minor}
    feature_extension: {features}
  }}
  device_vendor: "NVIDIA Corporation"
  name: "{kind}"
  driver_version: "12.9.0"
  runtime_version: "12.9.0"
  compile_time_toolkit_version: "12.9.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{
  major: 9
  minor: 10
}}
device_description_str: "{kind}"
"""
