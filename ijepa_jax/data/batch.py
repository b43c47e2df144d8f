"""Makes one process's part of a batch: images read and cropped, and masks."""

import dataclasses
import multiprocessing
from collections.abc import Callable

import numpy as np

from ijepa_jax.data import decode
from ijepa_jax.errors import UserError

# Seeds are derived from the run's by these: no two draws may share a stream.
SEED_STREAM_ORDER, SEED_STREAM_CROP = 0, 1
MAX_REPLACEMENTS = 100  # images that are tried in place of a bad one


@dataclasses.dataclass(frozen=True)
class Reading:
  """How the images of a source become rows of a batch.

  Attributes:
    transform: (image, numpy Generator) -> uint8 array of one shape, such as
      [H, W, C], with `size` (H, W); see transforms/crop.py. One of `num_views`
      views gives [V, H, W, C], see transforms/views.py.
    channels: 1 to 4 for encoded images, which are converted (decode.MODES);
      their own for arrays and .npy files.
    fast: decode and resize with what the extra [fast] brings; crops are within
      a grey level of those without.
    workers: processes that make batches, each some of its own, with four of
      them waiting in shared memory; 0: threads of this process. A script
      without absl.app calls absl.flags.FLAGS.mark_as_parsed() first, for Grain.
    max_bad_share: the run stops if more than this share of the images has to
      be replaced.
  """

  transform: Callable
  channels: int = 3
  fast: bool = False
  workers: int = 0
  max_bad_share: float = 0.01


@dataclasses.dataclass(frozen=True)
class MakeBatch:
  """Makes one process's rows of a step; runs in the workers."""

  source: object
  sampler: object  # of masks, or None
  reading: Reading
  rows: int  # of each process in a step
  processes: int  # that share a step
  seed: int  # of crops and masks
  max_pixels: int  # see decode.limit_pixels; for the workers

  def __call__(self, i: int, indices: list[int]) -> dict:
    """Makes part i % processes of step i // processes from images `indices`."""
    # In a worker alone: a thread of the main process may outlive the job that
    # made it, and would set the limit of the next one.
    if multiprocessing.parent_process():
      decode.limit_pixels(self.max_pixels)
    step, part = divmod(i, self.processes)
    images, labels, failures = None, [], []
    # Created together, as the masks below: made between two JPEG decodes, which
    # evict the CPU caches, each takes three times as long.
    rngs = [self._rng(i * self.rows + r) for r in range(self.rows)]
    for r, index in enumerate(indices):
      # The last image fills up the last batch of a single pass.
      index = min(index, len(self.source) - 1)
      g = i * self.rows + r
      pixels, label, failed = self._read(index, g, rngs[r])
      if images is None:
        images = np.empty((self.rows, *pixels.shape), np.uint8)
      images[r] = pixels
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
    """The generator of the crop of global image g."""
    return np.random.default_rng((self.seed, SEED_STREAM_CROP, g))

  def _read(self, index, g, rng):
    """Reads the image at `index`, or the next one that can be read.

    Returns:
      Its pixels, as transformed for global image g; its label; and
      (key, reason) of each image before it that could not be read.
    """
    n, failures = len(self.source), []
    for i in range(min(n, 1 + MAX_REPLACEMENTS)):
      candidate = (index + i) % n
      try:
        element = self.source[candidate]
      except OSError as error:
        name = str(error.filename or f'image {candidate}')
        failures.append((name, str(error)))
        continue
      image, channels = element['image'], self.reading.channels
      check_channels(element, channels)
      try:
        if not isinstance(image, np.ndarray):
          image = decode.Encoded(image, channels, self.reading.fast)
        return self.reading.transform(image, rng), element['label'], failures
      except decode.BadImage as error:
        failures.append((element['key'], str(error)))
        rng = self._rng(g)  # as if nothing had been drawn
    raise UserError(
      f'{len(failures)} images in a row cannot be read, the first of them '
      f'{failures[0][0]} ({failures[0][1]}): repair or remove them.'
    )


def check_channels(element: dict, channels: int) -> None:
  """Raises UserError for an array of another number of channels."""
  image = element['image']
  if isinstance(image, np.ndarray) and image.shape[-1] != channels:
    raise UserError(
      f'{element["key"]} has {image.shape[-1]} channels, and {channels} are '
      'wanted: set data.channels, or take an encoder of as many.'
    )
