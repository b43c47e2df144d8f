"""Lists a tree of image files, and keeps the listing in the cache folder.

Listing a million files takes minutes on a network disk, so a listing is kept
(see runtime/files.py) by the path of the tree, and read from there as long as
no folder of the tree has changed: adding, removing or renaming a file or a
folder changes the time of the folder it is in. Two changes are not seen: a file
that is overwritten in place, which is read as it is now all the same, and any
change on a disk that keeps no such times. A tree with a folder that changed
less than two seconds before it was listed is listed again the next time: the
folder may have changed once more within the resolution of its time.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import os
import time

import numpy as np
from absl import logging

from ijepa_jax.errors import UserError
from ijepa_jax.runtime.files import atomic_write, cache_dir

ARRAYS = '.npy'  # images of more than four channels
ENDINGS = (
  *('.apng', '.bmp', '.dib', '.gif', '.jfi', '.jfif', '.jif', '.jpe', '.jpeg'),
  *('.jpg', '.mpo', ARRAYS, '.pbm', '.pgm', '.png', '.pnm', '.ppm', '.tif'),
  *('.tiff', '.webp'),
)
NUM_THREADS = 16  # for the requests to a network disk
_MIN_ENTRIES_TO_CACHE = 10_000  # files and folders; fewer are listed at once
_MIN_AGE_NS = 2_000_000_000  # nanoseconds; times have seconds on some disks


@dataclasses.dataclass(frozen=True)
class Tree:
  """A listing as arrays: a million strings are slow to send and to read.

  Attributes:
    names: uint8, paths below the root one after the other, sorted.
    ends: int64 [N + 1], where they begin and end.
    labels: int32 [N]; zeros if there are no classes.
    classes: uint8, their names with a null byte after each.
    folders: uint8, as `classes`: all folders of the tree, relative.
    times: int64 [folders], nanoseconds; -1: to be listed again.
    links: uint8, a digest of all links and their targets.
    notes: uint8, as `classes`: why there are no classes, if folders could be
      such, or ''; then everything else that is to be logged of the tree.
  """

  names: np.ndarray
  ends: np.ndarray
  labels: np.ndarray
  classes: np.ndarray
  folders: np.ndarray
  times: np.ndarray
  links: np.ndarray
  notes: np.ndarray


def list_tree(root: str) -> Tree:
  """Returns the listing of a tree, from the cache if it is up to date.

  Raises:
    UserError: there is no image, or a folder can't be read.
  """
  return _load_listing(root) or _scan_tree(root)


def is_image(name: str) -> bool:
  """Whether a file of this name is listed as an image."""
  return name.lower().endswith(ENDINGS) and not name.startswith('.')


def unpack_names(packed: np.ndarray) -> list[str]:
  """Returns the names in an array such as Tree.classes."""
  return [os.fsdecode(name) for name in packed.tobytes().split(b'\0')[:-1]]


def _pack_names(names) -> np.ndarray:
  packed = b''.join(os.fsencode(name) + b'\0' for name in names)
  return np.frombuffer(packed, np.uint8)


def first_names(names: list[str]) -> str:
  """Returns the first five of the names, for a sentence."""
  return ', '.join(names[:5]) + (', ...' if names[5:] else '')


def _scan_tree(root) -> Tree:
  """Lists the whole tree, and keeps the listing if the tree is large."""
  begin = time.time_ns()
  files, times, links, skipped = _walk(root)
  if not files:
    counts = f', and there are {_counts(skipped)}' if skipped else ''
    raise UserError(
      f'There is no image in {root} or below: looked for files ending in '
      f'{", ".join(ENDINGS)}{counts}.'
    )
  names = [n for n in files if not n.lower().endswith(ARRAYS)] or files
  if num_arrays := len(files) - len(names):
    skipped[ARRAYS] += num_arrays
  names.sort()
  tops = [n.split(os.sep, 1)[0] if os.sep in n else '' for n in names]
  classes = [] if '' in tops else sorted(set(tops))
  numbers = {name: i for i, name in enumerate(classes)}
  encoded = [os.fsencode(n) for n in names]
  digest = hashlib.sha256(os.fsencode('\0'.join(sorted(links))))
  tree = Tree(
    names=np.frombuffer(b''.join(encoded), np.uint8),
    ends=np.cumsum([0, *map(len, encoded)]),
    labels=np.array([numbers.get(top, 0) for top in tops], np.int32),
    classes=_pack_names(classes),
    folders=_pack_names(times),
    times=np.array(
      [t if t < begin - _MIN_AGE_NS else -1 for t in times.values()]
    ),
    links=_pack_names([digest.hexdigest()]),
    notes=_pack_names(_notes(tops, names, classes, times, skipped)),
  )
  if len(names) + len(times) >= _MIN_ENTRIES_TO_CACHE:
    _save_listing(root, tree)
    seconds = (time.time_ns() - begin) / 1e9
    logging.info('Listed %d images in %.1f s: %s.', len(names), seconds, root)
  return tree


def _notes(tops, names, classes, folders, skipped) -> list[str]:
  """Returns why a tree has no classes, or '', and all that is to be logged.

  Args:
    tops: the first-level folder of each of the `names`; '': it is in none.
    folders: the paths of all folders.
    skipped: kind of file -> how many were skipped.
  """
  first_level = sorted({f for f in folders if f and os.sep not in f})
  with_images = {top for top in tops if top}
  unlabelled, notes = '', []
  if with_images and not classes:
    stray = [n for n in names if os.sep not in n]
    unlabelled = (
      f'{stray[0]}{f" and {len(stray) - 1} more" if stray[1:] else ""} beside '
      f'the {len(with_images)} folders of images: move such files away, and '
      'the folders are classes'
    )
    notes.append(f'no labels for {unlabelled}')
  if skipped:
    notes.append(f'passed over {_counts(skipped)}')
  if empty := [f for f in first_level if classes and f not in with_images]:
    notes.append(
      f'no class without an image that is read: {first_names(empty)}'
    )
  counts = collections.Counter(c.lower() for c in classes)
  if alike := [c for c in classes if counts[c.lower()] > 1]:
    notes.append(f'classes that differ in case alone: {first_names(alike)}')
  return [unlabelled, *notes]


def _counts(skipped) -> str:
  common = skipped.most_common(10)
  text = ', '.join(f'{count} {name}' for name, count in common)
  return text + (', ...' if len(skipped) > 10 else '')


def _walk(root):
  """Lists all folders, a level of the tree after the other.

  Returns:
    Paths of all images below the root; folder -> its time; all links, each
    followed by its target; kind of file -> how many were skipped.
  """
  files, times, links, skipped = [], {}, [], collections.Counter()
  level = ['']
  with concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as pool:
    while level:
      scans = pool.map(lambda folder: _scan_folder(root, folder), level)
      subfolders = []
      for folder, scan in zip(level, scans, strict=True):
        times[folder] = scan[0]
        files += scan[1]
        subfolders += scan[2]
        links += scan[3]
        skipped += scan[4]
      level = subfolders
  return files, times, links, skipped


def _scan_folder(root, folder):
  """Returns a folder's time, images, folders, links, and skipped files."""
  files, folders, links, skipped = [], [], [], collections.Counter()
  try:
    # Before it is listed: a change in between is seen the next time.
    modified = _modified_ns(root, folder)
    with os.scandir(os.path.join(root, folder)) as entries:
      for entry in entries:
        name = os.path.join(folder, entry.name)
        if entry.name == 'lost+found':
          continue
        if entry.name.startswith('.'):
          skipped['hidden'] += 1
          continue
        if entry.is_symlink():
          links += [name, os.readlink(entry.path)]
        if entry.is_dir():
          if not (entry.is_symlink() and _leads_up(root, name)):
            folders.append(name)
        # Neither a pipe, which waits for a writer, nor a link to nothing.
        elif not entry.is_file():
          skipped['no files'] += 1
        elif is_image(entry.name):
          files.append(name)
        else:
          ending = os.path.splitext(entry.name)[1].lower()
          skipped[ending or 'without an ending'] += 1
  except OSError as error:
    # Without this folder the classes would be others.
    raise UserError(
      f'{os.path.join(root, folder)} cannot be read ({error.strerror}): make '
      'it readable, or move it away.'
    ) from error
  return modified, files, folders, links, skipped


