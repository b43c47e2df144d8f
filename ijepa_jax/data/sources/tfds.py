"""The source of data sets that TensorFlow Datasets has prepared."""

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
  choose_image,
  features_of_type,
  read_record,
  stamps,
)
from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files

# Features that name an image; some data sets have one.
_NAME_FEATURES = 'file_name', 'filename'


class TFDS(ReopenedAfterPickling):
  """A data set prepared by TensorFlow Datasets as ArrayRecord.

  It is read without TensorFlow, and its images stay encoded. Every ClassLabel
  is a label; `TFDS_DATA_DIR` says where data sets lie.

  Args:
    rules: name -> clevr.Rule of a label that is computed from the record. They
      are pickled. A rule that changes needs another name, since the features
      that evaluations keep are named by it.
  """

  def __init__(self, path: str, split: str = 'train', rules=None):
    self._key = os.path.expanduser(path), split
    self._rules = dict(rules or {})
    data, info, _ = self._data
    import tensorflow_datasets as tfds

    self._length = len(data)
    self._folder = os.fspath(info.data_dir)
    self._name = next((n for n in _NAME_FEATURES if n in info.features), None)
    self._shown = f'{info.full_name}/{split}'
    # A data set that is prepared again has the same name, and other sizes.
    sizes = [(n, s.num_bytes, s.shard_lengths) for n, s in info.splits.items()]
    content = self._shown, self._length, sorted(sizes), *self._rules
    self.listing = hashlib.sha256(repr(content).encode()).hexdigest()
    digest = hashlib.sha256(stamps(self._folder).encode()).hexdigest()
    self.identity = f'tfds {self._shown} {self.listing} {digest}'
    names = features_of_type(info.features, tfds.features.ClassLabel)
    self.labels = {name: info.features[name].num_classes for name in names}
    self.labels |= {name: rule.classes for name, rule in self._rules.items()}
    self.class_names = ()
    if len(self.labels) == len(names) == 1:
      self.class_names = tuple(info.features[names[0]].names)

  @functools.cached_property
  def _data(self):
    return _open_tfds(*self._key)

  def __len__(self):
    return self._length

  def keys(self) -> list[str]:
    """Returns the keys of all images.

    If the data set names its images, these names stand in the records: all are
    read once, and the names are kept in the cache folder.
    """
    if not self._name:
      return [f'{self._shown}/{index}' for index in range(len(self))]
    content = f'{self._folder} {self.identity}'
    digest = hashlib.sha256(os.fsencode(content)).hexdigest()[:24]
    path = files.cache_dir() / f'names-{digest}.json'
    try:
      return json.loads(path.read_text())
    except (OSError, ValueError):
      pass  # there is no such file, or it is damaged
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
      logging.warning('%s cannot be written: %s.', path, error.strerror)
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
  """Returns the data source, its info and the name of its image feature."""
  # Imported here since it takes half a second, and most runs don't need it.
  import tensorflow_datasets as tfds

  builder = _builder(path)
  info = builder.info
  remedy = (
    f'on a machine with TensorFlow: `tfds build {info.name} '
    '--file_format=array_record`, and bring its directory here.'
  )
  if not info.splits:
    raise UserError(
      f'{info.full_name} is not prepared in {builder.data_path}: prepare it, '
      f'once, {remedy}'
    )
  formats = {f.value for f in info.available_file_formats()}
  if 'array_record' not in formats:
    raise UserError(
      f'{info.full_name} in {builder.data_path} is stored as '
      f'{", ".join(sorted(formats))}, and only array_record can be read at '
      f'random: prepare it again {remedy}'
    )
  images = features_of_type(info.features, tfds.features.Image)
  columns = ', '.join(info.features)
  image = choose_image(images, ('image',), info.full_name, columns)
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
  return data, info, image


def _builder(path):
  """Returns the builder of a prepared directory, or of a named data set."""
  import tensorflow_datasets as tfds

  if os.path.exists(os.path.join(path, 'dataset_info.json')):
    return tfds.builder_from_directory(path)
  try:
    return tfds.builder(path)
  except (ValueError, AssertionError) as error:
    names = tfds.list_builders(with_community_datasets=False)
    near = difflib.get_close_matches(path, names, 1)
    hint = f'Did you mean {near[0]!r}?' if near else ''
    if re.split('[/:]', path)[0] in names:  # but no such config or version
      hint = str(error).splitlines()[0]
    raise UserError(
      f'{path!r} is neither a TFDS data set nor the directory of a prepared '
      f'one, which holds dataset_info.json. {hint}'.rstrip()
    ) from None
