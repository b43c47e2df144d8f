"""Files here or behind a URL (gs://, s3://, ...), through fsspec."""

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
from ijepa_jax.runtime.files import atomic_write, cache_dir

_COPIES = 8  # shards at a time
_EXTRAS = {'gs': 'gcs', 'gcs': 'gcs', 's3': 's3'}


def is_url(path: str) -> bool:
  return '://' in path


def read(path: str) -> bytes:
  """The whole file.

  Raises:
    OSError: a file here can't be read.
    UserError: one behind a URL can't.
  """
  if not is_url(path):
    with open(path, 'rb') as file:
      return file.read()
  with _as_user_error(path):
    files, inside = fsspec.core.url_to_fs(path)
    return files.cat_file(inside)


def exists(path: str) -> bool:
  """Raises UserError where a URL can't be looked at."""
  if not is_url(path):
    return os.path.exists(path)
  with _as_user_error(path):
    files, inside = fsspec.core.url_to_fs(path)
    return files.exists(inside)


@contextlib.contextmanager
def _as_user_error(url):
  try:
    yield
  except Exception as error:  # each library has errors of its own
    extra = _EXTRAS.get(url.split('://')[0])
    words = str(error).rstrip('.')
    if isinstance(error, ImportError) and extra:
      words = f"pip install 'ijepa_jax[{extra}]'"
    raise UserError(f'{url} can not be read: {words}.') from error


def download_shards(url: str, shards: list[dict], ending: str) -> list[str]:
  """Paths of copies of a bucket's files, made where they are not there yet.

  Args:
    url: of their folder.
    shards: their name, bytes and sha256, which names the copy in the cache.
    ending: of the copies' names.

  Raises:
    UserError: one can't be copied or is damaged, or the disk is too small.
  """
  folder = cache_dir() / 'shards'
  paths = [folder / f'{shard["sha256"]}{ending}' for shard in shards]
  # All processes of this machine want the same: the first one copies.
  with locks.only_writer(folder, wait=True):
    for left in folder.glob('*.tmp'):  # by one that was killed
      left.unlink()
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
        concurrent.futures.ThreadPoolExecutor(_COPIES) as pool,
        # What is not begun yet need not be, once one has failed.
        contextlib.closing(
          pool.map(lambda pair: _copy(url, *pair), missing)
        ) as sizes,
      ):
        for size in sizes:
          bar.update(size)
  return [str(path) for path in paths]


def _copy(url, path, shard) -> int:
  source = f'{url}/{shard["name"]}'
  with atomic_write(path) as temporary:
    with _as_user_error(source):
      files, inside = fsspec.core.url_to_fs(source)
      files.get_file(inside, str(temporary))
    with open(temporary, 'rb') as file:
      found = hashlib.file_digest(file, 'sha256').hexdigest()
    if found != shard['sha256']:
      raise UserError(
        f'{source} is damaged, its SHA-256 is not the one in its manifest: '
        'copy it there again.'
      )
  return shard['bytes']
