"""The pipeline: source -> crop and masks -> batches, ahead of the loop.

Row r of step k is global image g = k * batch_size + r of an endless stream of
epochs, each in an order of its own; for an evaluation, of one pass in order.
All that is random about it is a function of (seed, g), or of (seed, k): the
batches are the same for any number of processes and workers, and to resume is
to start at k. There is no state.
"""

import itertools
import os
import shutil

import grain
import numpy as np
from absl import logging

from ijepa_jax.data import decode, workers
from ijepa_jax.data.batch import (
  MAX_REPLACEMENTS,
  SEED_STREAM_ORDER,
  MakeBatch,
  Reading,
  check_channels,
)
from ijepa_jax.errors import UserError

_SHARED_MEMORY = '/dev/shm'


class _Failures:
  """Takes the images that could not be read out of each batch.

  Names each one once in the log, and stops the run when they are too many.
  """

  def __init__(self, max_share: float):
    self.max_share = max_share
    self.images = 0  # in the batches so far
    self.count = 0  # of them that had to be replaced
    self.reasons = {}  # key -> why it cannot be read

  def __call__(self, batch: dict) -> dict:
    self.images += len(batch['image'])
    failures = batch.pop('failures')
    self.count += len(failures)
    for key, reason in itertools.chain(*failures):
      if key not in self.reasons:
        logging.warning('Took the image after %s: %s.', key, reason)
        self.reasons[key] = reason
    if self.count > decode.max_bad_images(self.max_share, self.images):
      names = [*list(self.reasons)[:3], '...'][: len(self.reasons)]
      limit = 'and here all have to be'
      if self.max_share:
        limit = f'more than data.max_bad_share = {self.max_share:g}'
      raise UserError(
        f'{self.count} of {self.images} images cannot be read '
        f'({", ".join(names)}), {limit}: repair or remove them; the log has '
        'all names and reasons.'
      )
    return batch


def _first_readable(source) -> dict:
  """Returns the first image that can be read: one bad one is no mistake."""
  reasons = []
  for index in range(min(len(source), 1 + MAX_REPLACEMENTS)):
    try:
      return source[index]
    except OSError as error:
      reasons.append(str(error))
  raise UserError(
    f'None of the first {len(reasons)} images can be read: {reasons[0]}.'
  )


def _check_numbers(batch_size, parts, seed) -> None:
  if batch_size < 1 or batch_size % parts:
    raise UserError(
      f'A batch_size of {batch_size} does not divide over {parts} '
      f'processes: take a multiple of {parts}.'
    )
  if not 0 <= seed < 2**32:
    raise UserError(f'The seed is {seed}: take one from 0 to 2**32 - 1.')


def _check_images(source, reading: Reading) -> bool:
  """Refuses images that can't be read as asked; returns if they are encoded."""
  if not len(source):
    raise UserError('The data source is empty: check data.path.')
  first = _first_readable(source)
  check_channels(first, reading.channels)
  encoded = not isinstance(first['image'], np.ndarray)
  if encoded and reading.channels not in decode.MODES:
    raise UserError(
      f'data.channels is {reading.channels}: encoded images have 1 (grey), 2 '
      '(grey and alpha), 3 (RGB) or 4 (RGB and alpha); more come as .npy files.'
    )
  if reading.fast and not encoded:
    logging.warning('data.fast is passed over: the images are not encoded.')
  elif reading.fast and (missing := decode.missing_fast_packages()):
    raise UserError(
      f'data.fast needs {" and ".join(missing)}: pip install '
      "'ijepa_jax[fast]', or set it to False."
    )
  return encoded


