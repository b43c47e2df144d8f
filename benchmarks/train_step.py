"""How fast a config of I-JEPA trains on the devices that are here.

    python benchmarks/train_step.py --config=configs/vit_b16.py \
        --config.batch_size=128 [--steps=20] [--loop=200]

For each shape of masks that the config can draw: compile seconds, milliseconds
a step on a batch that is on the device already, images/s, peak memory and
model-FLOPs utilisation; then their average, shapes weighted by how often they
are drawn. With --loop, that many steps of the real training loop are run on the
config's data in a temporary folder, and its images/s, its share of time spent
waiting for data, the number of compilations after the first tenth and the cost
of the signals of health at the config's interval are told.

Model FLOPs are those of the matrix products of one step, without what remat
computes again, and peak rates are of data sheets: ijepa_jax/plan has both.
"""

import json
import pathlib
import sys
import tempfile
import time

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # configs/

from benchmarks.random_batch import make_batch
from ijepa_jax.errors import UserError
from ijepa_jax.plan import chips, flops, plan
from ijepa_jax.runtime import metrics, sharding
from ijepa_jax.train import compile, monitors, pretrain
from ijepa_jax.train.run import make_run

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file('config', None, 'Recipe.', lock_config=True)
flags.DEFINE_integer('steps', 20, 'Timed steps of each shape.')
flags.DEFINE_integer('loop', 0, 'Steps of the real loop to run; 0: none.')


def peak_memory(compiled) -> float:
  """GiB a device: as the allocator saw it, or as the compiler planned it."""
  stats = jax.local_devices()[0].memory_stats() or {}
  planned = flops.memory_of(compiled).peak
  return stats.get('peak_bytes_in_use', planned) / 2**30


def time_steps(config) -> dict:
  run = make_run(config, open_images=False)
  if run.method.name != 'ijepa':
    raise UserError(
      f"method is {run.method.name}, and I-JEPA's operations alone are counted "
      'here: take benchmarks/method_costs.py.'
    )
  abstract, make_state = compile.abstract_state(run)
  device = jax.devices()[0]
  chip = chips.by_kind(device.device_kind)
  rows = []
  state = make_state(jax.random.key(0))
  for drawn, shapes in plan.shapes_as_drawn(run):
    shape = shapes['context'].shape[-1], shapes['targets'].shape[-1]
    start = time.perf_counter()
    (step,) = compile.compile_steps(run, abstract, [shapes]).values()
    seconds = time.perf_counter() - start
    batch = sharding.to_global(make_batch(run, shapes), run.mesh)
    state, _ = step(state, batch)  # the first run of a program is slower
    jax.block_until_ready(state)
    start = time.perf_counter()
    for _ in range(FLAGS.steps):
      state, _ = step(state, batch)
    jax.block_until_ready(state)
    step_seconds = (time.perf_counter() - start) / FLAGS.steps
    count = flops.model_flops(run, shapes)
    rows.append(
      {
        'context': shape[0],
        'targets': shape[1],
        'drawn': drawn,
        'compile_seconds': seconds,
        'step_ms': 1e3 * step_seconds,
        'images_per_second': config.batch_size / step_seconds,
        'peak_gib': peak_memory(step),
        'model_tflops': count / step_seconds / run.mesh.size / 1e12,
      }
    )
    print(json.dumps({k: round(v, 3) for k, v in rows[-1].items()}), flush=True)
  share = np.array([row['drawn'] for row in rows])
  seconds = (share * [row['step_ms'] for row in rows]).sum() / 1e3
  tflops = (share * [r['model_tflops'] * r['step_ms'] for r in rows]).sum()
  total = {
    'device': device.device_kind,
    'devices': run.mesh.size,
    'jax': jax.__version__,
    'batch_size': config.batch_size,
    'compile_seconds': sum(row['compile_seconds'] for row in rows),
    'images_per_second': config.batch_size / seconds,
    'peak_gib': max(row['peak_gib'] for row in rows),
    'model_tflops_a_device': tflops / seconds / 1e3,
  }
  if chip:
    share = total['model_tflops_a_device'] * 1e12 / chip.flops
    total['model_flops_utilisation'] = share
  return total


def time_health(config) -> float:
  """Seconds of one look at the signals of health."""
  run = make_run(config)
  _, make_state = compile.abstract_state(run)
  look, state = monitors.make_health(run), make_state(jax.random.key(0))
  look(state)
  start = time.perf_counter()
  for _ in range(5):
    look(state)
  return (time.perf_counter() - start) / 5


def run_loop(config, steps: int) -> dict:
  config = config.copy_and_resolve_references()
  every = config.health.every_steps
  seconds = time_health(config) if every else 0.0
  config.total_steps = steps
  # They compile what steps need not.
  config.probe.every_steps = config.health.every_steps = 0
  config.checkpoint.every_steps = 0
  with tempfile.TemporaryDirectory() as workdir:
    pretrain.run(config, workdir)
    rows = metrics.read(workdir)
  rows = rows[len(rows) // 10 :]
  speed = rows[-1]['images_per_second']
  interval = every * config.batch_size / speed
  return {
    'steps': len(rows),
    'images_per_second': speed,
    'health_seconds': seconds,
    'health_share': seconds / interval if every else 0.0,
    'data_wait_share': float(np.mean([r['data_wait_share'] for r in rows])),
    'compilations_after_warm_up': (
      rows[-1]['compilations'] - rows[0]['compilations']
    ),
  }


def main(_):
  print(json.dumps(time_steps(FLAGS.config), indent=2), flush=True)
  if FLAGS.loop:
    print(json.dumps(run_loop(FLAGS.config, FLAGS.loop), indent=2))


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
