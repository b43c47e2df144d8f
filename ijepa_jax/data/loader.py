"""Batches of this process, and global batches on the devices."""

import re
from collections.abc import Callable

import grain
import jax

from ijepa_jax.data import pipeline, workers
from ijepa_jax.errors import UserError
from ijepa_jax.runtime import sharding


class DevicePrefetch(grain.experimental.ThreadPrefetchDatasetIterator):
  """An iterator that is kept ahead by a thread; closed by `with`."""

  def start_prefetch(self):
    # Who is asked to stop still needs batches for the steps until then.
    with workers.undisturbed():
      super().start_prefetch()

  def __next__(self):
    try:
      return super().__next__()
    except RuntimeError as error:
      # Grain looks after its workers once a second while it waits for them.
      killed = re.search(r'terminated .* exit code (-?\d+)', str(error))
      if not killed:
        raise
      raise UserError(
        f'A worker of the input pipeline died with exit code {killed[1]}: -9 '
        'is most often a lack of memory and -7 of shared memory: take fewer '
        'data.workers; the log above may say more.'
      ) from error

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def prefetch(
  dataset: grain.IterDataset, put: Callable, depth: int = 2
) -> DevicePrefetch:
  """put(batch) of each batch, `depth` ahead, in order, made by one thread.

  With `put` carrying batches to the devices, they are there when the loop asks
  for them. What the pipeline or `put` raises, next() raises. To be used in a
  `with`, or closed: its workers would outlive it.
  """
  return DevicePrefetch(iter(dataset.map(put)), depth)


def local_batches(source, sampler=None, **kwargs):
  """pipeline.make_dataset of this process among all."""
  return pipeline.make_dataset(
    source,
    sampler,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    **kwargs,
  )


def device_batches(dataset, mesh, *keys: str, depth: int = 2):
  """The stream of global batches, with these keys, on the devices of `mesh`."""

  def put(batch):
    return sharding.to_global({k: batch[k] for k in keys}, mesh)

  return prefetch(dataset, put, depth)