def _modified_ns(root, folder) -> int:
  # The first can be set to anything, as rsync does; the second can't.
  stat = os.stat(os.path.join(root, folder))
  return max(stat.st_mtime_ns, stat.st_ctime_ns)


def _leads_up(root, link) -> bool:
  """Whether a link leads to a folder above it, so that a walk has no end."""
  target = os.path.realpath(os.path.join(root, link))
  while link:
    link = os.path.dirname(link)
    parent = os.path.realpath(os.path.join(root, link))
    if os.path.commonpath([target, parent]) == target:
      return True
  return False


def _listing_path(root):
  name = hashlib.sha256(os.fsencode(root)).hexdigest()[:24]
  return cache_dir() / f'folder-{name}.npz'


def _listing_key(root) -> np.ndarray:
  """What a listing depends on, beside the times of the folders."""
  return _pack_names([root, '2', *ENDINGS])


def _save_listing(root, tree) -> None:
  try:
    with atomic_write(_listing_path(root)) as path, open(path, 'wb') as file:
      np.savez(file, made_of=_listing_key(root), **vars(tree))
  except OSError as error:
    logging.warning(
      'The next start will look through %s again: %s cannot be written (%s); '
      'set IJEPA_JAX_CACHE to a folder that can.',
      root,
      cache_dir(),
      error.strerror,
    )


def _load_listing(root) -> Tree | None:
  """Returns the listing that was kept, if no folder has changed since."""
  path = _listing_path(root)
  try:
    with np.load(path) as file:  # a zip file, which has checksums
      arrays = dict(file)
    if not np.array_equal(arrays.pop('made_of'), _listing_key(root)):
      return None
    tree = Tree(**arrays)
  except FileNotFoundError:
    return None
  except Exception as error:  # damaged bytes make zip and NumPy raise anything
    logging.warning(
      '%s is damaged (%s): looking through %s.', path, error, root
    )
    return None
  folders = unpack_names(tree.folders)
  try:
    with concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as pool:
      times = list(pool.map(lambda name: _modified_ns(root, name), folders))
  except OSError:  # a folder is gone
    return None
  return tree if np.array_equal(times, tree.times) else None
