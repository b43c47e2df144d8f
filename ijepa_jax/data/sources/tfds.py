"""Data sets prepared by TensorFlow Datasets, read without TensorFlow."""

import difflib
import functools
import hashlib
import json
import os
import re

import numpy as np
import tqdm
from absl import logging

from ijepa_jax.data.sources.base import (
  ReopenedAfterPickling,
  read_record,
  stamps,
)
from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files

# Features that name an image, as some data sets have.
_NAMES = 'file_name', 'filename'


class TFDS(ReopenedAfterPickling):
  """A data set prepared by TensorFlow Datasets as ArrayRecord.

  Read without TensorFlow, and the images still encoded. Every ClassLabel is a
  label; `TFDS_DATA_DIR` says where data sets lie.

  Args:
    rules: name -> rule of a label that no feature is, with its number of
      `classes` and a `function` of the record (evals/tasks.py has Clevr's); to
      be pickled. A rule that changes needs another name: features are kept by
      it.
  """

  def __init__(self, path: str, split: str = 'train', rules=None):
    self._key = os.path.expanduser(path), split
    self._rules = dict(rules or {})
    data, info, _ = self._data
    import tensorflow_datasets as tfds

    self._length = len(data)
    self._folder = os.fspath(info.data_dir)
    self._name = next((n for n in _NAMES if n in info.features), None)
    self._shown = f'{info.full_name}/{split}'
    # Prepared anew it has the same name.
    sizes = [(n, s.num_bytes, s.shard_lengths) for n, s in info.splits.items()]
    content = self._shown, self._length, sorted(sizes), *self._rules
    self.listing = hashlib.sha256(repr(content).encode()).hexdigest()
    digest = hashlib.sha256(stamps(self._folder).encode()).hexdigest()
    self.identity = f'tfds {self._shown} {self.listing} {digest}'
    classes = {
      name: feature
      for name, feature in info.features.items()
      if isinstance(feature, tfds.features.ClassLabel)
    }
    self.labels = {name: f.num_classes for name, f in classes.items()}
    self.labels |= {name: rule.classes for name, rule in self._rules.items()}
    self.class_names = ()
    if len(self.labels) == len(classes) == 1:
      self.class_names = tuple(*(f.names for f in classes.values()))

  @functools.cached_property
  def _data(self):
    return _open_tfds(*self._key)

  def __len__(self):
    return self._length

  def keys(self) -> list[str]:
    """The keys of all images.

    Where the data set names its images these names stand in the records: all
    are read once, and the names kept in the cache folder.
    """
    if not self._name:
      return [f'{self._shown}/{index}' for index in range(len(self))]
    about = f'{self._folder} {self.identity}'
    digest = hashlib.sha256(os.fsencode(about)).hexdigest()[:24]
    path = files.cache_dir() / f'names-{digest}.json'
    try:
      return json.loads(path.read_text())
    except (OSError, ValueError):
      pass  # it is not there, or damaged
    indices = range(len(self))
    logging.info('Reading the names of all images, once, to %s.', path)
    names = [
      self._key_of(index, self._record(index))
      for index in tqdm.tqdm(indices, 'names', unit='img', disable=None)
    ]
    try:
      with files.atomic_write(path) as temporary:
        temporary.write_text(json.dumps(names))
    except OSError as error:
      logging.warning('%s can not be written: %s.', path, error.strerror)
    return names

  def _record(self, index):
    return read_record(self._data[0], index, f'{self._shown}/{index}')

  def _key_of(self, index, record):
    name = record[self._name] if self._name else index
    if isinstance(name, bytes):
      name = os.fsdecode(name)
    return f'{self._shown}/{name}'

  def __getitem__(self, index):
    example, image = self._record(index), self._data[2]
    labels = [
      self._rules[name].function(example)
      if name in self._rules
      else example[name]
      for name in self.labels
    ]
    return {
      'image': example[image],
      'label': np.array(labels, np.int32),
      'key': self._key_of(index, example),
    }


def _open_tfds(path, split):
  """-> the data source, its info and the name of its image."""
  # Here since it takes half a second, and most runs don't need it.
  import tensorflow_datasets as tfds

  if os.path.exists(os.path.join(path, 'dataset_info.json')):
    builder = tfds.builder_from_directory(path)
  else:
    try:
      builder = tfds.builder(path)
    except (ValueError, AssertionError) as error:
      known = tfds.list_builders(with_community_datasets=False)
      near = difflib.get_close_matches(path, known, 1)
      hint = f'Did you mean {near[0]!r}?' if near else ''
      if re.split('[/:]', path)[0] in known:  # but no such config or version
        hint = str(error).splitlines()[0]
      raise UserError(
        f'{path!r} is neither a TFDS data set nor the directory of a prepared '
        f'one, which holds dataset_info.json. {hint}'.rstrip()
      ) from None
  info = builder.info
  how = (
    f'on a machine with TensorFlow: `tfds build {info.name} '
    '--file_format=array_record`, and bring its directory here.'
  )
  if not info.splits:
    raise UserError(
      f'{info.full_name} is not prepared in {builder.data_path}: prepare it, '
      f'once, {how}'
    )
  formats = {f.value for f in info.available_file_formats()}
  if 'array_record' not in formats:
    raise UserError(
      f'{info.full_name} in {builder.data_path} is stored as '
      f'{", ".join(sorted(formats))}, and only array_record can be read at '
      f'random: prepare it again {how}'
    )
  images = [
    name
    for name, feature in info.features.items()
    if isinstance(feature, tfds.features.Image)
  ]
  if 'image' not in images and len(images) != 1:
    raise UserError(
      f'{info.full_name} has no one image feature: it has '
      f'{", ".join(info.features)}.'
    )
  try:
    data = builder.as_data_source(
      split,
      decoders={name: tfds.decode.SkipDecoding() for name in images},
      file_format='array_record',
    )
  except ValueError as error:
    raise UserError(
      f'{info.full_name} has no split {split!r}: take one of '
      f'{", ".join(info.splits)}, or a slice of one.'
    ) from error
  return data, info, 'image' if 'image' in images else images[0]
