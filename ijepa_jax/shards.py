"""The shards of a packed data set: written, told of, and read back."""

import dataclasses
import hashlib
import io
import os
from collections.abc import Callable

import numpy as np
from absl import logging
from PIL import Image

from ijepa_jax import augment, cache, decode
from ijepa_jax.errors import UserError
from ijepa_jax.sources import arrayrecord

# A record is a group of its own, else every image read at random would read its
# neighbours too; JPEG and PNG files hardly shrink, and unpacking takes time.
_OPTIONS = 'group_size:1,uncompressed'
_LOSSY = 'JPEG', 'MPO', 'WEBP'
_QUALITY = 95  # of what has to be encoded again, and was lossy before
_POWERS = np.stack([np.arange(256), np.arange(256) ** 2], 1)


@dataclasses.dataclass(frozen=True)
class Encoding:
  """How images are stored: their bytes as they are, unless asked otherwise.

  Attributes:
    resize: the shorter side in pixels of images that are larger; 0: their own.
      Bicubic with antialiasing.
    quality: of JPEG, 1 to 100: every image becomes one. 0: only what is resized
      is encoded again, JPEG and WebP as JPEG of quality 95 and everything else
      without loss, as PNG. Arrays of 1 or 3 channels become PNG, and of any
      other number .npy files.
    alpha: transparency is kept, as a fourth channel of every image; what is
      encoded again becomes PNG.
    max_pixels: images of more are no good; 0: no limit.
  """

  resize: int = 0
  quality: int = 0
  alpha: bool = False
  max_pixels: int = decode.most_pixels()

  def __post_init__(self):
    if self.resize < 0:
      raise UserError(f'resize is {self.resize}: take 1 pixel or more.')
    if not 0 <= self.quality <= 100:
      raise UserError(f'quality is {self.quality}: take 1 to 100.')
    if self.alpha and self.quality:
      raise UserError('JPEG has no alpha: leave quality, or alpha.')

  def __call__(
    self, image: bytes | np.ndarray
  ) -> tuple[bytes, Image.Image | np.ndarray]:
    """-> what is to be stored, and its pixels as RGB, or as the array's.

    Args:
      image: encoded, or uint8 [H, W, C].

    Raises:
      BadImage: see augment.decode.
      UserError: a JPEG is wanted of other than 1 or 3 channels.
    """
    if isinstance(image, np.ndarray):
      if image.shape[-1] not in (1, 3):
        return self._as_array(image)
      pixels = image[..., 0] if image.shape[-1] == 1 else image
      image = _encode(Image.fromarray(pixels), 'PNG')
    pixels = augment.decode(image, 4 if self.alpha else 3)
    size = self._smaller(*pixels.size)
    if self.alpha:
      if not size:
        return image, pixels
      whole = 0, 0, *pixels.size
      array = augment.crop(pixels, whole, size[::-1], 'bicubic')
      pixels = Image.fromarray(array)
      return _encode(pixels, 'PNG'), pixels
    if size:
      pixels = pixels.resize(size, Image.Resampling.BICUBIC)
    elif not self.quality:
      return image, pixels
    lossy = Image.open(io.BytesIO(image)).format in _LOSSY
    kind = 'JPEG' if self.quality or lossy else 'PNG'
    r, g, b = (channel.tobytes() for channel in pixels.split())
    grey = r == g == b
    stored = pixels.getchannel(0) if grey else pixels
    return _encode(stored, kind, quality=self.quality or _QUALITY), pixels

  def _as_array(self, pixels):
    height, width, channels = pixels.shape
    if self.quality:
      raise UserError(
        f'An image has {channels} channels and a JPEG 1 or 3: leave quality.'
      )
    if size := self._smaller(width, height):
      whole = 0, 0, width, height
      pixels = augment.crop(pixels, whole, size[::-1], 'bicubic')
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue(), pixels

  def _smaller(self, *size):
    """The width and height that a larger image is to have; None for others."""
    scale = self.resize / min(size)
    if 0 < scale < 1:
      return tuple(max(self.resize, round(side * scale)) for side in size)


