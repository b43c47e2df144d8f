"""Writes the shards of a packed data set, their manifest, and verifies them."""

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

# A record is a group of its own: otherwise every image that is read at random
# would read its neighbors too. Compressing JPEG and PNG files again would save
# next to nothing and take time.
_OPTIONS = 'group_size:1,uncompressed'


def write(
  source, rows: range, path: str, encoding: Encoding, report: Callable
) -> dict:
  """Packs images of a source into one file, which appears whole or not at all.

  Images that can't be read or decoded are left out and named in the log.

  Args:
    rows: indices of the images.
    report: is called after each image as report(1, 1 if it was left out); an
      exception from it ends the packing.

  Returns:
    A description of the shard, for JSON: 'count', 'bytes', 'sha256', and of its
    images 'keys', 'sizes' [H, W], 'moments' (their sum) and 'skipped'
    [key, reason].

  Raises:
    UserError: it can't be written, or the images differ in their number of
      channels.
  """
  decode.limit_pixels(encoding.max_pixels)  # of this process
  keys, sizes, skipped, moments = [], [], [], []
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
        report(1, 1)
        continue
      writer.write(arrayrecord.to_record(image, element['label'], name))
      keys.append(name)
      sizes.append(crop.image_size(pixels)[::-1])
      moments = add_moments(moments, channel_moments(pixels), name)
      report(1, 0)
    writer.close()
    size, digest = os.path.getsize(temporary), sha256_of_file(temporary)
  return {
    'count': len(keys),
    'bytes': size,
    'sha256': digest,
    'keys': keys,
    'sizes': sizes,
    'moments': np.array(moments).tolist(),
    'skipped': skipped,
  }


class _Writer:
  """ArrayRecord's writer, with its errors as UserError about `path`."""

  def __init__(self, temporary, path):
    from array_record.python.array_record_module import ArrayRecordWriter

    self._path = path
    self._writer = self._try(ArrayRecordWriter, str(temporary), _OPTIONS)

  def write(self, record):
    self._try(self._writer.write, record)

  def close(self):
    self._try(self._writer.close)

  def _try(self, function, *args):
    try:
      return function(*args)
    except RuntimeError as error:
      reason = str(error).split(';')[0]
      raise UserError(f'{self._path} cannot be written: {reason}.') from error


def manifest(source, plan: dict, parts: list[dict]) -> dict:
  """Returns the content of manifest.json, which describes the data set.

  Args:
    plan: how it was packed.
    parts: what `write` returned for each shard.
  """
  count = sum(part['count'] for part in parts)
  sizes = np.array([size for part in parts for size in part['sizes']])
  # Every image has the same weight, whatever its size, as it has in training.
  total = []
  for part in parts:
    total = add_moments(total, part['moments'], 'A later shard')
  mean, square = np.reshape(total, (-1, 2)).T / max(count, 1)
  std = np.sqrt(np.maximum(square - mean**2, 0))
  # The moments of grey images are those of RGB.
  gray = len(mean) == 3 and len({*mean}) == len({*std}) == 1
  channels = 1 if gray else len(mean)
  sides = zip(('height', 'width'), sizes.T, strict=True) if count else ()
  return {
    'format': arrayrecord.FORMAT,
    'version': arrayrecord.VERSION,
    'plan': plan,
    'count': count,
    'labels': source.labels,
    'class_names': list(getattr(source, 'class_names', ())),
    **{
      name: {
        'min': int(side.min()),
        'median': float(np.median(side)),
        'max': int(side.max()),
      }
      for name, side in sides
    },
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
  """Returns the names of the files of so many shards."""
  ending = f'-of-{count:05}{arrayrecord.ENDING}'
  return [f'images-{i:05}{ending}' for i in range(count)]


def sha256_of_file(path) -> str:
  """Returns the SHA-256 of a file in hex digits."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def verify_shard(
  path: str, shard: dict, keys: list[str], labels: dict, report: Callable
) -> list[tuple[str, str]]:
  """Reads a shard back and returns its faults: (kind of fault, place).

  Args:
    path: of the file.
    shard: its 'count' and 'sha256' in the manifest.
    keys: the keys that its images should have.
    labels: name -> number of values.
    report: as for `write`.
  """
  name = os.path.basename(path)
  if not os.path.exists(path):
    return [('missing', name)]
  faults = []
  if sha256_of_file(path) != shard['sha256']:
    faults.append(('not of the SHA-256 in the manifest', name))
  records = arrayrecord.open_shards([path], [shard['count']])
  for row, key in enumerate(keys):
    place = f'{key} in {name}'
    try:
      element = arrayrecord.from_record(records[row])
      if isinstance(element['image'], bytes):
        decode.decode(element['image'], 3)
    except (RuntimeError, ValueError, OSError, decode.BadImage) as error:
      faults.append(('no longer readable', f'{place} ({error})'))
    else:
      if element['key'] != key:
        faults.append(('under another key', f'{element["key"]}, not {place}'))
      sizes = zip(element['label'], labels.values(), strict=True)
      if any(not -1 <= label < size for label, size in sizes):
        faults.append(('of a label out of range', place))
    report(1, 0)
  return faults
