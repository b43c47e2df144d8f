"""One process's rows of a step: images read, decoded and cropped, and masks."""

import dataclasses
import multiprocessing
from collections.abc import Callable

import numpy as np

from ijepa_jax.data import decode
from ijepa_jax.errors import UserError

# Of the seeds derived from the run's: no two draws may share a stream.
SEED_STREAM_ORDER, SEED_STREAM_CROP = 0, 1
MAX_REPLACEMENTS = 100  # images that are tried in place of a bad one


@dataclasses.dataclass(frozen=True)
class MakeBatch:
  """Makes one process's rows of a step; runs in the workers."""

  source: object
  sampler: object
  transform: Callable
  channels: int
  fast: bool
  rows: int  # of this process in a step
  processes: int
  seed: int
  max_pixels: int

  def __call__(self, i: int, indices: list[int]) -> dict:
    """Part i % processes of step i // processes, from images `indices`."""
    # In a worker alone: a thread of this process may outlive the job that made
    # it, and would set the limit of the next one.
    if multiprocessing.parent_process():
      decode.limit_pixels(self.max_pixels)
    step, part = divmod(i, self.processes)
    shape = self.rows, *self.transform.size, self.channels
    images, labels, failures = np.empty(shape, np.uint8), [], []
    # All at once, as the masks below: between two decoders, which leave nothing
    # in the caches, each would take thrice as long.
    rngs = [self._rng(i * self.rows + r) for r in range(self.rows)]
    for r, index in enumerate(indices):
      # Beyond the end of one pass, to fill the last batch: any image will do.
      at = min(index, len(self.source) - 1)
      images[r], label, failed = self._read(at, i * self.rows + r, rngs[r])
      labels.append(label)
      failures += [failed] if failed else []
    batch = {'image': images, 'label': np.stack(labels), 'failures': failures}
    if self.sampler is not None:
      first = part * self.rows
      masks = [
        self.sampler(self.seed, step, first + r) for r in range(self.rows)
      ]
      contexts, targets = zip(*masks, strict=True)
      batch |= {'context': np.stack(contexts), 'targets': np.stack(targets)}
    return batch

  def _rng(self, g):
    return np.random.default_rng((self.seed, SEED_STREAM_CROP, g))

  def _read(self, index, g, rng):
    """Row g from the image at index, or the next that can be read; its label;
    the failures until then.
    """
    n, failures = len(self.source), []
    for i in range(min(n, 1 + MAX_REPLACEMENTS)):
      at = (index + i) % n
      try:
        element = self.source[at]
      except OSError as error:
        failures.append((str(error.filename or f'image {at}'), str(error)))
        continue
      image = element['image']
      if isinstance(image, np.ndarray) and image.shape[-1] != self.channels:
        raise UserError(wrong_channels(element, self.channels))
      try:
        if not isinstance(image, np.ndarray):
          image = decode.Encoded(image, self.channels, self.fast)
        return self.transform(image, rng), element['label'], failures
      except decode.BadImage as error:
        failures.append((element['key'], str(error)))
        rng = self._rng(g)  # as if nothing had been drawn
    raise UserError(
      f'{len(failures)} images in a row can not be read, the first of them '
      f'{failures[0][0]} ({failures[0][1]}): repair or remove them.'
    )


def wrong_channels(element: dict, channels: int) -> str:
  return (
    f'{element["key"]} has {element["image"].shape[-1]} channels, and '
    f'{channels} are wanted: set data.channels, or take an encoder of as many.'
  )