def _encode(image, kind, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def moments(pixels: Image.Image | np.ndarray) -> np.ndarray:
  """[channels, 2]: means of the values in [0, 1] and of their squares."""
  if isinstance(pixels, np.ndarray):
    planes = pixels.reshape(-1, pixels.shape[-1]).T
    counts = np.stack([np.bincount(plane, minlength=256) for plane in planes])
  else:
    counts = np.array(pixels.histogram()).reshape(-1, 256)
  # Whole numbers up to here: grey images have the same in each channel.
  return counts @ _POWERS / counts[0].sum() / [255, 255**2]


def write(
  source, rows: range, path: str, encoding: Encoding, tick: Callable
) -> dict:
  """Packs these images of a source; the file appears whole or not at all.

  Images that can't be read or decoded are left out and named in the log.

  Args:
    tick: called after each image as tick(1, how many of it were left out);
      what it raises ends it all.

  Returns:
    What is to be known of the shard, for JSON: 'count', 'bytes', 'sha256', and
    of its images 'keys', 'sizes' [H, W], 'moments' (their sum) and 'skipped'
    [key, reason].

  Raises:
    OSError: it can't be written.
    UserError: not all images have as many channels.
  """
  decode.limit_pixels(encoding.max_pixels)  # of this process
  keys, sizes, skipped, sums = [], [], [], []
  with cache.replacing(path) as temporary:
    writer = _Writer(temporary, path)
    for row in rows:
      name = f'image {row}'
      try:
        element = source[row]
        name = element['key']
        image, pixels = encoding(element['image'])
      except (OSError, augment.BadImage) as error:
        name = getattr(error, 'filename', None) or name
        logging.warning('Left out %s: %s.', name, error)
        skipped.append([name, str(error)])
        tick(1, 1)
        continue
      record = arrayrecord.to_record(image, element['label'], name)
      writer.write(record)
      keys.append(name)
      sizes.append(augment.size_of(pixels)[::-1])
      sums = _add(sums, moments(pixels), name)
      tick(1, 0)
    writer.close()
    found = {
      'count': len(keys),
      'bytes': os.path.getsize(temporary),
      'sha256': digest(temporary),
    }
  return found | {
    'keys': keys,
    'sizes': sizes,
    'moments': np.array(sums).tolist(),
    'skipped': skipped,
  }


def _add(sums, more, where):
  """The sum of what `moments` gave; [] is the one of none."""
  if len(sums) and len(more) and len(sums) != len(more):
    raise UserError(
      f'{where} has {len(more)} channels and an image before it {len(sums)}: '
      'pack them apart.'
    )
  return np.add(sums, more) if len(sums) and len(more) else [*sums, *more]


class _Writer:
  """ArrayRecord's own, with its errors as OSError."""

  def __init__(self, temporary, path):
    from array_record.python import array_record_module

    self._path, make = path, array_record_module.ArrayRecordWriter
    self._writer = self._try(make, str(temporary), _OPTIONS)

  def write(self, record):
    self._try(self._writer.write, record)

  def close(self):
    self._try(self._writer.close)

  def _try(self, function, *args):
    try:
      return function(*args)
    except RuntimeError as error:
      reason = str(error).split(';')[0]
      raise UserError(f'{self._path} can not be written: {reason}.') from error


def manifest(source, plan: dict, parts: list[dict]) -> dict:
  """What manifest.json says of a data set.

  Args:
    plan: how it was packed.
    parts: what `write` returned for each shard.
  """
  count = sum(part['count'] for part in parts)
  sizes = np.array([size for part in parts for size in part['sizes']])
  # Of images that all weigh the same, as they do in training.
  sums = []
  for part in parts:
    sums = _add(sums, part['moments'], 'A later shard')
  mean, square = np.reshape(sums, (-1, 2)).T / max(count, 1)
  std = np.sqrt(np.maximum(square - mean**2, 0))
  # Grey images were looked at as RGB.
  grey = len(mean) == 3 and len({*mean}) == len({*std}) == 1
  channels = 1 if grey else len(mean)
  sides = {}
  if count:
    for name, side in zip(('height', 'width'), sizes.T, strict=True):
      middle = float(np.median(side))
      sides[name] = {
        'min': int(side.min()),
        'median': middle,
        'max': int(side.max()),
      }
  return {
    'format': arrayrecord.FORMAT,
    'version': arrayrecord.VERSION,
    'plan': plan,
    'count': count,
    'labels': source.labels,
    'class_names': list(getattr(source, 'class_names', ())),
    **sides,
    'channels': channels,
    'mean': mean.tolist()[:channels],
    'std': std.tolist()[:channels],
    'bytes': sum(part['bytes'] for part in parts),
    'skipped': [pair for part in parts for pair in part['skipped']],
    'shards': [
      {'name': name, **{k: part[k] for k in ('count', 'bytes', 'sha256')}}
      for name, part in zip(names(len(parts)), parts, strict=True)
    ],
  }


def names(count: int) -> list[str]:
  """Of the files of so many shards."""
  ending = f'-of-{count:05}{arrayrecord.ENDING}'
  return [f'images-{i:05}{ending}' for i in range(count)]


def digest(path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def check(
  path: str, shard: dict, keys: list[str], labels: dict, tick: Callable
) -> list[tuple[str, str]]:
  """Reads a shard back -> its faults: what kind, and where.

  Args:
    path: of the file.
    shard: its 'count' and 'sha256'.
    keys: its images should have.
    labels: name -> number of values.
    tick: as above.
  """
  name = os.path.basename(path)
  if not os.path.exists(path):
    return [('missing', name)]
  faults = []
  if digest(path) != shard['sha256']:
    faults.append(('not of the SHA-256 in the manifest', name))
  records = arrayrecord.open_shards([path], [shard['count']])
  for row, key in enumerate(keys):
    where = f'{key} in {name}'
    try:
      element = arrayrecord.from_record(records[row])
      if isinstance(element['image'], bytes):
        augment.decode(element['image'], 3)
    except (RuntimeError, ValueError, OSError, augment.BadImage) as error:
      faults.append(('no longer readable', f'{where} ({error})'))
    else:
      if element['key'] != key:
        faults.append(('under another key', f'{element["key"]}, not {where}'))
      sizes = zip(element['label'], labels.values(), strict=True)
      if any(not -1 <= label < size for label, size in sizes):
        faults.append(('of a label out of range', where))
    tick(1, 0)
  return faults
