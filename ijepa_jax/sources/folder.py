"""A tree of image files.

Listing a million files takes minutes on a network disk, so what was found is
kept in the cache folder (see cache.py), by the path of the tree, and taken from
there as long as no folder of the tree has changed: adding, removing or renaming
a file or a folder changes the time of the folder it is in. What that can't see
is a file overwritten in place, which is read as it is now all the same, and
anything on a disk that keeps no such times. A tree with a folder that changed
less than two seconds before it was listed is listed again the next time: the
folder may have changed once more within the resolution of its time.
"""

import concurrent.futures
import dataclasses
import hashlib
import os
import time

import numpy as np
from absl import logging

from ijepa_jax import cache
from ijepa_jax.sources.opened import NO_LABEL, image

ARRAYS = '.npy'  # images of more than four channels
ENDINGS = (
  *('.bmp', '.gif', '.jpeg', '.jpg', ARRAYS, '.pgm'),
  *('.png', '.ppm', '.tif', '.tiff', '.webp'),
)
_WORTH_KEEPING = 10_000  # files and folders; fewer are listed in no time
_YOUNG = 2_000_000_000  # nanoseconds; times have seconds on some disks
_THREADS = 16  # of those that ask a network disk


class Folder:
  """A tree of image files, in the order of their paths.

  `path`/`split` is read where it exists, and `path` itself otherwise. Where
  every image lies below a first-level folder these are its classes, numbered
  in order of `class_names`. Hidden and other files are passed over. Arrays of
  uint8 [H, W, C] in .npy files are taken where no other image is: beside
  images they are masks or features.
  """

  def __init__(self, path: str, split: str = 'train'):
    root = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(root):
      raise ValueError(f'There is no folder {root}: check data.path.')
    if split and os.path.isdir(os.path.join(root, split)):
      root = os.path.join(root, split)
    elif split not in ('', 'train'):
      # Else one would test on what one trained on.
      raise ValueError(f'There is no folder {split!r} in {root}: check split.')
    self._root = root
    self._shown = os.path.relpath(root, os.path.dirname(root))
    self._tree = tree = _kept(root) or _listed(root)
    self.class_names = tuple(_split(tree.classes))
    self.labels = {'label': len(self.class_names)} if self.class_names else {}
    digest = hashlib.sha256(tree.names.tobytes() + tree.labels.tobytes())
    # Sizes of all would be a million questions to a network disk.
    for i in range(0, len(self), -(-len(self) // 1000)):
      digest.update(b'%d' % os.stat(os.path.join(root, self._name(i))).st_size)
    self.identity = f'folder {root} {digest.hexdigest()}'

  def __len__(self):
    return len(self._tree.labels)

  def _name(self, index):
    start, stop = self._tree.ends[index : index + 2]
    return os.fsdecode(self._tree.names[start:stop].tobytes())

  def keys(self) -> list[str]:
    """The keys of all images, without reading one."""
    return [os.path.join(self._shown, self._name(i)) for i in range(len(self))]

  def every_label(self) -> np.ndarray:
    """int32 [N, L] of all images, without reading one."""
    return self._tree.labels[:, None][:, : len(self.labels)]

  def __getitem__(self, index):
    index = range(len(self))[index]
    name = self._name(index)
    with open(os.path.join(self._root, name), 'rb') as file:
      data = file.read()
    labels = self._tree.labels
    return {
      'image': image(data, os.path.join(self._shown, name)),
      'label': labels[index : index + 1] if self.labels else NO_LABEL,
      'key': os.path.join(self._shown, name),
    }


@dataclasses.dataclass(frozen=True)
class _Tree:
  """What was found, as arrays: a million strings are slow to send and read.

  Attributes:
    names: uint8, paths below the root one after the other, sorted.
    ends: int64 [N + 1], where they begin and end.
    labels: int32 [N]; zeros where there are no classes.
    classes: uint8, their names with a null byte after each.
    folders: uint8, as `classes`: all folders of the tree, relative.
    times: int64 [folders], nanoseconds; -1: to be listed again.
  """

  names: np.ndarray
  ends: np.ndarray
  labels: np.ndarray
  classes: np.ndarray
  folders: np.ndarray
  times: np.ndarray


def _split(names) -> list[str]:
  return [os.fsdecode(name) for name in names.tobytes().split(b'\0')[:-1]]


def _joined(names) -> np.ndarray:
  joined = b''.join(os.fsencode(name) + b'\0' for name in names)
  return np.frombuffer(joined, np.uint8)


def _listed(root) -> _Tree:
  """Looks through the whole tree, and keeps what it found."""
  begin = time.time_ns()
  found, times = _walk(root)
  if not found:
    raise ValueError(
      f'There is no image in {root} or below: looked for files ending in '
      f'{", ".join(ENDINGS)}.'
    )
  names = [n for n in found if not n.lower().endswith(ARRAYS)] or found
  names.sort()
  first = [n.split(os.sep, 1)[0] if os.sep in n else '' for n in names]
  classes = [] if '' in first else sorted(set(first))
  numbers = {name: i for i, name in enumerate(classes)}
  encoded = [os.fsencode(n) for n in names]
  tree = _Tree(
    names=np.frombuffer(b''.join(encoded), np.uint8),
    ends=np.cumsum([0, *map(len, encoded)]),
    labels=np.array([numbers.get(c, 0) for c in first], np.int32),
    classes=_joined(classes),
    folders=_joined(times),
    times=np.array([t if t < begin - _YOUNG else -1 for t in times.values()]),
  )
  if len(names) + len(times) >= _WORTH_KEEPING:
    _keep(root, tree)
    seconds = (time.time_ns() - begin) / 1e9
    logging.info('Listed %d images in %.1f s: %s.', len(names), seconds, root)
  return tree


def _walk(root) -> tuple[list[str], dict[str, int]]:
  """-> paths of all images below root, and of all folders with their times."""
  names, times, level = [], {}, ['']
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    while level:
      found = list(pool.map(lambda below: _look(root, below), level))
      for below, (changed, files, _) in zip(level, found, strict=True):
        times[below] = changed
        names += files
      level = [f for _, _, folders in found for f in folders]
  return names, times


def _look(root, below) -> tuple[int, list[str], list[str]]:
  """One folder: its time, its images and its folders, below root."""
  files, folders = [], []
  try:
    # Before it is listed: a change in between is seen the next time.
    changed = _changed(root, below)
    with os.scandir(os.path.join(root, below)) as entries:
      for entry in entries:
        name = os.path.join(below, entry.name)
        if entry.name.startswith('.') or entry.name == 'lost+found':
          continue
        if entry.is_dir():
          if not (entry.is_symlink() and _leads_up(root, name)):
            folders.append(name)
        # Not what waits for a writer, nor a link to nothing.
        elif entry.name.lower().endswith(ENDINGS) and entry.is_file():
          files.append(name)
  except OSError as error:
    # Without it the classes would be others.
    raise ValueError(
      f'{os.path.join(root, below)} can not be read ({error.strerror}): make '
      'it readable, or move it away.'
    ) from error
  return changed, files, folders


def _changed(root, below) -> int:
  # The first can be set to anything, as rsync does; the second can't.
  stat = os.stat(os.path.join(root, below))
  return max(stat.st_mtime_ns, stat.st_ctime_ns)


def _leads_up(root, link) -> bool:
  """Whether it is a link to a folder on the way to it, which has no end."""
  target = os.path.realpath(os.path.join(root, link))
  while link:
    link = os.path.dirname(link)
    way = os.path.realpath(os.path.join(root, link))
    if os.path.commonpath([target, way]) == target:
      return True
  return False


def _index(root):
  name = hashlib.sha256(os.fsencode(root)).hexdigest()[:24]
  return cache.folder() / f'folder-{name}.npz'


def _made_of(root) -> np.ndarray:
  return _joined([root, '1', *ENDINGS])


def _keep(root, tree) -> None:
  try:
    with cache.replacing(_index(root)) as path, open(path, 'wb') as file:
      np.savez(file, made_of=_made_of(root), **vars(tree))
  except OSError as error:
    logging.warning(
      'The next start will look through %s again: %s can not be written (%s); '
      'set IJEPA_JAX_CACHE to a folder that can.',
      root,
      cache.folder(),
      error.strerror,
    )


def _kept(root) -> _Tree | None:
  """What was found the last time, if nothing has changed since."""
  path = _index(root)
  try:
    with np.load(path) as arrays:  # a zip file, which knows its checksums
      found = dict(arrays)
    if not np.array_equal(found.pop('made_of'), _made_of(root)):
      return None
    tree = _Tree(**found)
  except FileNotFoundError:
    return None
  except Exception as error:  # whatever zip, numpy and we stumble over
    logging.warning(
      '%s is damaged (%s): looking through %s.', path, error, root
    )
    return None
  folders = _split(tree.folders)
  try:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      now = list(pool.map(lambda below: _changed(root, below), folders))
  except OSError:  # one is gone
    return None
  return tree if np.array_equal(now, tree.times) else None
