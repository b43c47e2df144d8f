"""Two copies of one command, started at random moments, again and again.

    python benchmarks/two_at_once.py --rounds=20

Two kNN evaluations that share their features, then two pre-trainings in one
workdir. Every number must be that of one command alone: features without a row
of zeros, the same accuracy, the same losses to the last bit; and the second
pre-training goes on from the first, or is refused in a sentence.
"""

import collections
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from ijepa_jax.runtime import metrics

_ROUNDS = flags.DEFINE_integer('rounds', 20, 'Of each of the two kinds.')
_DELAY = flags.DEFINE_float('delay', 5.0, 'Seconds between starts, at most.')


def start(*arguments):
  return subprocess.Popen(
    [sys.executable, str(ROOT / 'main.py'), *map(str, arguments)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def pair(arguments) -> list[tuple[int, str]]:
  """Exit status and output of both."""
  first = start(*arguments)
  time.sleep(random.uniform(0, _DELAY.value))
  both = first, start(*arguments)
  return [(p.communicate()[0], p.returncode)[::-1] for p in both]


def pretrain(workdir):
  return [
    *('--config=configs/tiny.py', f'--workdir={workdir}'),
    *('--config.total_steps=40', '--config.checkpoint.every_steps=4'),
    *('--config.batch_size=16', '--config.data.count=64'),
    *('--config.probe.every_steps=0', '--config.health.every_steps=0'),
    '--config.optim.warmup_steps=5',
  ]


def write_images(folder):
  """Noise in two colors, 1000 pictures to train with and 500 to test."""
  rng = np.random.default_rng(0)
  for split, count in (('train', 500), ('test', 250)):
    for i, name in enumerate(('blue', 'red')):
      (folder / split / name).mkdir(parents=True)
      for k in range(count):
        pixels = rng.integers(0, 200, (60, 60, 3), np.uint8)
        pixels[..., 2 - 2 * i] += 10
        Image.fromarray(pixels).save(folder / split / name / f'{k:03}.png')


def knn(folder, workdir):
  return [
    *('--config=configs/evals/knn.py', '--config.task=folder'),
    *(f'--config.data.path={folder}/images', '--config.data.test=test'),
    *(f'--config.init_from={folder}/alone', f'--workdir={workdir}'),
    *('--config.data.workers=0', '--config.batch_size=32'),
  ]


def losses(workdir) -> list[float]:
  return [row['loss'] for row in metrics.read(workdir)]


def accuracy(workdir) -> dict:
  (path,) = pathlib.Path(workdir).glob('*.json')
  return json.loads(path.read_text())['accuracy']


def main(_):
  folder = pathlib.Path(tempfile.mkdtemp())
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder / 'compiled')
  alone = start(*pretrain(folder / 'alone'))
  assert alone.communicate() and alone.returncode == 0
  write_images(folder / 'images')
  judged = start(*knn(folder, folder / 'judged'))
  assert judged.communicate() and judged.returncode == 0
  counts = collections.Counter()
  for i in range(_ROUNDS.value):
    workdir = folder / f'knn-{i}'
    for status, words in pair(knn(folder, workdir)):
      assert status == 0, words
      counts['kNN: waited for the other'] += 'Waiting for process' in words
    for path in workdir.rglob('last*.npy'):
      assert np.abs(np.load(path)).sum(1).all(), path
    assert accuracy(workdir) == accuracy(folder / 'judged')
    counts['kNN: rounds, every number as alone'] += 1
    shutil.rmtree(workdir)
  for i in range(_ROUNDS.value):
    workdir = folder / f'run-{i}'
    results = pair(pretrain(workdir))
    assert min(status for status, _ in results) == 0, results
    for status, words in results:
      assert status == 0 or 'writes to' in words, words
      assert 'Traceback' not in words, words
      counts['pre-training: refused'] += status != 0
    assert losses(workdir) == losses(folder / 'alone')
    counts['pre-training: rounds, every loss as alone'] += 1
    shutil.rmtree(workdir)
  print(json.dumps(counts, indent=2))
  shutil.rmtree(folder)


if __name__ == '__main__':
  app.run(main)
