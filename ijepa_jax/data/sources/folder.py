"""A tree of image files.

Listing a million files takes minutes on a network disk, so what was found is
kept in the cache folder (see runtime/files.py), by the path of the tree, and
taken from there as long as no folder of the tree has changed: adding, removing
or renaming a file or a folder changes the time of the folder it is in. What
that can't see is a file overwritten in place, which is read as it is now all
the same, and anything on a disk that keeps no such times. A tree with a folder
that changed less than two seconds before it was listed is listed again the
next time: the folder may have changed once more within the resolution of its
time.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import os
import re
import time

import numpy as np
from absl import logging

from ijepa_jax.data.sources.base import NO_LABEL, decode_if_npy, stamp
from ijepa_jax.errors import UserError
from ijepa_jax.runtime.files import atomic_write, cache_dir

ARRAYS = '.npy'  # images of more than four channels
ENDINGS = (
  *('.apng', '.bmp', '.dib', '.gif', '.jfi', '.jfif', '.jif', '.jpe', '.jpeg'),
  *('.jpg', '.mpo', ARRAYS, '.pbm', '.pgm', '.png', '.pnm', '.ppm', '.tif'),
  *('.tiff', '.webp'),
)
# Folders that can only be splits, beside one that may be a class.
_SPLITS = re.compile(
  r'(train|test|val|dev|eval)(ing|id|idation|uation)?[-_]?\d*'
)
_MIN_ENTRIES_TO_CACHE = 10_000  # files and folders; fewer are listed in no time
_MIN_AGE_NS = 2_000_000_000  # nanoseconds; times have seconds on some disks
_THREADS = 16  # of those that ask a network disk


class Folder:
  """A tree of image files, in the order of their paths.

  `path`/`split` is read where it exists, and `path` itself otherwise or where
  the split is ''. Where every image lies below a first-level folder these are
  its classes, numbered in order of `class_names`. Hidden and other files are
  passed over and counted in the log. Arrays of uint8 [H, W, C] in .npy files
  are taken where no other image is: beside images they are masks or features.
  """

  def __init__(self, path: str, split: str = 'train'):
    root = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(root):
      raise UserError(f'There is no folder {root}: check data.path.')
    if split and os.path.isdir(os.path.join(root, split)):
      _check_split(root, split)
      root = os.path.join(root, split)
    elif split not in ('', 'train'):
      # Else one would test on what one trained on.
      raise UserError(f'There is no folder {split!r} in {root}: check split.')
    elif split:
      _check_whole(root)
    self._root = root
    self._shown = os.path.relpath(root, os.path.dirname(root))
    self._tree = tree = _load_listing(root) or _scan_tree(root)
    self.class_names = tuple(_split(tree.classes))
    self.labels = {'label': len(self.class_names)} if self.class_names else {}
    self.unlabelled, *notes = _split(tree.notes)
    for note in notes:
      logging.warning('%s: %s.', root, note)
    parts = tree.ends, tree.names, tree.labels, tree.classes
    digest = hashlib.sha256(b''.join(part.tobytes() for part in parts))
    self.listing = digest.hexdigest()

  @functools.cached_property
  def identity(self) -> str:
    # Of every file: an exchange of two may be the only change.
    step = 1000
    ranges = [(i, i + step) for i in range(0, len(self), step)]
    digest = hashlib.sha256(self.listing.encode() + self._tree.links.tobytes())
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      for stats in pool.map(lambda both: self._stats(*both), ranges):
        digest.update(stats)
    return f'folder {self._root} {digest.hexdigest()}'

  def _stats(self, start, stop) -> bytes:
    ends = self._tree.ends[start : stop + 1].tolist()
    names = self._tree.names[ends[0] : ends[-1]].tobytes()
    root = os.fsencode(os.path.join(self._root, ''))
    return repr(
      [
        stamp(root + names[one - ends[0] : other - ends[0]])
        for one, other in itertools.pairwise(ends)
      ]
    ).encode()

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
      'image': decode_if_npy(data, os.path.join(self._shown, name)),
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
    links: uint8, a digest of all links and what they lead to.
    notes: uint8, as `classes`: why there are no classes, where folders could
      be such, or ''; then what else is to be told of the tree.
  """

  names: np.ndarray
  ends: np.ndarray
  labels: np.ndarray
  classes: np.ndarray
  folders: np.ndarray
  times: np.ndarray
  links: np.ndarray
  notes: np.ndarray