def _check_workers(reading: Reading, rows: int) -> None:
  """Refuses workers whose batches of `rows` images shared memory can't hold.

  A worker that finds it full dies of SIGBUS, without a word.
  """
  if reading.workers < 0:
    raise UserError(f'data.workers is {reading.workers}: take 0 or more.')
  if not reading.workers or not os.path.isdir(_SHARED_MEMORY):
    return
  height, width = reading.transform.size
  # Four batches of each worker wait in some queue, and some to be put.
  batches = 4 * (reading.workers + 1)
  views = getattr(reading.transform, 'num_views', 1)
  need = batches * rows * views * height * width * reading.channels
  free = shutil.disk_usage(_SHARED_MEMORY).free
  if need > free:
    raise UserError(
      f'{reading.workers} workers need {need / 2**20:.0f} MiB of shared memory '
      f'and {_SHARED_MEMORY} has {free / 2**20:.0f} free: take fewer '
      'data.workers or enlarge it (docker run --shm-size).'
    )


def _order(count, batch_size, rows, seed, one_pass) -> grain.MapDataset:
  """Returns the indices of the images, in lists of `rows`."""
  if one_pass:
    order = grain.MapDataset.range(-(-count // batch_size) * batch_size)
  else:
    # Grain seeds epoch e with seed + e; hashing keeps epoch 1 of seed 0 from
    # equalling epoch 0 of seed 1.
    sequence = np.random.SeedSequence((seed, SEED_STREAM_ORDER))
    order = grain.MapDataset.range(count)
    order = order.shuffle(int(sequence.generate_state(1)[0])).repeat()
  # Grain can't count the batches of one image of an endless stream.
  return order.batch(rows, batch_fn=list) if rows > 1 else order.map(_alone)


def _alone(index: int) -> list[int]:
  return [index]


def make_dataset(
  source,
  sampler,
  reading: Reading,
  *,
  batch_size: int,
  seed: int = 0,
  start: int = 0,
  one_pass: bool = False,
  shard: grain.sharding.ShardOptions | None = None,
) -> grain.IterDataset:
  """Returns the batches of one process, from global step `start`.

  An image that can't be read, or has more pixels than decode.limit_pixels
  allows in this process, is replaced by the next good one in the source, and
  named once in the log.

  Args:
    source: see sources/.
    sampler: of masks, see methods/masks.py; None: batches without.
    reading: how images become rows.
    batch_size: images a step, over all processes.
    one_pass: every image once, in the order of the source, and its last image
      again to fill the last batch; else endless shuffled epochs.
    shard: which part of each batch is made; None: all of it.

  Returns:
    A dataset of batches {'image': uint8 [b, H, W, C], or [b, V, H, W, C] where
    the transform makes V views of each, 'label': int32 [b, L]} and, with a
    sampler, 'context': int32 [b, E, Kc], 'targets': int32 [b, M, Kt]. Of n
    parts, part p has b = batch_size // n rows, from row p * b of the global
    batch. Close its iterators; loader.prefetch does.

  Raises:
    UserError: an argument is wrong; by next(): too many images can't be read.
    RuntimeError: by next(): a worker died, which it takes a second to see.
  """
  part, parts = (shard.shard_index, shard.shard_count) if shard else (0, 1)
  _check_numbers(batch_size, parts, seed)
  rows = batch_size // parts
  encoded = _check_images(source, reading)
  _check_workers(reading, rows)
  workers.hush_resource_tracker()
  order = _order(len(source), batch_size, rows, seed, one_pass)
  make_batch = MakeBatch(
    source, sampler, reading, rows, parts, seed, decode.max_pixels()
  )
  # Of the batches of `rows` images, every parts-th is this process's.
  dataset = order.map_with_index(make_batch)[part + start * parts :: parts]
  # Only decoding releases the GIL, so threads help encoded images and nothing
  # else, and one alone gains nothing. Grain's default would keep 500 batches in
  # memory.
  threads = min(4, workers.cores()) if encoded and not reading.workers else 0
  threads = threads if threads > 1 else 0
  return (
    dataset.to_iter_dataset(grain.ReadOptions(threads, threads))
    .mp_prefetch(
      grain.MultiprocessingOptions(num_workers=reading.workers),
      workers.start_grain_worker,
    )
    .map(_Failures(reading.max_bad_share))
  )
