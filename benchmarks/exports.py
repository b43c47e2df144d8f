"""Exports every size at full depth, from and onto 1 and 8 devices.

    python benchmarks/exports.py tiny small base large [--to orbax ...]

Random weights, context and target encoder and predictor, are saved from one
device and split over 8 (virtual ones of the CPU), exported in each form, and
each export is loaded onto 1 and onto 8 devices: all bits have to arrive. Prints
a Markdown table; the memory is the most that the export's process had in use.
Needs room on the disk (TMPDIR) for five times the weights, and takes .pth.tar
files along only with torch.
"""

import argparse
import concurrent.futures
import hashlib
import importlib.util
import itertools
import multiprocessing
import os
import pathlib
import resource
import shutil
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # configs/
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

import jax
import numpy as np
from absl import logging

from configs import base
from ijepa_jax.convert import export
from ijepa_jax.models import vit
from ijepa_jax.pretrained import load
from ijepa_jax.pretrained.formats import orbax, weights
from ijepa_jax.runtime import config, sharding
from ijepa_jax.runtime.checkpoint import checkpointer

PREDICTOR_DEPTH = {'large': 12, 'huge': 12, 'giant': 16}
FORMATS = [
  name
  for name in export.FORMATS
  if name != 'release' or importlib.util.find_spec('torch')
]


def config_of(size: str):
  c = base.get_config()
  c.model.size = size
  c.model.patch_size = 14 if size == 'huge' else 16
  c.model.predictor_depth = PREDICTOR_DEPTH.get(size, 6)
  return c


def mesh_of(devices: int):
  cpus = jax.devices('cpu')[:devices]
  return sharding.make_mesh(data=1, fsdp=devices, devices=cpus)


def save(workdir, size: str, devices: int) -> list[str]:
  """Saves random weights; returns the target encoder's digests."""
  c, r = config_of(size), np.random.default_rng(0)
  sizes = {**c.model.to_dict(), 'image_size': (224, 224), 'channels': 3}
  shapes = {k: weights.shapes(sizes, k) for k in weights.PARTS}
  tree = orbax.nested(shapes)
  tree = jax.tree.map(
    lambda x, s: jax.device_put(r.standard_normal(x.shape, np.float32), s),
    tree,
    sharding.state_sharding(tree, mesh_of(devices)),
  )
  config.write_config(workdir, c.to_json_best_effort())
  with checkpointer.Checkpointer(workdir / 'checkpoints') as checkpoints:
    checkpoints.save(0, tree)
  return digests(tree['target'])


def export_timed(workdir, out, to: str) -> tuple[float, float]:
  """Exports; returns seconds, and the most memory in use in GB."""
  began = time.perf_counter()
  assert 'read back bit-equal' in export.export(workdir, out, to)
  seconds = time.perf_counter() - began
  # Linux counts in kB.
  return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def load_timed(out, devices: int) -> tuple[float, list[str]]:
  """Loads; returns seconds, and digests of the arrays on the devices."""
  mesh = mesh_of(devices)
  began = time.perf_counter()
  params = load.load_frozen(out, mesh=mesh).params
  jax.block_until_ready(params)
  seconds = time.perf_counter() - began
  for x in jax.tree.leaves(params):
    assert len(x.sharding.device_set) == devices
  return seconds, digests(params)


def digests(tree) -> list[str]:
  return [
    hashlib.sha256(np.ascontiguousarray(jax.device_get(x))).hexdigest()
    for x in jax.tree.leaves(tree)
  ]


def in_own_process(function, *args):
  """Calls in a process of its own, whose memory is then free again."""
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(
    1, context, initializer=logging.set_verbosity, initargs=(logging.ERROR,)
  ) as pool:
    return pool.submit(function, *args).result()


def main(sizes: list[str], formats: list[str]) -> None:
  print(
    '| size | saved from | to | MB | export, s | memory, GB | loaded onto 1, s '
    '| onto 8, s |\n|---|---|---|---|---|---|---|---|'
  )
  for size, devices in itertools.product(sizes, (1, 8)):
    with tempfile.TemporaryDirectory() as root:
      root = pathlib.Path(root)
      expected = in_own_process(save, root / 'run', size, devices)
      for to in formats:
        out = root / to
        seconds, memory = in_own_process(export_timed, root / 'run', out, to)
        load_seconds = []
        for onto in 1, 8:
          loading, actual = in_own_process(load_timed, out, onto)
          assert actual == expected, (size, devices, to, onto)
          load_seconds.append(f'{loading:.1f}')
        files = [p for p in [out, *out.rglob('*')] if p.is_file()]
        size_mb = sum(p.stat().st_size for p in files) / 1e6
        print(
          f'| {size} | {devices} | {to} | {size_mb:.0f} | {seconds:.1f} | '
          f'{memory:.1f} | {" | ".join(load_seconds)} |',
          flush=True,
        )
        shutil.rmtree(out, ignore_errors=True)
        out.unlink(missing_ok=True)
  print('\nAll bit-equal.')


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('sizes', nargs='+', choices=list(vit.SIZES))
  parser.add_argument('--to', nargs='+', choices=FORMATS, default=FORMATS)
  arguments = parser.parse_args()
  main(arguments.sizes, arguments.to)
