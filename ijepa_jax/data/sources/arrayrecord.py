"""The source of packed images: ArrayRecord shards, on a disk or in a bucket.

pack/pack.py makes them. A packed data set is a folder of

  manifest.json        {"format": "ijepa_jax", "version": 1, counts, sizes, ...}
  keys.json.gz         the keys of all images in their order: a list of strings
  images-00000-of-00042.array_record, ...

and a record is a MessagePack map of three entries

  "image"  bin             an encoded image: JPEG, PNG, ...; or a .npy file of
                           uint8 [H, W, C]
  "label"  array of int    one for each of the manifest's "labels"; -1: unknown
  "key"    str             names the image for a person; where a file's name is
                           not UTF-8, its bytes as they are

It is MessagePack since every language reads it, it needs no schema and no
generated code, keeps bytes as they are, and comes with Flax.

A bucket's shards are copied to the cache folder (see runtime/files.py) when
the source is opened, under the name of their checksum: random access would wait
for a request for every image. A bucket that is mounted is read in place.
"""

import functools
import gzip
import hashlib
import json
import os
import zlib

import msgpack
import numpy as np

from ijepa_jax.data.sources.base import (
  ReopenedAfterPickling,
  decode_if_npy,
  read_record,
  split_folder,
  stamp,
)
from ijepa_jax.data.sources.remote import download_shards, exists, read
from ijepa_jax.errors import UserError
from ijepa_jax.runtime.files import is_url

FORMAT, VERSION = 'ijepa_jax', 1
MANIFEST, KEYS, ENDING = 'manifest.json', 'keys.json.gz', '.array_record'
UNFINISHED = 'unfinished'  # folder that pack/pack.py removes when it is done


def to_record(encoded: bytes, label, key: str) -> bytes:
  """Returns the record of an image."""
  record = {'image': encoded, 'label': [int(i) for i in label], 'key': key}
  return msgpack.packb(record, unicode_errors='surrogateescape')


def from_record(record: bytes) -> dict:
  """Returns the element of a source that a record holds.

  Raises:
    OSError: see `base.decode_if_npy`.
  """
  element = msgpack.unpackb(record, unicode_errors='surrogateescape')
  return element | {
    'image': decode_if_npy(element['image'], element['key']),
    'label': np.array(element['label'], np.int32),
  }


def open_shards(paths: list[str], counts: list[int]):
  """Returns all records of these files, for random access, as bytes.

  Args:
    counts: numbers of records of the files.
  """
  # Imported here since the sources of most runs don't need it.
  from array_record.python import array_record_data_source

  # With the counts it need not open every shard at once.
  parts = [f'{p}[0:{n}]' for p, n in zip(paths, counts, strict=True)]
  return array_record_data_source.ArrayRecordDataSource(parts)


def read_manifest(folder: str) -> dict:
  """Returns the content of a packed data set's manifest.json.

  Raises:
    UserError: there is none, or it is of another version.
  """
  path = f'{folder}/{MANIFEST}'
  if not exists(path):
    if os.path.isdir(os.path.join(folder, UNFINISHED)):
      raise UserError(
        f'{folder} is packed in part only: run the same pack command again.'
      )
    raise UserError(
      f'There is no packed data set in {folder}: it would hold {MANIFEST}, see '
      'python -m ijepa_jax.data.pack --help.'
    )
  try:
    manifest = json.loads(read(path))
    kind = manifest['format'], manifest['version']
    if kind == (FORMAT, VERSION):
      _ = [manifest[name] for name in ('shards', 'labels', 'count', 'plan')]
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f'{path} is damaged ({error}): pack again.') from error
  if kind != (FORMAT, VERSION):
    raise UserError(
      f'{path} is of format {kind[0]!r}, version {kind[1]}: this code reads '
      f'{FORMAT!r}, version {VERSION}.'
    )
  return manifest


def read_keys(folder: str) -> list[str]:
  """Returns the keys of all images of a packed data set.

  Raises:
    UserError: they can't be read.
  """
  path = f'{folder}/{KEYS}'
  try:
    return json.loads(gzip.decompress(read(path)))
  except (OSError, EOFError, ValueError, zlib.error) as error:
    raise UserError(f'{path} cannot be read ({error}): copy it again.') from (
      error
    )


def check_sizes(folder: str, shards: list[dict]) -> list[str]:
  """Returns the paths of shards on this machine, after checking their sizes.

  Raises:
    UserError: one is missing or of another size.
  """
  paths = [os.path.join(folder, shard['name']) for shard in shards]
  for path, shard in zip(paths, shards, strict=True):
    size = os.path.getsize(path) if os.path.exists(path) else None
    if size != shard['bytes']:
      fault = 'is missing' if size is None else f'has {size} bytes'
      raise UserError(
        f'{path} {fault}, and {shard["bytes"]} bytes were packed: copy it '
        'again.'
      )
  return paths


class ArrayRecord(ReopenedAfterPickling):
  """A packed data set: `path`/`split` if there is one, else `path` itself.

  `manifest` has the content of manifest.json: counts, sizes, mean, std, ...
  """

  def __init__(self, path: str, split: str = 'train'):
    remote = is_url(path)
    if not remote:
      path = os.path.abspath(os.path.expanduser(path))
    root = path.rstrip('/')
    path = split_folder(root, split, _is_packed, 'packed data set')
    if path != root and exists(f'{root}/{MANIFEST}'):
      raise UserError(
        f'{root} is a packed data set and holds another one, {split!r}: for '
        'the outer one set data.split to the empty text; for the inner one '
        f'data.path to {path} too.'
      )
    self.manifest = read_manifest(path)
    shards = self.manifest['shards']
    self._path = path
    self._paths = (
      download_shards(path, shards, ENDING)
      if remote
      else check_sizes(path, shards)
    )
    self._counts = [shard['count'] for shard in shards]
    self.labels = dict(self.manifest['labels'])
    self.class_names = tuple(self.manifest['class_names'])
    content = json.dumps(
      [self.labels, self.class_names, [s['sha256'] for s in shards]]
    )
    self.listing = hashlib.sha256(content.encode()).hexdigest()
    # Copies of a bucket's shards were checked when they were made.
    stamps = [] if remote else [stamp(p) for p in self._paths]
    digest = hashlib.sha256(f'{content} {stamps}'.encode()).hexdigest()
    self.identity = f'arrayrecord {digest}'

  @functools.cached_property
  def _data(self):
    return open_shards(self._paths, self._counts)

  def __len__(self):
    return self.manifest['count']

  def keys(self) -> list[str]:
    """Returns the keys of all images, without reading one."""
    return read_keys(self._path)

  def __getitem__(self, index):
    index = range(len(self))[index]
    name = f'record {index} of {self._path}'
    return from_record(read_record(self._data, index, name))


def _is_packed(path: str) -> bool:
  return any(exists(f'{path}/{name}') for name in (MANIFEST, UNFINISHED))
