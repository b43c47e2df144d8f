"""Cycles of Pallas kernels, for which the TPU compiler gives no estimate.

Each kernel is compiled once more, alone, in a process of its own, in which
libtpu writes the schedule to a file. A program of the kernel takes one cycle
for each instruction of the schedule, and waits `WAIT` cycles besides.
"""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from ijepa_jax.plan import topologies
from ijepa_jax.plan.chips import CHIPS, Chip
from ijepa_jax.plan.program import hlo

# Cycles of a program besides its instructions, until its blocks have come. For
# the forward kernel of models/pallas_attention.py on v5e the compiler's profile
# (LIBTPU_INIT_ARGS=--xla_jf_dump_static_llo_profile_to=FOLDER, which fails for
# most kernels) has 750 (87 tokens, 12 heads of 32) and 970 (57 tokens, 16 heads
# of 64).
WAIT = 1000
_TARGET = 'custom_call_target="tpu_custom_call"'
_DTYPES = {'bf16': 'bfloat16', 'f32': 'float32'}


def is_kernel(x: hlo.Instruction) -> bool:
  """Whether an instruction runs a Pallas kernel of TPUs."""
  return x.opcode == 'custom-call' and _TARGET in x.attributes


def cycles(
  x: hlo.Instruction, computation: hlo.Computation, chip: Chip
) -> float:
  """Estimated cycles of a kernel, all its programs.

  Args:
    x: with `is_kernel`; its metadata says how many programs there are.
    computation: that it is of.
    chip: that it is for.
  """
  programs = int(re.search(r'"programs":\s*"(\d+)"', x.metadata)[1])
  start = x.attributes.index('backend_config=') + len('backend_config=')
  _, end = json.JSONDecoder().raw_decode(x.attributes[start:])
  length = _schedule(
    next(name for name, known in CHIPS.items() if known == chip),
    x.attributes[start : start + end],
    tuple(computation[name].shapes[0] for name in x.operands),
    x.shapes[0],
  )
  cores = 2 if chip.megacore else 1  # that share the programs
  return programs * (length + WAIT) / cores


@functools.cache
def _schedule(
  chip: str, config: str, operands: Sequence[hlo.Shape], result: hlo.Shape
) -> int:
  """Instructions of one program of a kernel, by a process that compiles it."""
  *shapes, out = ((list(s.dims), _DTYPES[s.dtype]) for s in (*operands, result))
  with tempfile.TemporaryDirectory() as folder:
    flags = (
      f'{os.environ.get("LIBTPU_INIT_ARGS", "")} --xla_jf_dump_to={folder} '
      '--xla_jf_dump_llo_text=true '
      '--xla_jf_dump_llo_pass_label_regex=final_bundles'
    )
    topology = topologies.single_chip(chip)
    subprocess.run(
      [sys.executable, '-m', __spec__.name],
      input=json.dumps([str(topology), config, shapes, out]),
      env=os.environ
      | topologies.environment(topology)
      | {'LIBTPU_INIT_ARGS': flags},
      text=True,
      check=True,
    )
    (file,) = pathlib.Path(folder).glob('*ffi_call*-schedule-analysis_*')
    return int(
      re.search(r'total scheduled bundles:\s*(\d+)', file.read_text())[1]
    )


def _compile() -> None:
  """Compiles the kernel that standard input has."""
  import jax
  from jax.sharding import SingleDeviceSharding

  topology, config, shapes, (dims, dtype) = json.load(sys.stdin)
  (device,) = topologies.devices(topologies.parse(topology))
  sharding = SingleDeviceSharding(device)
  kernel = jax.ffi.ffi_call(
    'tpu_custom_call',
    jax.ShapeDtypeStruct(dims, dtype),
    custom_call_api_version=1,
    legacy_backend_config=config,
  )
  arguments = [jax.ShapeDtypeStruct(*s, sharding=sharding) for s in shapes]
  jax.jit(kernel).lower(*arguments).compile()


if __name__ == '__main__':
  _compile()
