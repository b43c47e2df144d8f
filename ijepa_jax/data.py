"""The pipeline: source -> crop and masks -> batches, ahead of the loop.

Row r of step k is global image g = k * batch_size + r of an endless stream of
epochs, each in an order of its own; for an evaluation, of one pass in order.
All that is random about it is a function of (seed, g), or of (seed, k): the
batches are the same for any number of processes and workers, and to resume is
to start at k. There is no state.
"""

import dataclasses
import itertools
import os
import shutil
import threading
from collections.abc import Callable
from multiprocessing import parent_process

import grain
import numpy as np
from absl import logging

from ijepa_jax import augment

# Of the seeds derived from the run's: no two draws may share a stream.
_ORDER, _CROP = 0, 1
_SUCCESSORS = 10
# What next() raises when the images, the disk or a worker are at fault.
ERRORS = RuntimeError, ValueError, OSError


@dataclasses.dataclass(frozen=True)
class _Example:
  """Makes one row of a batch; runs in the workers."""

  source: object
  sampler: object
  transform: Callable
  channels: int
  batch_size: int
  seed: int

  def __call__(self, g: int, index: int) -> dict:
    """Row g % batch_size of step g // batch_size, from image `index`."""
    # Beyond the end of one pass, to fill the last batch: any image will do.
    image, label, failures = self._read(min(index, len(self.source) - 1))
    rng = np.random.default_rng((self.seed, _CROP, g))
    row = {
      'image': self.transform(image, rng),
      'label': label,
      'failures': failures,
    }
    if self.sampler is not None:
      at = divmod(g, self.batch_size)
      row['context'], row['targets'] = self.sampler(self.seed, *at)
    return row

  def _read(self, index):
    """The image and label at index, or of the next that can be read."""
    n, failures = len(self.source), []
    for i in range(min(n, 1 + _SUCCESSORS)):
      at = (index + i) % n
      try:
        element = self.source[at]
      except OSError as error:
        failures.append((str(error.filename or f'image {at}'), str(error)))
        continue
      image = element['image']
      if isinstance(image, np.ndarray):
        if image.shape[-1] != self.channels:
          raise ValueError(_wrong_channels(element, self.channels))
        return image, element['label'], failures
      try:
        image = augment.decode(image, self.channels)
        return image, element['label'], failures
      except augment.BadImage as error:
        failures.append((element['key'], str(error)))
    raise RuntimeError(
      f'{len(failures)} images in a row can not be read, the first of them '
      f'{failures[0][0]} ({failures[0][1]}).'
    )


def _wrong_channels(element, channels):
  return (
    f'{element["key"]} has {element["image"].shape[-1]} channels and '
    f'data.channels is {channels}: set it to what the images have.'
  )


def _stack(rows: list[dict]) -> dict:
  """Arrays of all rows, and the failures of each row that had some."""
  failures = [row.pop('failures') for row in rows]
  failures = [found for found in failures if found]
  batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
  return batch | {'failures': failures}


class _Failures:
  """Takes the images that could not be read out of each batch: names each one
  once in the log, and stops the run when they are too many.
  """

  def __init__(self, max_share: float):
    self.max_share = max_share
    self.seen = 0  # images
    self.count = 0  # of them that had to be replaced
    self.reasons = {}  # key -> why

  def __call__(self, batch: dict) -> dict:
    self.seen += len(batch['image'])
    failures = batch.pop('failures')
    self.count += len(failures)
    for key, reason in itertools.chain(*failures):
      if key not in self.reasons:
        logging.warning('Took the image after %s: %s.', key, reason)
        self.reasons[key] = reason
    # Of the first thousand as a whole: one of the first ten is no tenth.
    if self.count > self.max_share * max(self.seen, 1000):
      some = ', '.join(list(self.reasons)[:3])
      raise RuntimeError(
        f'{self.count} of {self.seen} images can not be read ({some}, ...), '
        f'more than data.max_bad_share = {self.max_share:g}: repair or remove '
        'them; the log has all names and reasons.'
      )
    return batch


def _check(source, batch_size, seed, image_size, channels, workers):
  """Refuses what would fail later and less clearly -> whether to decode."""
  if not len(source):
    raise ValueError('The data source is empty: check data.path.')
  if not 0 <= seed < 2**32:
    raise ValueError(f'The seed is {seed}: take one from 0 to 2**32 - 1.')
  try:
    first = source[0]
  except OSError:  # one bad image is no mistake
    first = {'image': b''}
  encoded = not isinstance(first['image'], np.ndarray)
  if not encoded and first['image'].shape[-1] != channels:
    raise ValueError(_wrong_channels(first, channels))
  if encoded and channels not in (1, 3):
    raise ValueError(
      f'data.channels is {channels}: encoded images have 1 (grey) or 3 (RGB).'
    )
  if workers < 0:
    raise ValueError(f'data.workers is {workers}: take 0 or more.')
  # A worker that finds it full dies of SIGBUS, without a word.
  shared = '/dev/shm'
  if workers and os.path.isdir(shared):
    # Four batches of each worker wait in some queue, and some to be put.
    image = image_size[0] * image_size[1] * channels
    need = 4 * (workers + 1) * batch_size * image
    free = shutil.disk_usage(shared).free
    if need > free:
      raise ValueError(
        f'{workers} workers need {need / 2**20:.0f} MiB of shared memory and '
        f'{shared} has {free / 2**20:.0f} free: take fewer data.workers or '
        'enlarge it (docker run --shm-size).'
      )
  return encoded


