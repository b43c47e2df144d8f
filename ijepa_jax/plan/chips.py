"""What accelerators have, by their data sheets.

Of TPUs: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x ("key
specifications"). Memory is what libtpu 0.0.42 says a program can have. Clocks
are those at which its estimates make sense: by them a large product takes 70%
to 93% of the peak, and a large sum 72% to 81% of the bandwidth.

Of GPUs: NVIDIA's data sheets of A100, H100, H200 and B200, the NICs of DGX
A100, H100 and B200, and, for memory in bytes and what XLA asks of a GPU, the
descriptions in openxla/xla, xla/backends/gpu/target_config/specs.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
  """What XLA compiles a GPU's programs by.

  Attributes:
    cores, lanes: multiprocessors, and float32 units of each.
    compute_capability: major and minor.
    shared_memory, shared_memory_per_block: bytes of a multiprocessor, and what
      a block may ask for.
    l2: bytes of the cache.
  """

  cores: int
  lanes: int
  compute_capability: tuple[int, int]
  shared_memory: int
  shared_memory_per_block: int
  l2: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """A device as JAX counts them: a TPU chip, a GPU; of TPU7x half a chip.

  Attributes:
    platform: 'tpu' or 'gpu'.
    kinds: the beginnings of jax.Device.device_kind.
    memory: bytes.
    flops: a second, of dense bfloat16 products.
    bandwidth: bytes a second to and from its memory.
    link: bytes a second that it sends to chips of its slice or host.
    network: bytes a second that it sends further, its share of its host's.
    clock: cycles a second.
    topology: TPU: what libtpu calls it. GPU: ''.
    axes: TPU: how many numbers a topology has.
    megacore: TPU: whether its two cores are one device.
    gpu: of GPUs.
  """

  platform: str
  kinds: tuple[str, ...]
  memory: int
  flops: float
  bandwidth: float
  link: float
  network: float
  clock: float
  topology: str = ''
  axes: int = 2
  megacore: bool = False
  gpu: Gpu | None = None


_AMPERE = dict(
  lanes=64,
  compute_capability=(8, 0),
  shared_memory=167_936,
  shared_memory_per_block=166_912,
  l2=41_943_040,
)
_HOPPER = dict(
  lanes=128,
  compute_capability=(9, 0),
  shared_memory=233_472,
  shared_memory_per_block=232_448,
  l2=52_428_800,
)
# By the names of --topology.
CHIPS = {
  'v4': Chip(
    platform='tpu',
    kinds=('TPU v4',),
    memory=round(30.75 * 2**30),
    flops=275e12,
    bandwidth=1.2e12,
    link=150e9,
    network=6.25e9,
    clock=1.05e9,
    topology='v4',
    axes=3,
    megacore=True,
  ),
  'v5e': Chip(
    platform='tpu',
    kinds=('TPU v5 lite', 'TPU v5e'),
    memory=round(15.75 * 2**30),
    flops=197e12,
    bandwidth=819e9,
    link=200e9,
    network=3.125e9,
    clock=1.5e9,
    topology='v5e',
  ),
  'v5p': Chip(
    platform='tpu',
    kinds=('TPU v5', 'TPU v5p'),
    memory=round(95.74 * 2**30),
    flops=459e12,
    bandwidth=2.765e12,
    link=600e9,
    network=6.25e9,
    clock=1.75e9,
    topology='v5',
    axes=3,
    megacore=True,
  ),
  'v6e': Chip(
    platform='tpu',
    kinds=('TPU v6 lite', 'TPU v6e'),
    memory=round(31.25 * 2**30),
    flops=918e12,
    bandwidth=1.638e12,
    link=400e9,
    network=12.5e9,
    clock=1.75e9,
    topology='v6e',
  ),
  'tpu7x': Chip(
    platform='tpu',
    kinds=('TPU7x',),
    memory=round(94.75 * 2**30),
    flops=2307e12 / 2,
    bandwidth=7.38e12 / 2,
    link=600e9 / 2,
    network=12.5e9 / 2,
    clock=2.2e9,
    topology='tpu7x',
    axes=3,
  ),
  'a100': Chip(
    platform='gpu',
    kinds=('NVIDIA A100-SXM4-80GB', 'NVIDIA A100'),
    memory=85_100_068_864,
    flops=312e12,
    bandwidth=2.039e12,
    link=300e9,
    network=25e9,
    clock=1.41e9,
    gpu=Gpu(cores=108, **_AMPERE),
  ),
  'a100-40gb': Chip(
    platform='gpu',
    kinds=('NVIDIA A100-SXM4-40GB', 'NVIDIA A100-PCIE-40GB'),
    memory=42_400_000_000,
    flops=312e12,
    bandwidth=1.555e12,
    link=300e9,
    network=25e9,
    clock=1.41e9,
    gpu=Gpu(cores=108, **_AMPERE),
  ),
  'h100': Chip(
    platform='gpu',
    kinds=('NVIDIA H100',),
    memory=84_942_979_072,
    flops=989e12,
    bandwidth=3.35e12,
    link=450e9,
    network=50e9,
    clock=1.98e9,
    gpu=Gpu(cores=132, **_HOPPER),
  ),
  'h100-pcie': Chip(
    platform='gpu',
    kinds=('NVIDIA H100 PCIe',),
    memory=84_942_979_072,
    flops=756e12,
    bandwidth=2.0e12,
    link=64e9,
    network=25e9,
    clock=1.755e9,
    gpu=Gpu(cores=114, **_HOPPER),
  ),
  'h200': Chip(
    platform='gpu',
    kinds=('NVIDIA H200',),
    memory=150_754_820_096,
    flops=989e12,
    bandwidth=4.8e12,
    link=450e9,
    network=50e9,
    clock=1.98e9,
    gpu=Gpu(cores=132, **_HOPPER),
  ),
  'b200': Chip(
    platform='gpu',
    kinds=('NVIDIA B200',),
    memory=191_514_411_008,
    flops=2250e12,
    bandwidth=7.7e12,
    link=900e9,
    network=50e9,
    clock=1.965e9,
    gpu=Gpu(
      cores=148, **_HOPPER | {'compute_capability': (10, 0), 'l2': 132_644_864}
    ),
  ),
}


def by_kind(device_kind: str) -> Chip | None:
  """The chip that JAX calls so; None: not known here."""
  matches = {
    kind: chip
    for chip in CHIPS.values()
    for kind in chip.kinds
    if device_kind.startswith(kind)
  }
  return matches[max(matches, key=len)] if matches else None
