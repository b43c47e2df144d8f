"""One run on ever other numbers of processes and devices, and on one device.

    nice python benchmarks/elastic.py [--folder=runs/elastic]

The same command is started again and again, after SIGTERM to one process, on 1,
2, 4 and 2 processes and on meshes of 1 to 8 devices (of this machine's CPU),
with and without a split state. Every step must have the very same images in the
same order as the run on one device, and the same loss to 1e-5 of it.
"""

import collections
import itertools
import json
import pathlib
import shutil
import sys

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import fault_runs
from fault_runs import Job

from ijepa_jax.runtime import metrics

_FOLDER = flags.DEFINE_string('folder', 'runs/elastic', 'Of both runs.')

# Processes, devices of each, mesh.fsdp: one start after the other.
STARTS = (
  *((1, 1, 1), (2, 1, 1), (4, 1, 2), (2, 3, 3)),
  *((1, 3, 1), (1, 5, 1), (1, 7, 1), (2, 4, 8)),
)
EACH = 4  # steps, and one or two more until all have stopped
KNOBS = {
  'batch_size': 840,  # divides over 1 to 8 devices
  'data.image_size': (32, 32),
  'mask.sampler': 'rasterized',
  'model.width': 128,  # wide enough to be split
  'model.heads': 4,
  'model.mlp_dim': 512,
  'checkpoint.every_steps': 1000,
}

# main.py that writes down the images of each batch, and stops itself.
_MAIN = f"""
import hashlib, itertools, json, os, runpy, signal, sys
sys.path.insert(0, {str(fault_runs.ROOT)!r})
from ijepa_jax.data import pipeline
from ijepa_jax.runtime import metrics

make_dataset, write = pipeline.make_dataset, metrics.MetricWriter.write

def recording(*args, start=0, shard, **options):
  steps = itertools.count(start + 1)
  def record(batch):
    rows = [hashlib.sha256(x.tobytes()).hexdigest() for x in batch['image']]
    name = f'{{os.environ["IMAGES"]}}/{{start}}-{{shard.shard_index}}'
    with open(name, 'a') as file:
      row = [next(steps), shard.shard_index, shard.shard_count, rows]
      file.write(json.dumps(row) + '\\n')
    return batch
  data = make_dataset(*args, start=start, shard=shard, **options)
  return data.map(record)

def stopping(self, step, values):
  write(self, step, values)
  if self.folder and step == int(os.environ['STOP_AT']):
    os.kill(os.getpid(), signal.SIGTERM)

pipeline.make_dataset, metrics.MetricWriter.write = recording, stopping
sys.argv[0] = {str(fault_runs.ROOT / 'main.py')!r}
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def train(folder, name, starts, total: int) -> list[int]:
  """Trains `total` steps; returns those from which each start went on."""
  workdir, images = folder / name, folder / f'{name}-images'
  for path in workdir, images:
    shutil.rmtree(path, ignore_errors=True)
  images.mkdir(parents=True)
  main = folder / 'main_that_records.py'
  main.write_text(_MAIN)
  begun = []
  for i, (processes, devices, fsdp) in enumerate(starts):
    last = i == len(starts) - 1
    stop = total + 1 if last else fault_runs.last_step(workdir) + EACH - 1
    with Job(
      workdir,
      processes,
      knobs=KNOBS | {'total_steps': total, 'mesh.fsdp': fsdp},
      devices=devices,
      MAIN=str(main),
      IMAGES=str(images),
      STOP_AT=str(stop),
    ) as job:
      statuses = {end.status for end in job.ends()}
      assert statuses == {0 if last else 143}, f'{statuses}: {job.logs}'
      begun.append(job.from_step())
  return begun


def images_of(folder, name) -> dict[int, set[str]]:
  """Step -> all that starts have taken for its batch, row after row."""
  parts = collections.defaultdict(dict)
  for path in (folder / f'{name}-images').iterdir():
    start = int(path.name.partition('-')[0])
    for line in path.read_text().splitlines():
      step, part, count, rows = json.loads(line)
      parts[step, start, count][part] = rows
  batches = collections.defaultdict(set)
  for (step, _, count), rows in parts.items():
    if len(rows) == count:  # one process may be further ahead than another
      batch = itertools.chain(*(rows[i] for i in range(count)))
      batches[step].add(' '.join(batch))
  return batches


def compare(folder, starts=STARTS) -> dict:
  """Trains both runs and compares them, step by step.

  Raises:
    AssertionError: a batch has other images, or a loss differs.
  """
  folder.mkdir(parents=True, exist_ok=True)
  total = (EACH + 2) * len(starts)
  begun = train(folder, 'elastic', starts, total)
  train(folder, 'alone', [(1, 1, 1)], total)
  elastic, alone = (images_of(folder, name) for name in ('elastic', 'alone'))
  losses, expected = (
    {row['step']: row['loss'] for row in metrics.read(folder / name)}
    for name in ('elastic', 'alone')
  )
  assert losses.keys() == expected.keys() == set(range(1, total + 1))
  for step in losses:
    assert elastic[step] == alone[step], f'other images in step {step}'
  error = max(abs(losses[k] / expected[k] - 1) for k in losses)
  assert error < 1e-5, f'a loss differs by {error:.1e}'
  return {'begun': begun, 'steps': total, 'largest_difference': error}


def main(_):
  folder = pathlib.Path(_FOLDER.value).resolve()
  print(json.dumps({'starts': STARTS} | compare(folder)))


if __name__ == '__main__':
  app.run(main)
