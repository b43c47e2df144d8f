"""The persistent compilation cache: a restart compiles nothing.

JAX names an entry by the program, jaxlib, the devices with their features (on a
CPU its instruction sets too) and XLA's flags: what another machine compiled is
not found, so that different machines may share a folder. Process 0 writes, all
read; but of several processes on CPUs only process 0 finds what it wrote, since
JAX's names differ between them there (0.10.2). Nothing here stops a run: what
can't be used is warned of, and compiled.
"""

import contextlib
import os
import threading
import uuid
import zlib

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache

from ijepa_jax.runtime import files

_PATIENCE = 60.0  # seconds for a bucket to answer
_NEVER = 1e9  # seconds of compilation from which an entry is written
_ENTRIES = '*-cache'


def use(folder: str) -> None:
  """Keeps what JAX compiles from now on, and takes from there what it can.

  For commands, after jax.distributed was started; all processes call it.

  Args:
    folder: a folder or bucket; '': $JAX_COMPILATION_CACHE_DIR, and without it
      nothing is kept.
  """
  folder = folder or jax.config.jax_compilation_cache_dir
  if not folder:
    _set('compilation_cache_dir', None)  # of '' XLA would write beside main.py
    return
  if jax.process_index() == 0:
    names, problem = _within_patience(lambda: _open(folder))
  _of_all(0)  # now the folder is there, without what is damaged
  if jax.process_index() > 0:
    names, problem = _within_patience(lambda: _open(folder))
  # Some would compile alone what XLA tunes together.
  if len(_of_all(zlib.crc32(repr(names).encode()) & 0x7FFFFFFF)) > 1:
    problem = problem or 'not all processes see the same entries'
    names = None
  if names is None:
    logging.warning(
      'The compilation cache %s is not used: %s. What is needed is compiled.',
      *(folder, problem),
    )
    folder = None
  elif problem:
    logging.warning(
      'The compilation cache %s is only read: %s.', *(folder, problem)
    )
  else:
    logging.info('Compilation cache: %s, %d entries.', folder, len(names))
  folder = folder and os.fspath(files.resolve(folder))
  _set('compilation_cache_dir', folder)
  # The autotuner's own folder would be part of the name of every entry, and XLA
  # cannot write it to a bucket.
  _set('persistent_cache_enable_xla_caches', 'none')
  _set('persistent_cache_min_entry_size_bytes', -1)
  _set('persistent_cache_min_compile_time_secs', _NEVER if problem else 0.0)
  compilation_cache.reset_cache()  # one that was opened before


def _set(flag: str, value) -> None:
  jax.config.update(f'jax_{flag}', value)


def _within_patience(call):
  """-> what `call` returns; (None, the reason) if it fails or hangs."""
  results = []

  def run():
    try:
      results.append(call())
    # Of many kinds: each file system of a bucket has its own.
    except Exception as error:
      results.append((None, f'{type(error).__name__}: {error}'))

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  thread.join(_PATIENCE)
  return (*results, (None, f'no answer in {_PATIENCE:.0f} s'))[0]


def _open(folder: str) -> tuple[list[str], str]:
  """-> names of the entries, and why nothing can be added or ''."""
  path, problem = files.resolve(folder), ''
  if jax.process_index() == 0:
    try:
      path.mkdir(parents=True, exist_ok=True)
      probe = path / f'.{uuid.uuid4().hex}.tmp'
      probe.write_text('')
      probe.unlink()
    except Exception as error:
      if not path.exists() or not path.is_dir():
        raise
      problem = f'{type(error).__name__}: {error}'
    if not problem and not files.is_url(path):
      _remove_damaged(path)
  else:
    path.mkdir(parents=True, exist_ok=True)
  return sorted(entry.name for entry in path.glob(_ENTRIES)), problem


def _remove_damaged(path) -> None:
  """Removes entries that a killed process cut short: JAX never replaces one.

  A bucket shows complete objects only.
  """
  for entry in path.glob(_ENTRIES):
    try:
      _decompress(entry.read_bytes())
    except Exception as error:
      logging.warning(
        'The compilation cache: %s is damaged (%s) and removed.', entry, error
      )
      with contextlib.suppress(OSError):
        entry.unlink()


def _decompress(data: bytes) -> None:
  """Raises an error unless `data` is whole; JAX takes zstandard or zlib."""
  if not data.startswith(b'\x28\xb5\x2f\xfd'):
    zlib.decompress(data)
    return
  with contextlib.suppress(ImportError):
    import zstandard

    zstandard.ZstdDecompressor().decompress(data)


def _of_all(number: int) -> set[int]:
  """Waits for all processes, which call alike; returns their numbers."""
  if jax.process_count() == 1:
    return {number}
  return {*multihost_utils.process_allgather(np.int32(number)).tolist()}
