"""How many images a second one core makes ready: here, and PyTorch's usual way.

    python benchmarks/input_pipeline.py [--rounds=9]
    python benchmarks/input_pipeline.py --batches=10000

JPEGs of ImageNet's size (500 x 375) are cut out of the photographs that come
with Matplotlib and scikit-learn, mirrored at random, and stored as a folder,
ArrayRecord shards and a TFDS data set; and once more as the shards that pack
--resize=256 makes. From each of these the pipeline makes batches of 224 x 224
uint8 with masks, with Pillow alone and, where the extra [fast] is installed,
with data.fast.

PyTorch's usual way is measured beside them: Pillow opens a file, converts it to
RGB, cuts and resizes a RandomResizedCrop; then float32 [C, H, W] / 255,
normalized, collated. By NumPy, and by PyTorch if it is installed.

Every way is a process of its own, all on the same core. They take turns, a
batch each. A rate is images by seconds of CPU, the median of the rounds; its
ratio is to PyTorch's way in the same round (that of NumPy, which needs nothing
installed), so that other load matters little.

With --batches, two workers and small batches: does memory grow? Linux only.
"""

import collections
import contextlib
import multiprocessing
import os
import pathlib
import statistics
import sys
import tempfile
import time
from unittest import mock

import numpy as np
import psutil
from absl import app, flags
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # not installed

from ijepa_jax.data import decode, loader, pipeline, sources
from ijepa_jax.data.sources import subset
from ijepa_jax.data.transforms import crop
from ijepa_jax.methods import masks

FLAGS = flags.FLAGS
flags.DEFINE_integer('rounds', 9, 'Batches that each way makes.')
flags.DEFINE_integer('images', 256, 'Different JPEGs.')
flags.DEFINE_integer('quality', 95, 'Of the JPEGs.')
flags.DEFINE_integer('batch_size', 64, 'Images.')
flags.DEFINE_integer('batches', 0, 'Watch the memory of so many instead.')

SIZE = 224, 224
CROP = crop.RandomResizedCrop(SIZE)
MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


def pipeline_batches(kind, path, fast, batch_size):
  """Endless batches of the pipeline, in this process."""
  source = sources.make_source(kind, path=path)
  # As long as ImageNet: else the shuffle of few images is measured.
  source = subset.Subset(source, np.arange(1_281_167) % len(source))
  sampler = masks.make_sampler('release', grid=(14, 14))
  return iter(
    pipeline.make_dataset(
      source, sampler, pipeline.Reading(CROP, fast=fast), batch_size=batch_size
    )
  )


def pytorch_way_batches(path, batch_size, in_torch):
  """Endless batches in PyTorch's usual way."""
  paths = sorted(pathlib.Path(path).rglob('*.jpg'))
  rng = np.random.default_rng()
  normalize, collate = _torch() if in_torch else (_numpy, np.stack)
  while True:
    batch = []
    for i in rng.integers(len(paths), size=batch_size):
      with open(paths[i], 'rb') as file:
        image = Image.open(file).convert('RGB')
      box = CROP.box(*image.size, rng)
      image = image.crop(box).resize(SIZE[::-1], Image.Resampling.BILINEAR)
      batch.append(normalize(image))
    yield collate(batch)


# As ToTensor and Normalize do it: a new array for each.
def _numpy(image):
  pixels = np.ascontiguousarray(np.array(image).transpose(2, 0, 1))
  pixels = pixels.astype(np.float32) / 255
  pixels = pixels - MEAN
  pixels /= STD
  return pixels


def _torch():
  import torch

  torch.set_num_threads(1)
  mean, std = torch.from_numpy(MEAN), torch.from_numpy(STD)

  def normalize(image):
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    pixels = pixels.to(torch.float32).div(255)
    return pixels.clone().sub_(mean).div_(std)

  return normalize, torch.stack


def serve(pipe, core, make, arguments):
  """Makes a batch at each request and sends the seconds of CPU it took."""
  os.sched_setaffinity(0, {core})
  batches = make(*arguments)
  next(batches)
  while pipe.recv():
    start = time.process_time()
    next(batches)
    pipe.send(time.process_time() - start)
  # Not ru_maxrss, which begins at the parent's.
  status = pathlib.Path('/proc/self/status').read_text()
  pipe.send(int(status.split('VmHWM:')[1].split()[0]) / 1024)


