"""The shards of a packed data set: written, told of, and read back."""

import hashlib
import os
from collections.abc import Callable

import numpy as np
from absl import logging

from ijepa_jax.data import decode
from ijepa_jax.data.pack.encoding import Encoding, add_moments, channel_moments
from ijepa_jax.data.sources import arrayrecord
from ijepa_jax.data.transforms import crop
from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files

# A record is a group of its own, else every image read at random would read its
# neighbours too; JPEG and PNG files hardly shrink, and unpacking takes time.
_OPTIONS = 'group_size:1,uncompressed'


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
  with files.atomic_write(path) as temporary:
    writer = _Writer(temporary, path)
    for row in rows:
      name = f'image {row}'
      try:
        element = source[row]
        name = element['key']
        image, pixels = encoding(element['image'])
      except (OSError, decode.BadImage) as error:
        name = getattr(error, 'filename', None) or name
        logging.warning('Left out %s: %s.', name, error)
        skipped.append([name, str(error)])
        tick(1, 1)
        continue
      record = arrayrecord.to_record(image, element['label'], name)
      writer.write(record)
      keys.append(name)
      sizes.append(crop.image_size(pixels)[::-1])
      sums = add_moments(sums, channel_moments(pixels), name)
      tick(1, 0)
    writer.close()
    found = {
      'count': len(keys),
      'bytes': os.path.getsize(temporary),
      'sha256': sha256_of_file(temporary),
    }
  return found | {
    'keys': keys,
    'sizes': sizes,
    'moments': np.array(sums).tolist(),
    'skipped': skipped,
  }


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
    sums = add_moments(sums, part['moments'], 'A later shard')
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
      for name, part in zip(shard_names(len(parts)), parts, strict=True)
    ],
  }


def shard_names(count: int) -> list[str]:
  """Of the files of so many shards."""
  ending = f'-of-{count:05}{arrayrecord.ENDING}'
  return [f'images-{i:05}{ending}' for i in range(count)]


def sha256_of_file(path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def verify_shard(
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
  if sha256_of_file(path) != shard['sha256']:
    faults.append(('not of the SHA-256 in the manifest', name))
  records = arrayrecord.open_shards([path], [shard['count']])
  for row, key in enumerate(keys):
    where = f'{key} in {name}'
    try:
      element = arrayrecord.from_record(records[row])
      if isinstance(element['image'], bytes):
        decode.decode(element['image'], 3)
    except (RuntimeError, ValueError, OSError, decode.BadImage) as error:
      faults.append(('no longer readable', f'{where} ({error})'))
    else:
      if element['key'] != key:
        faults.append(('under another key', f'{element["key"]}, not {where}'))
      sizes = zip(element['label'], labels.values(), strict=True)
      if any(not -1 <= label < size for label, size in sizes):
        faults.append(('of a label out of range', where))
    tick(1, 0)
  return faults