def _check_split(root, split) -> None:
  """Refuses a split that may be a class: one beside other folders of images.

  Raises:
    UserError: there are such, and none that is called as splits are.
  """
  folders, files = _first_level(root)
  folders = [name for name in folders if name != split]
  if any(_SPLITS.fullmatch(name.lower()) for name in folders):
    return
  beside = [n for n in folders if _holds_image(os.path.join(root, n))]
  beside += filter(_is_image, files)
  if beside:
    some = ', '.join(beside[:3]) + (', ...' if beside[3:] else '')
    raise UserError(
      f'{root} holds a folder {split!r}, and images beside it in {some}: for '
      f'all of them, as classes, set data.split to the empty text; for '
      f'{split!r} alone, data.path to {os.path.join(root, split)} too.'
    )


def _check_whole(root) -> None:
  """Refuses to take splits for classes: one would train on what one tests on.

  Raises:
    UserError: all folders are called as splits are.
  """
  folders, _ = _first_level(root)
  if folders and all(_SPLITS.fullmatch(name.lower()) for name in folders):
    raise UserError(
      f'There is no folder train in {root}, and there are '
      f'{_some(folders)}: set data.split to one of them, or to the empty text '
      'for all.'
    )


def _first_level(root) -> tuple[list[str], list[str]]:
  """The names of the folders and of all else in a folder, sorted."""
  folders, files = [], []
  try:
    with os.scandir(root) as entries:
      for entry in entries:
        if not entry.name.startswith('.'):
          (folders if entry.is_dir() else files).append(entry.name)
  except OSError:  # told by what lists it
    pass
  return sorted(folders), sorted(files)


def _holds_image(folder) -> bool:
  """Whether there is one among the first files, for what is no image."""
  files = (name for _, _, names in os.walk(folder) for name in names)
  return any(map(_is_image, itertools.islice(files, 10_000)))


def _is_image(name) -> bool:
  return name.lower().endswith(ENDINGS) and not name.startswith('.')


def _split(names) -> list[str]:
  return [os.fsdecode(name) for name in names.tobytes().split(b'\0')[:-1]]


def _joined(names) -> np.ndarray:
  joined = b''.join(os.fsencode(name) + b'\0' for name in names)
  return np.frombuffer(joined, np.uint8)


def _scan_tree(root) -> _Tree:
  """Looks through the whole tree, and keeps what it found."""
  begin = time.time_ns()
  found, times, links, passed = _walk(root)
  if not found:
    there = f', and there are {_counted(passed)}' if passed else ''
    raise UserError(
      f'There is no image in {root} or below: looked for files ending in '
      f'{", ".join(ENDINGS)}{there}.'
    )
  names = [n for n in found if not n.lower().endswith(ARRAYS)] or found
  if arrays := len(found) - len(names):
    passed[ARRAYS] += arrays
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
    times=np.array(
      [t if t < begin - _MIN_AGE_NS else -1 for t in times.values()]
    ),
    links=_joined(
      [hashlib.sha256(os.fsencode('\0'.join(sorted(links)))).hexdigest()]
    ),
    notes=_joined(_notes(first, names, classes, times, passed)),
  )
  if len(names) + len(times) >= _MIN_ENTRIES_TO_CACHE:
    _save_listing(root, tree)
    seconds = (time.time_ns() - begin) / 1e9
    logging.info('Listed %d images in %.1f s: %s.', len(names), seconds, root)
  return tree


