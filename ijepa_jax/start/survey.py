"""What a folder of images holds, for who has never looked at all of it."""

import collections
import dataclasses
import io
import os
import statistics
import time

import numpy as np
from PIL import Image

from ijepa_jax.data import decode, sources
from ijepa_jax.data.transforms import crop
from ijepa_jax.errors import UserError

HELD_OUT = 'val', 'valid', 'validation', 'test', 'testing'
_SECONDS = 5.0  # for the images of a folder that are opened
_FEWEST = 16  # that are opened, however long it takes
_GREY = '1', 'L', 'LA', 'I;16', 'I'
_TRANSPARENT = 'LA', 'La', 'PA', 'RGBA', 'RGBa'
_SHOWN = 3  # names in a sentence


@dataclasses.dataclass(frozen=True)
class Survey:
  """What is known of the images of one split.

  Attributes:
    path, split: of the folder; split '': the images lie in the path itself.
    held_out: another split, which is not trained on; '': there is none.
    source: sources.Folder of the split.
    opened: images that were opened: all, or as many as there was time for.
    unreadable: name of each that can't be read -> the reason.
    sides: int [n, 2], width and height of the others.
    modes: Pillow's mode, or 'array of 13', -> how many.
    channels: of the arrays; 0: they are encoded images.
    seconds: that one image takes to read, to decode and to resize, by one core.
  """

  path: str
  split: str
  held_out: str
  source: object
  opened: int
  unreadable: dict[str, str]
  sides: np.ndarray
  modes: collections.Counter
  channels: int
  seconds: float

  def __len__(self) -> int:
    return len(self.source)

  @property
  def root(self) -> str:
    """The folder in which the images and their classes lie."""
    return os.path.join(self.path, self.split) if self.split else self.path

  @property
  def classes(self) -> tuple[str, ...]:
    return self.source.class_names

  @property
  def side(self) -> float:
    """The shorter side of the image in the middle, in pixels."""
    return float(np.median(self.sides.min(1)))

  @property
  def grey(self) -> bool:
    """Whether no image that was opened has a color."""
    return not self.channels and all(mode in _GREY for mode in self.modes)

  @property
  def bad_share(self) -> float:
    return len(self.unreadable) / self.opened

  def files(self) -> list[str]:
    """Paths of all images below `root`."""
    keys, parent = self.source.keys(), os.path.dirname(self.root)
    return [os.path.relpath(os.path.join(parent, k), self.root) for k in keys]

  def sentences(self) -> list[str]:
    """What a person wants to know of it."""
    return [
      f'{self.root}: {len(self):,} images, {self._class_words()}.',
      f'{self._opened_words()}: {self._side_words()}; {self._mode_words()}.',
      *self._unreadable_words(),
    ]

  def _class_words(self) -> str:
    if not self.classes:
      reason = self.source.unlabelled
      return f'without classes{f" ({reason})" if reason else ""}'
    labels = self.source.every_label()[:, 0]
    counts = np.bincount(labels, minlength=len(self.classes))
    few, many = counts.min(), counts.max()
    each = f'{few:,}' if few == many else f'{few:,} to {many:,}'
    names = ', '.join(self.classes[:_SHOWN])
    more = ', ...' if self.classes[_SHOWN:] else ''
    plural = 'es' if len(self.classes) > 1 else ''
    return f'{len(self.classes):,} class{plural} ({names}{more}) of {each} each'

  def _opened_words(self) -> str:
    if self.opened == len(self):
      return 'All were opened'
    return f'{self.opened:,} of them were opened'

  def _side_words(self) -> str:
    shorter = self.sides.min(1)
    if shorter.min() == shorter.max():
      return f'the shorter side has {shorter[0]:,} pixels'
    return (
      f'the shorter side has {shorter.min():,} to {shorter.max():,} pixels, '
      f'half of them above {self.side:,.0f}'
    )

  def _mode_words(self) -> str:
    words = [f'{n:,} {mode}' for mode, n in self.modes.most_common(_SHOWN)]
    if len(self.modes) == 1:
      words = [f'all {next(iter(self.modes))}']
    transparent = any(mode in _TRANSPARENT for mode in self.modes)
    note = ' (transparency is dropped)' if transparent else ''
    return ', '.join(words) + note

  def _unreadable_words(self) -> list[str]:
    if not self.unreadable:
      return []
    names = [f'{k} ({v})' for k, v in list(self.unreadable.items())[:_SHOWN]]
    more = ', ...' if len(self.unreadable) > _SHOWN else ''
    return [
      f'{len(self.unreadable):,} unreadable, left out: '
      f'{", ".join(names)}{more}.'
    ]


def survey_folder(path: str, seconds: float = _SECONDS) -> Survey:
  """Lists a folder and opens some of its images, in a random order.

  Args:
    path: of the folder; `train` in it is taken where it is there.
    seconds: after which no more are opened.

  Raises:
    UserError: there is no such folder or no image in it, or none of those that
      were opened can be read.
  """
  if '://' in path:
    raise UserError(
      f'{path} is a bucket, and a folder of this machine is wanted: mount it, '
      'or copy some of the images here.'
    )
  path = os.path.abspath(os.path.expanduser(path))
  if not os.path.isdir(path):
    raise UserError(f'There is no folder {path}: name one that holds images.')
  split = 'train' if os.path.isdir(os.path.join(path, 'train')) else ''
  others = (s for s in HELD_OUT if os.path.isdir(os.path.join(path, s)))
  return survey_split(path, split, next(others, '') if split else '', seconds)


def survey_split(
  path: str, split: str, held_out: str = '', seconds: float = _SECONDS
) -> Survey:
  """As `survey_folder`, of a split that is known."""
  source = sources.make_source('folder', path=path, split=split or 'train')
  sides, modes, bad, times = [], collections.Counter(), {}, []
  channels, end = 0, time.monotonic() + seconds
  order = np.random.default_rng(0).permutation(len(source)).tolist()
  for opened, index in enumerate(order):
    if opened >= _FEWEST and time.monotonic() > end:
      order = order[:opened]
      break
    began = time.perf_counter()
    try:
      size, mode, channels = _open(source, index)
    except (OSError, decode.BadImage) as error:
      bad[index] = getattr(error, 'strerror', '') or str(error)
      continue
    times.append(time.perf_counter() - began)
    sides.append(size)
    modes[mode] += 1
  keys = source.keys() if bad else []
  unreadable = {keys[index]: reason for index, reason in bad.items()}
  if not sides:
    name, reason = next(iter(unreadable.items()))
    raise UserError(
      f'None of the {len(order)} images that were opened in {path} can be '
      f'read; the first is {name} ({reason}): repair them.'
    )
  return Survey(
    *(path, split, held_out, source, len(order), unreadable),
    *(np.array(sides), modes, channels, statistics.median(times)),
  )


def _open(source, index: int):
  """Reads an image as a training does: (width, height), mode and channels."""
  image = source[index]['image']
  if isinstance(image, np.ndarray):
    height, width, channels = image.shape
    return (width, height), f'arrays of {channels} channels', channels
  encoded = decode.Encoded(image, 3)
  width, height = encoded.size
  with Image.open(io.BytesIO(image), formats=decode.FORMATS) as header:
    mode = header.mode
  crop.crop(encoded, (0, 0, width, height), (64, 64))
  return (width, height), mode, 0
