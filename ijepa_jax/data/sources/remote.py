"""Reads files of this machine or behind a URL (gs://, s3://, ...) by fsspec.

Not by epath, which knows four kinds of URL, and can't copy to this machine.
"""

import concurrent.futures
import contextlib
import hashlib
import os
import shutil

import fsspec
import tqdm
from absl import logging

from ijepa_jax.errors import UserError
from ijepa_jax.runtime import locks
from ijepa_jax.runtime.files import atomic_write, cache_dir, is_url

_NUM_THREADS = 8  # that copy a shard each
# Protocol -> the extra of setup.py that brings it.
_EXTRAS = {'gs': 'gcs', 'gcs': 'gcs', 's3': 's3'}


def read(path: str) -> bytes:
  """Reads a file.

  Raises:
    OSError: a file of this machine can't be read.
    UserError: one behind a URL can't be read.
  """
  if not is_url(path):
    with open(path, 'rb') as file:
      return file.read()
  with _as_user_error(path):
    filesystem, name = fsspec.core.url_to_fs(path)
    return filesystem.cat_file(name)


def exists(path: str) -> bool:
  """Whether there is such a file or folder.

  Raises:
    UserError: the URL can't be reached.
  """
  if not is_url(path):
    return os.path.exists(path)
  with _as_user_error(path):
    filesystem, name = fsspec.core.url_to_fs(path)
    return filesystem.exists(name)


@contextlib.contextmanager
def _as_user_error(url):
  """Raises whatever fails while a URL is read as UserError."""
  try:
    yield
  except Exception as error:  # each library has errors of its own
    extra = _EXTRAS.get(url.split('://')[0])
    reason = str(error).rstrip('.')
    if isinstance(error, ImportError) and extra:
      reason = f"pip install 'ijepa_jax[{extra}]'"
    raise UserError(f'{url} cannot be read: {reason}.') from error


def download_shards(url: str, shards: list[dict], ending: str) -> list[str]:
  """Copies those shards of a bucket to the cache that are not there yet.

  Args:
    url: of their folder.
    shards: 'name', 'bytes' and 'sha256' of each; the last names its copy.
    ending: of the copies' names.

  Returns:
    The paths of all copies.

  Raises:
    UserError: one can't be copied or is damaged, or the disk is too small.
  """
  folder = cache_dir() / 'shards'
  paths = [folder / f'{shard["sha256"]}{ending}' for shard in shards]
  # All processes of this machine want the same shards: the first one copies.
  with locks.only_writer(folder, wait=True):
    for temporary in folder.glob('*.tmp'):  # of a process that was killed
      temporary.unlink()
    pairs = zip(paths, shards, strict=True)
    missing = [
      (p, s)
      for p, s in pairs
      if not p.exists() or p.stat().st_size != s['bytes']
    ]
    need = sum(shard['bytes'] for _, shard in missing)
    free = shutil.disk_usage(folder).free
    if need > free:
      raise UserError(
        f'{url} needs {need / 1e9:.1f} GB in {folder} and {free / 1e9:.1f} GB '
        'are free: set IJEPA_JAX_CACHE to a larger disk, or mount the bucket.'
      )
    if missing:
      logging.info('Copying %d shards of %s to %s.', len(missing), url, folder)
      with (
        tqdm.tqdm(
          total=need, desc='copying', unit='B', unit_scale=True, disable=None
        ) as bar,
        concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool,
        # After a failure the copies that have not begun are cancelled.
        contextlib.closing(
          pool.map(lambda pair: _copy(url, *pair), missing)
        ) as sizes,
      ):
        for size in sizes:
          bar.update(size)
  return [str(path) for path in paths]


def _copy(url, path, shard) -> int:
  """Copies a shard, checks it, and returns its number of bytes."""
  source = f'{url}/{shard["name"]}'
  with atomic_write(path) as temporary:
    with _as_user_error(source):
      filesystem, name = fsspec.core.url_to_fs(source)
      filesystem.get_file(name, str(temporary))
    with open(temporary, 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
    if digest != shard['sha256']:
      raise UserError(
        f'{source} is damaged, its SHA-256 is not the one in its manifest: '
        'copy it there again.'
      )
  return shard['bytes']
