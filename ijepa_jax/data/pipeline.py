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
from collections.abc import Callable

import grain
import numpy as np
from absl import logging

from ijepa_jax.data import decode
from ijepa_jax.data.batch import (
  MAX_REPLACEMENTS,
  SEED_STREAM_ORDER,
  MakeBatch,
  wrong_channels,
)
from ijepa_jax.data.workers import cores, start_grain_worker
from ijepa_jax.errors import UserError


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
      some = ', '.join([*list(self.reasons)[:3], '...'][: len(self.reasons)])
      limit = 'and here all have to be'
      if self.max_share:
        limit = f'more than data.max_bad_share = {self.max_share:g}'
      raise UserError(
        f'{self.count} of {self.seen} images can not be read ({some}), '
        f'{limit}: repair or remove them; the log has all names and reasons.'
      )
    return batch


def _first_readable(source) -> dict:
  """The first image that can be read: one bad one is no mistake."""
  reasons = []
  for index in range(min(len(source), 1 + MAX_REPLACEMENTS)):
    try:
      return source[index]
    except OSError as error:
      reasons.append(str(error))
  raise UserError(
    f'None of the first {len(reasons)} images can be read: {reasons[0]}.'
  )


def _check(source, batch_size, seed, image_size, channels, fast, workers):
  """Refuses what would fail later and less clearly -> whether to decode."""
  if not len(source):
    raise UserError('The data source is empty: check data.path.')
  if not 0 <= seed < 2**32:
    raise UserError(f'The seed is {seed}: take one from 0 to 2**32 - 1.')
  first = _first_readable(source)
  encoded = not isinstance(first['image'], np.ndarray)
  if not encoded and first['image'].shape[-1] != channels:
    raise UserError(wrong_channels(first, channels))
  if encoded and channels not in decode.MODES:
    raise UserError(
      f'data.channels is {channels}: encoded images have 1 (grey), 2 (grey and '
      'alpha), 3 (RGB) or 4 (RGB and alpha); more come as .npy files.'
    )
  if fast and not encoded:
    logging.warning('data.fast is passed over: the images are not encoded.')
  missing = decode.missing_fast_packages() if fast and encoded else []
  if missing:
    raise UserError(
      f'data.fast needs {" and ".join(missing)}: pip install '
      "'ijepa_jax[fast]', or set it to False."
    )
  if workers < 0:
    raise UserError(f'data.workers is {workers}: take 0 or more.')
  # A worker that finds it full dies of SIGBUS, without a word.
  shared = '/dev/shm'
  if workers and os.path.isdir(shared):
    # Four batches of each worker wait in some queue, and some to be put.
    image = image_size[0] * image_size[1] * channels
    need = 4 * (workers + 1) * batch_size * image
    free = shutil.disk_usage(shared).free
    if need > free:
      raise UserError(
        f'{workers} workers need {need / 2**20:.0f} MiB of shared memory and '
        f'{shared} has {free / 2**20:.0f} free: take fewer data.workers or '
        'enlarge it (docker run --shm-size).'
      )
  return encoded


def _epochs(count: int, seed: int) -> grain.MapDataset:
  """Endless indices, each epoch in an order of its own."""
  # Grain adds the epoch to it: without the hash, the second epoch of a seed
  # were the first of the next.
  order = np.random.SeedSequence((seed, SEED_STREAM_ORDER)).generate_state(1)[0]
  return grain.MapDataset.range(count).shuffle(int(order)).repeat()


def _alone(index: int) -> list[int]:
  return [index]


def make_dataset(
  source,
  sampler,
  *,
  transform: Callable,
  batch_size: int,
  seed: int = 0,
  channels: int = 3,
  fast: bool = False,
  one_pass: bool = False,
  process_index: int = 0,
  process_count: int = 1,
  start: int = 0,
  workers: int = 0,
  max_bad_share: float = 0.01,
) -> grain.IterDataset:
  """The batches of one process, from global step `start`.

  An image that can't be read or decoded is replaced by the next one in the
  source that can, and named once in the log. So is one of more pixels than
  decode.limit_pixels allows here; workers are told.

  Args:
    source: see sources/.
    sampler: of masks, see methods/masks.py; None: batches without.
    transform: (image, numpy Generator) -> uint8 [H, W, C], with `size` (H, W);
      see transforms/crop.py.
    batch_size: images a step, over all processes.
    channels: 1 to 4 for encoded images, which are converted (decode.MODES);
      their own for arrays and .npy files.
    fast: decode and resize with what the extra [fast] brings; crops are within
      a grey level of those without.
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
    UserError: an argument that can't be; here.
    RuntimeError: by next(): too many images can't be read; or a worker died,
      which it takes a second to see.
  """
  if process_count < 1 or batch_size < 1 or batch_size % process_count:
    raise UserError(
      f'A batch_size of {batch_size} does not divide over {process_count} '
      f'processes: take a multiple of {process_count}.'
    )
  count = batch_size // process_count
  encoded = _check(source, count, seed, transform.size, channels, fast, workers)
  if one_pass:
    order = grain.MapDataset.range(-(-len(source) // batch_size) * batch_size)
  else:
    order = _epochs(len(source), seed)
  make_rows = MakeBatch(
    source,
    sampler,
    transform,
    channels,
    fast,
    count,
    process_count,
    seed,
    decode.most_pixels(),
  )
  # Grain's batches of one of an endless stream are more than it can count.
  order = order.batch(count, batch_fn=list) if count > 1 else order.map(_alone)
  dataset = order.map_with_index(make_rows)
  # Of the batches of `count` images, every process_count-th is this process's.
  dataset = dataset[process_index + start * process_count :: process_count]
  # Decoders work without the interpreter's lock; all else would only fight for
  # it. Grain's default would keep 500 batches in memory.
  threads = min(4, cores()) if encoded and not workers else 0
  # One alone gains nothing.
  threads = threads if threads > 1 else 0
  return (
    dataset.to_iter_dataset(grain.ReadOptions(threads, threads))
    .mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers), start_grain_worker
    )
    .map(_Failures(max_bad_share))
  )