def race(ways: dict, rounds: int) -> dict[str, tuple[list[float], float]]:
  """Lets all ways take turns.

  Args:
    ways: name -> (function that returns batches, its arguments).

  Returns:
    Name -> (seconds of each batch, peak memory in MiB).
  """
  spawn = multiprocessing.get_context('spawn')
  core = max(os.sched_getaffinity(0))
  pipes, seconds = {}, {name: [] for name in ways}
  for name, way in ways.items():
    pipes[name], end = spawn.Pipe()
    spawn.Process(target=serve, args=(end, core, *way), daemon=True).start()
    end.close()  # else recv would not notice that the process died
  for i in range(rounds):
    for name in list(ways)[:: 1 if i % 2 else -1]:
      pipes[name].send(True)
      seconds[name].append(pipes[name].recv())
  peaks = {}
  for name, pipe in pipes.items():
    pipe.send(False)
    peaks[name] = pipe.recv()
  return {name: (seconds[name], peaks[name]) for name in ways}


def parts(path, fast, batch_size, rounds) -> dict[str, float]:
  """Returns the milliseconds of CPU of an image from the folder, by part."""
  spent = collections.Counter()

  def timed(name, function):
    def call(*args):
      start = time.thread_time()
      result = function(*args)
      spent[name] += time.thread_time() - start
      return result

    return call

  with contextlib.ExitStack() as stack:
    for owner, attribute, name in (
      (decode.Encoded, '__init__', 'decode'),
      (decode.Encoded, 'pixels', 'pixels'),
      (crop, 'crop', 'crop'),  # which asks for the pixels
      (masks.MultiBlock, '__call__', 'masks'),
    ):
      function = timed(name, getattr(owner, attribute))
      stack.enter_context(mock.patch.object(owner, attribute, function))
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    batches = pipeline_batches('folder', path, fast, batch_size)
    next(batches)
    spent.clear()
    start = time.thread_time()
    for _ in range(rounds):
      next(batches)
    spent['all'] = time.thread_time() - start
  spent['decode'] += spent['pixels']
  spent['crop'] -= spent.pop('pixels')
  spent['rest'] = 2 * spent['all'] - spent.total()
  return {k: 1000 * v / rounds / batch_size for k, v in spent.items()}


def compare(root: pathlib.Path) -> None:
  from benchmarks import photographs  # here, as it weighs 80 MiB

  files = photographs.make(FLAGS.images, FLAGS.quality)
  stores, size = photographs.store(root, files), FLAGS.batch_size
  folder = stores['folder'][1]
  ways = {'PyTorch way, NumPy': (pytorch_way_batches, (folder, size, False))}
  try:
    import torch  # noqa: F401

    ways['PyTorch way, torch'] = (pytorch_way_batches, (folder, size, True))
  except ImportError:
    pass
  fasts = (False,) if decode.missing_fast_packages() else (False, True)
  for fast in fasts:
    for name, store in stores.items():
      ways[name + ', fast' * fast] = (pipeline_batches, (*store, fast, size))
  kilobytes = sum(map(len, files)) / len(files) / 1000
  print(
    f'{len(files)} JPEGs of 500 x 375, {kilobytes:.0f} kB each; load '
    f'{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores'
  )
  results = race(ways, FLAGS.rounds)
  base = results['PyTorch way, NumPy'][0]
  print(f'\n{"":20} images/s a core   times the usual way   peak MiB')
  for name, (seconds, peak) in results.items():
    rate = size / statistics.median(seconds)
    ratio = statistics.median(b / s for b, s in zip(base, seconds, strict=True))
    print(f'{name:20} {rate:15.0f} {ratio:21.2f} {peak:10.0f}')
  for fast in fasts:
    spent = parts(folder, fast, size, FLAGS.rounds)
    total = spent.pop('all')
    shares = ', '.join(f'{k} {v / total:.1%}' for k, v in spent.items())
    name = 'folder' + ', fast' * fast
    print(f'\n{name}: {total:.2f} ms an image: {shares}')


def watch_memory(root: pathlib.Path) -> None:
  """Prints the memory of this process and its workers that they don't share."""
  from benchmarks import photographs

  for i, file in enumerate(photographs.make(FLAGS.images, FLAGS.quality)):
    (root / f'{i:05}.jpg').write_bytes(file)
  process, count = psutil.Process(), FLAGS.batches
  dataset = pipeline.make_dataset(
    sources.make_source('folder', path=str(root)),
    masks.make_sampler('release', grid=(6, 6), min_keep=4),
    pipeline.Reading(crop.RandomResizedCrop((96, 96)), workers=2),
    batch_size=8,
  )
  with loader.prefetch(dataset, lambda batch: batch) as batches:
    for i in range(count + 1):
      next(batches)
      if i % max(count // 10, 1) == 0:
        sizes = [
          p.memory_full_info().uss / 2**20
          for p in (process, *process.children(recursive=True))
        ]
        each = ', '.join(f'{size:.0f}' for size in sizes)
        print(f'{i:6} batches: {sum(sizes):5.0f} MiB ({each})', flush=True)


def main(_):
  with tempfile.TemporaryDirectory() as root:
    (watch_memory if FLAGS.batches else compare)(pathlib.Path(root))


if __name__ == '__main__':
  app.run(main)
