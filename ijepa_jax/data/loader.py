"""Batches of this process, and global batches on the devices."""

import dataclasses
import re
from collections.abc import Callable

import grain

from ijepa_jax.data import pipeline, workers
from ijepa_jax.errors import UserError
from ijepa_jax.runtime import sharding


class DevicePrefetch(grain.experimental.ThreadPrefetchDatasetIterator):
  """An iterator that a thread keeps ahead; `with` closes it."""

  def start_prefetch(self):
    # A job that is asked to stop still needs batches for the steps until then.
    with workers.undisturbed():
      super().start_prefetch()

  def __next__(self):
    try:
      return super().__next__()
    except RuntimeError as error:
      # Grain looks for dead workers once a second while it waits for a batch.
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
  """Returns put(batch) of each batch in order, made `depth` ahead by a thread.

  If `put` carries batches to the devices, they are there when the loop asks
  for them. next() raises errors of the pipeline and of `put`. Use it in a
  `with`, or close it: its workers would outlive it.

  Raises:
    UserError: by next(): a worker died.
  """
  return DevicePrefetch(iter(dataset.map(put)), depth)


def local_batches(source, sampler=None, **options) -> grain.IterDataset:
  """Returns this process's part of the batches.

  Args:
    **options: arguments of pipeline.make_dataset, and attributes of Reading.
  """
  names = {field.name for field in dataclasses.fields(pipeline.Reading)}
  reading = {name: options.pop(name) for name in names & options.keys()}
  return pipeline.make_dataset(
    source,
    sampler,
    pipeline.Reading(**reading),
    shard=grain.sharding.ShardByJaxProcess(),
    **options,
  )


def device_batches(dataset, mesh, *keys: str, depth: int = 2):
  """Returns global batches of these keys, on the devices of `mesh`.

  Args:
    dataset: batches of this process, from `local_batches`.
    depth: how many batches are made ahead.
  """

  def put(batch):
    return sharding.to_global({k: batch[k] for k in keys}, mesh)

  return prefetch(dataset, put, depth)
