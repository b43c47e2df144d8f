"""One page of truth: what a step of a config takes, here or on other chips.

    python benchmarks/step.py --config=configs/vit_b16.py \
        --config.batch_size=128 [--steps=20] [--shapes=1] [--loop=200]
    python benchmarks/step.py --config=configs/tiny.py --against=../before
    python benchmarks/step.py --config=configs/vit_b16.py --topology=v5e:2x2 \
        --config.batch_size=256 [--against=../before]

On the devices that are here: for each shape of masks that the config can draw,
compile seconds, milliseconds a step on a batch that is on the device already,
images/s, peak memory and model-FLOPs utilisation; then their average, shapes
weighted by how often they are drawn, or of --shapes=1 that alone which is drawn
most. The loss is of the last step on one batch of noise: settings that should
compute the same come to about the same. With --loop, that many steps of the
real training loop are run on the config's data in a temporary folder, and its
images/s, its share of time spent waiting for data, the number of compilations
after the first tenth and the cost of the signals of health at the config's
interval are told.

With --topology, on chips that are not there, see docs/plan.md: an estimate by
part of the step, and the ten dearest instructions with the lines that they come
from. With --against, another checkout beside this one: steps that take turns in
one run, or two estimates.

Model FLOPs are those of the matrix products of one step, without what remat
computes again, and peak rates are of data sheets: ijepa_jax/plan has both.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

HERE = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(HERE))

from benchmarks import turns

# A worker measures the package and the configs of another checkout.
sys.path.insert(0, os.environ.get('CHECKOUT', str(HERE)))

from benchmarks.random_batch import make_batch
from ijepa_jax.errors import UserError
from ijepa_jax.plan import chips, flops, plan
from ijepa_jax.runtime import metrics, sharding
from ijepa_jax.train import compile, monitors, pretrain
from ijepa_jax.train.run import make_run

try:
  from ijepa_jax.plan.program.compiled import memory_of
except ImportError:  # --against an older checkout
  from ijepa_jax.plan.flops import memory_of

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file('config', None, 'Recipe.', lock_config=True)
flags.DEFINE_integer('steps', 20, 'Timed steps of each shape.')
flags.DEFINE_integer('shapes', 0, 'Of masks, those drawn most; 0: all.')
flags.DEFINE_integer('loop', 0, 'Steps of the real loop to run; 0: none.')
flags.DEFINE_string('topology', '', 'Chips that are not there, as v5e:2x2.')
flags.DEFINE_string('against', '', 'Root of another checkout.')
flags.DEFINE_integer('turns', 8, 'With --against, turns of each.')
flags.DEFINE_bool('worker', False, 'To be one of two that take turns.')


def peak_memory(compiled) -> float:
  """GiB a device: as the allocator saw it, or as the compiler planned it."""
  stats = jax.local_devices()[0].memory_stats() or {}
  planned = memory_of(compiled).peak
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
  drawn_most = sorted(plan.shapes_as_drawn(run), key=lambda x: -x[0])
  for drawn, shapes in drawn_most[: FLAGS.shapes or None]:
    shape = shapes['context'].shape[-1], shapes['targets'].shape[-1]
    start = time.perf_counter()
    (step,) = compile.compile_steps(run, abstract, [shapes]).values()
    seconds = time.perf_counter() - start
    batch = sharding.to_global(make_batch(run, shapes), run.mesh)
    state, _ = step(state, batch)  # the first run of a program is slower
    jax.block_until_ready(state)
    start = time.perf_counter()
    for _ in range(FLAGS.steps):
      state, out = step(state, batch)
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
        'loss': float(out['loss']),
        'model_tflops': count / step_seconds / run.mesh.size / 1e12,
      }
    )
    print(json.dumps({k: round(v, 3) for k, v in rows[-1].items()}), flush=True)
  share = np.array([row['drawn'] for row in rows])
  share /= share.sum()
  seconds = (share * [row['step_ms'] for row in rows]).sum() / 1e3
  tflops = (share * [r['model_tflops'] * r['step_ms'] for r in rows]).sum()
  total = {
    'device': device.device_kind,
    'platform': device.platform,
    'devices': run.mesh.size,
    'jax': jax.__version__,
    'batch_size': config.batch_size,
    'compile_seconds': sum(row['compile_seconds'] for row in rows),
    'images_per_second': config.batch_size / seconds,
    'peak_gib': max(row['peak_gib'] for row in rows),
    'loss': rows[-1]['loss'],
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


def serve(config) -> None:
  """Takes turns with another checkout, on the shape that is drawn most."""
  run = make_run(config, open_images=False)
  _, shapes = max(plan.shapes_as_drawn(run), key=lambda drawn: drawn[0])
  turns.serve_steps(run, make_batch(run, shapes))


def take_turns(other: str) -> dict:
  """How many times as fast this checkout is: the median, least and most."""
  workers = {
    name: turns.Worker(
      [sys.executable, __file__, *sys.argv[1:], '--worker'],
      cwd=root,
      env=os.environ | {'CHECKOUT': str(root)},
    )
    for name, root in (('other', pathlib.Path(other).resolve()), ('here', HERE))
  }
  seconds = turns.take(workers, FLAGS.steps, FLAGS.turns)
  for worker in workers.values():
    worker.close()
  median, least, most = turns.ratios(seconds, 'other')['here']
  ms = {f'ms {k}': 1e3 * statistics.median(v) for k, v in seconds.items()}
  return {'times as fast': median, 'least': least, 'most': most} | ms


def estimate(root: pathlib.Path) -> None:
  """Prints a checkout's own plan for --topology, by part."""
  own = [a for a in sys.argv[1:] if a.startswith(('--config', '--topology'))]
  if (root / 'ijepa_jax/plan/program/parts.py').exists():  # else an older one
    own.append('--parts')
  command = [sys.executable, '-m', 'ijepa_jax.plan', *own]
  print(f'{root}:', flush=True)
  subprocess.run(command, cwd=root, check=True)


def main(_):
  if FLAGS.topology:
    for root in filter(None, (FLAGS.against, HERE)):
      estimate(pathlib.Path(root).resolve())
  elif FLAGS.worker:
    serve(FLAGS.config)
  elif FLAGS.against:
    print(json.dumps(take_turns(FLAGS.against), indent=2))
  else:
    print(json.dumps(time_steps(FLAGS.config), indent=2), flush=True)
    if FLAGS.loop:
      print(json.dumps(run_loop(FLAGS.config, FLAGS.loop), indent=2))


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