def _start_worker(index, count):
  """Ties a worker to its parent's life, and to nothing else."""
  # Ctrl-C or SLURM's SIGTERM reach the whole group: it is the parent that
  # decides what to do, and it still needs batches for that.
  os.setpgrp()

  def watch():
    parent_process().join()
    os._exit(1)  # or it would wait for ever to hand out a batch

  threading.Thread(target=watch, daemon=True).start()


def _epochs(count: int, seed: int) -> grain.MapDataset:
  """Endless indices, each epoch in an order of its own."""
  # Grain adds the epoch to it: without the hash, the second epoch of a seed
  # were the first of the next.
  order = np.random.SeedSequence((seed, _ORDER)).generate_state(1)[0]
  return grain.MapDataset.range(count).shuffle(int(order)).repeat()


def make_dataset(
  source,
  sampler,
  *,
  transform: Callable,
  batch_size: int,
  seed: int = 0,
  channels: int = 3,
  one_pass: bool = False,
  process_index: int = 0,
  process_count: int = 1,
  start: int = 0,
  workers: int = 0,
  max_bad_share: float = 0.01,
) -> grain.IterDataset:
  """The batches of one process, from global step `start`.

  An image that can't be read or decoded is replaced by the next one in the
  source that can, and named once in the log.

  Args:
    source: see sources.py.
    sampler: of masks, see masks.py; None: batches without.
    transform: (image, numpy Generator) -> uint8 [H, W, C], with `size` (H, W);
      see augment.py.
    batch_size: images a step, over all processes.
    channels: 1 or 3 for encoded images, which are converted; the arrays' own
      for arrays.
    one_pass: every image once and in the order of the source, the last batch
      filled up with its last image; else endless shuffled epochs.
    workers: processes that make batches, each some of its own, with four of
      them waiting in shared memory; 0: threads of this process. A script
      without absl.app calls absl.flags.FLAGS.mark_as_parsed() first, for Grain.
    max_bad_share: stop when more than this share of the images is replaced.

  Returns:
    A dataset of batches {'image': uint8 [b, H, W, C], 'label': int32 [b, L]}
    and, with a sampler, 'context': int32 [b, E, Kc], 'targets': int32
    [b, M, Kt]; b is batch_size // process_count: rows [p * b, (p + 1) * b) of
    the global batch.
    Close its iterators; `prefetch` does.

  Raises:
    ValueError: an argument that can't be; here.
    RuntimeError: too many images can't be read, or a worker died; by next().
  """
  if process_count < 1 or batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f'A batch_size of {batch_size} does not divide over {process_count} '
      f'processes: take a multiple of {process_count}.'
    )
  rows = batch_size // process_count
  encoded = _check(source, rows, seed, transform.size, channels, workers)
  if one_pass:
    order = grain.MapDataset.range(-(-len(source) // batch_size) * batch_size)
  else:
    order = _epochs(len(source), seed)
  dataset = order.map_with_index(
    _Example(source, sampler, transform, channels, batch_size, seed)
  ).batch(rows, batch_fn=_stack)
  # Of the batches of `rows` images, every process_count-th is this process's.
  dataset = dataset[process_index + start * process_count :: process_count]
  # Pillow decodes without the interpreter's lock; all else would only fight
  # for it. Grain's default would keep 500 batches in memory.
  threads = min(4, os.cpu_count()) if encoded and not workers else 0
  return (
    dataset.to_iter_dataset(grain.ReadOptions(threads, threads))
    .mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers), _start_worker
    )
    .map(_Failures(max_bad_share))
  )


class Prefetched(grain.experimental.ThreadPrefetchDatasetIterator):
  """An iterator that is kept ahead by a thread; closed by `with`."""

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def prefetch(
  dataset: grain.IterDataset, put: Callable, depth: int = 2
) -> Prefetched:
  """put(batch) of each batch, `depth` ahead, in order, made by one thread.

  With `put` carrying batches to the devices, they are there when the loop asks
  for them. What the pipeline or `put` raises, next() raises. To be used in a
  `with`, or closed: its workers would outlive it.
  """
  return Prefetched(iter(dataset.map(put)), depth)
