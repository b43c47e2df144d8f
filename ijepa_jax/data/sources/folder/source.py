"""A tree of image files as a source."""

import concurrent.futures
import functools
import hashlib
import itertools
import os
import re

import numpy as np
from absl import logging

from ijepa_jax.data.sources.base import (
  NO_LABEL,
  decode_if_npy,
  split_folder,
  stamp,
)
from ijepa_jax.data.sources.folder.listing import (
  NUM_THREADS,
  first_names,
  is_image,
  list_tree,
  unpack_names,
)
from ijepa_jax.errors import UserError

# Names of folders that can only be splits, beside one that may be a class.
_SPLITS = re.compile(
  r'(train|test|val|dev|eval)(ing|id|idation|uation)?[-_]?\d*'
)
_STAMPED_AT_A_TIME = 1000  # files, by one thread


class Folder:
  """A tree of image files, in the order of their paths.

  `path`/`split` is read if it exists, and `path` itself if not or if the split
  is ''. If every image lies below a first-level folder, these folders are the
  classes, numbered in order of `class_names`. Hidden files and those that are
  no images are skipped and counted in the log. Arrays of uint8 [H, W, C] in
  .npy files are read if there are no other images: beside images they are masks
  or features.
  """

  def __init__(self, path: str, split: str = 'train'):
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(path):
      raise UserError(f'There is no folder {path}: check data.path.')
    root = split_folder(path, split, os.path.isdir, 'folder')
    if root != path:
      _check_is_no_class(path, split)
    elif split:
      _check_has_no_splits(path)
    self._root = root
    self._shown = os.path.relpath(root, os.path.dirname(root))
    self._tree = tree = list_tree(root)
    self.class_names = tuple(unpack_names(tree.classes))
    self.labels = {'label': len(self.class_names)} if self.class_names else {}
    self.unlabelled, *notes = unpack_names(tree.notes)
    for note in notes:
      logging.warning('%s: %s.', root, note)
    parts = tree.ends, tree.names, tree.labels, tree.classes
    digest = hashlib.sha256(b''.join(part.tobytes() for part in parts))
    self.listing = digest.hexdigest()

  @functools.cached_property
  def identity(self) -> str:
    # Of every file: an exchange of two may be the only change.
    starts = range(0, len(self), _STAMPED_AT_A_TIME)
    digest = hashlib.sha256(self.listing.encode() + self._tree.links.tobytes())
    with concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as pool:
      for stamps in pool.map(self._stamps, starts):
        digest.update(stamps)
    return f'folder {self._root} {digest.hexdigest()}'

  def _stamps(self, start) -> bytes:
    stop = start + _STAMPED_AT_A_TIME
    ends = self._tree.ends[start : stop + 1].tolist()
    names = self._tree.names[ends[0] : ends[-1]].tobytes()
    root = os.fsencode(os.path.join(self._root, ''))
    return repr(
      [
        stamp(root + names[begin - ends[0] : end - ends[0]])
        for begin, end in itertools.pairwise(ends)
      ]
    ).encode()

  def __len__(self):
    return len(self._tree.labels)

  def _name(self, index):
    start, stop = self._tree.ends[index : index + 2]
    return os.fsdecode(self._tree.names[start:stop].tobytes())

  def keys(self) -> list[str]:
    """Returns the keys of all images, without reading one."""
    return [os.path.join(self._shown, self._name(i)) for i in range(len(self))]

  def every_label(self) -> np.ndarray:
    """Returns int32 [N, L] of all images, without reading one."""
    return self._tree.labels[:, None][:, : len(self.labels)]

  def __getitem__(self, index):
    index = range(len(self))[index]
    name = self._name(index)
    with open(os.path.join(self._root, name), 'rb') as file:
      data = file.read()
    key = os.path.join(self._shown, name)
    labels = self._tree.labels
    return {
      'image': decode_if_npy(data, key),
      'label': labels[index : index + 1] if self.labels else NO_LABEL,
      'key': key,
    }


def _check_is_no_class(path, split) -> None:
  """Refuses a split that may be a class: one beside other folders of images.

  Raises:
    UserError: there are such, and none has the name of a split.
  """
  folders, files = _first_level(path)
  folders = [name for name in folders if name != split]
  if any(_SPLITS.fullmatch(name.lower()) for name in folders):
    return
  siblings = [n for n in folders if _has_image(os.path.join(path, n))]
  siblings += filter(is_image, files)
  if siblings:
    examples = ', '.join(siblings[:3]) + (', ...' if siblings[3:] else '')
    raise UserError(
      f'{path} holds a folder {split!r}, and images beside it in {examples}: '
      f'for all of them, as classes, set data.split to the empty text; for '
      f'{split!r} alone, data.path to {os.path.join(path, split)} too.'
    )


def _check_has_no_splits(path) -> None:
  """Refuses to take splits for classes: one would train on the test images.

  Raises:
    UserError: all folders have names of splits.
  """
  folders, _ = _first_level(path)
  if folders and all(_SPLITS.fullmatch(name.lower()) for name in folders):
    raise UserError(
      f'There is no folder train in {path}, and there are '
      f'{first_names(folders)}: set data.split to one of them, or to the empty '
      'text for all.'
    )


def _first_level(path) -> tuple[list[str], list[str]]:
  """Returns the names of the folders and of all else in a folder, sorted."""
  folders, files = [], []
  try:
    with os.scandir(path) as entries:
      for entry in entries:
        if not entry.name.startswith('.'):
          (folders if entry.is_dir() else files).append(entry.name)
  except OSError:  # the listing says what is wrong
    pass
  return sorted(folders), sorted(files)


def _has_image(folder) -> bool:
  """Whether an image is among the first 10,000 files below a folder."""
  files = (name for _, _, names in os.walk(folder) for name in names)
  return any(map(is_image, itertools.islice(files, 10_000)))