def _notes(first, names, classes, folders, passed) -> list[str]:
  """Of a tree: why it has no classes, or '', and all that is to be logged.

  Args:
    first: of each of the `names`, the first-level folder; '': it is in
    none. folders: the paths of all.
    passed: what kind of file was passed over -> how many.
  """
  top = sorted({f for f in folders if f and os.sep not in f})
  read = {f for f in first if f}
  unlabelled, notes = '', []
  if read and not classes:
    stray = [n for n in names if os.sep not in n]
    unlabelled = (
      f'{stray[0]}{f" and {len(stray) - 1} more" if stray[1:] else ""} beside '
      f'the {len(read)} folders of images: move such files away, and the '
      'folders are classes'
    )
    notes.append(f'no labels for {unlabelled}')
  if passed:
    notes.append(f'passed over {_counted(passed)}')
  if empty := [f for f in top if classes and f not in read]:
    notes.append(f'no class without an image that is read: {_some(empty)}')
  cases = collections.Counter(c.lower() for c in classes)
  if alike := [c for c in classes if cases[c.lower()] > 1]:
    notes.append(f'classes that differ in case alone: {_some(alike)}')
  return [unlabelled, *notes]


def _some(names) -> str:
  return ', '.join(names[:5]) + (', ...' if names[5:] else '')


def _counted(passed) -> str:
  counts = passed.most_common(10)
  words = ', '.join(f'{count} {kind}' for kind, count in counts)
  return words + (', ...' if len(passed) > 10 else '')


def _walk(root):
  """-> paths of all images below root; of all folders, with their times; all
  links, with what they say; kinds of other files, with their counts.
  """
  names, times, links, passed = [], {}, [], collections.Counter()
  level = ['']
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    while level:
      found = list(pool.map(lambda below: _scan_folder(root, below), level))
      for below, look in zip(level, found, strict=True):
        times[below], files, _, more, others = look
        names += files
        links += more
        passed += others
      level = [f for _, _, folders, *_ in found for f in folders]
  return names, times, links, passed


def _scan_folder(root, below):
  """One folder: its time, images, folders, links and other files."""
  files, folders, links, passed = [], [], [], collections.Counter()
  try:
    # Before it is listed: a change in between is seen the next time.
    changed = _modified_ns(root, below)
    with os.scandir(os.path.join(root, below)) as entries:
      for entry in entries:
        name = os.path.join(below, entry.name)
        if entry.name == 'lost+found':
          continue
        if entry.name.startswith('.'):
          passed['hidden'] += 1
          continue
        if entry.is_symlink():
          links += [name, os.readlink(entry.path)]
        if entry.is_dir():
          if not (entry.is_symlink() and _leads_up(root, name)):
            folders.append(name)
        # Not what waits for a writer, nor a link to nothing.
        elif not entry.is_file():
          passed['no files'] += 1
        elif entry.name.lower().endswith(ENDINGS):
          files.append(name)
        else:
          ending = os.path.splitext(entry.name)[1].lower()
          passed[ending or 'without an ending'] += 1
  except OSError as error:
    # Without it the classes would be others.
    raise UserError(
      f'{os.path.join(root, below)} can not be read ({error.strerror}): make '
      'it readable, or move it away.'
    ) from error
  return changed, files, folders, links, passed


def _modified_ns(root, below) -> int:
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
  return cache_dir() / f'folder-{name}.npz'


def _listing_key(root) -> np.ndarray:
  return _joined([root, '2', *ENDINGS])


def _save_listing(root, tree) -> None:
  try:
    with atomic_write(_index(root)) as path, open(path, 'wb') as file:
      np.savez(file, made_of=_listing_key(root), **vars(tree))
  except OSError as error:
    logging.warning(
      'The next start will look through %s again: %s can not be written (%s); '
      'set IJEPA_JAX_CACHE to a folder that can.',
      root,
      cache_dir(),
      error.strerror,
    )


def _load_listing(root) -> _Tree | None:
  """What was found the last time, if nothing has changed since."""
  path = _index(root)
  try:
    with np.load(path) as arrays:  # a zip file, which knows its checksums
      found = dict(arrays)
    if not np.array_equal(found.pop('made_of'), _listing_key(root)):
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
      now = list(pool.map(lambda below: _modified_ns(root, below), folders))
  except OSError:  # one is gone
    return None
  return tree if np.array_equal(now, tree.times) else None
