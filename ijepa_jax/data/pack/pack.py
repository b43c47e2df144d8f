"""Packs images into ArrayRecord shards, which are read fast and in any order.

    python -m ijepa_jax.data.pack folder:images packed/train --split=train
    python -m ijepa_jax.data.pack --verify packed/train

SOURCE is kind:path, with the kinds of data.source: folder:/images,
tfds:imagenet2012, huggingface:/saved, arrayrecord:/packed, scenes:crowd. Every
image is decoded once: those that can't be are left out and named in
manifest.json, which also has counts, classes, sizes, mean and standard
deviation. The records are in the order of the source, and the same for any
number of processes.

A stopped run goes on when started again; finished shards are kept if their
checksums are right. The data set is complete as soon as manifest.json exists.
data/sources/arrayrecord.py describes the format;
--config.data.source=arrayrecord --config.data.path=packed reads it, with
packed/<split> for each split.
"""

import collections
import gzip
import json
import os
import pathlib
import shutil

import numpy as np

from ijepa_jax.data import decode, workers
from ijepa_jax.data.pack import shards
from ijepa_jax.data.pack.encoding import Encoding
from ijepa_jax.data.sources import arrayrecord
from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files, locks

_SAMPLE = 256  # images, from whose sizes that of all is estimated
# Even if fewer shards of --shard_mb would do: so many of so many images each,
# so that every process has work.
_MIN_SHARDS, _MIN_IMAGES = 16, 1000


def pack(
  source,
  out: str,
  *,
  description: str,
  encoding: Encoding,
  shard_mb: float = 256,
  shard_count: int = 0,
  processes: int = 1,
  max_bad_share: float = 0.01,
) -> dict:
  """Packs a source into the folder `out`.

  Args:
    source: see sources/.
    description: of the source, for a person.
    shard_mb: approximate size of a shard in MiB.
    shard_count: number of shards; 0: by shard_mb.
    processes: how many of them pack a shard each.
    max_bad_share: stop if more than this share of the images is left out.

  Returns:
    The content of manifest.json.

  Raises:
    UserError: there are other files in `out`, another process packs into it,
      too many images are bad, a process died, or an argument can't be.
    OSError: a shard can't be written.
  """
  if files.is_url(out):
    raise UserError(f'{out} is no folder here: pack into one and copy that.')
  out = pathlib.Path(files.resolve(out))
  _check_arguments(source, shard_mb, shard_count, processes)
  count = shard_count or _count_shards(source, encoding, shard_mb)
  max_bad = decode.max_bad_images(max_bad_share, len(source))
  plan = {
    'source': description,
    'identity': source.identity,
    'images': len(source),
    'shards': min(count, len(source)),
    'resize': encoding.resize,
    'quality': encoding.quality,
  }
  if encoding.alpha:
    plan['alpha'] = True
  with locks.only_writer(out, beside=True):
    return _write(source, out, plan, encoding, processes, max_bad)


def _write(source, out, plan, encoding, processes, max_bad):
  """Packs the shards that are missing; returns the manifest."""
  unfinished = out / arrayrecord.UNFINISHED
  if (out / arrayrecord.MANIFEST).exists():
    manifest = arrayrecord.read_manifest(str(out))
    _check_plan(out, manifest['plan'], plan)
    arrayrecord.check_sizes(str(out), manifest['shards'])
    shutil.rmtree(unfinished, ignore_errors=True)
    return manifest
  if (unfinished / 'plan.json').exists():
    stored = json.loads((unfinished / 'plan.json').read_text())
    _check_plan(out, stored, plan)
  elif out.exists() and any(out.iterdir()):
    raise UserError(f'{out} has other files: take a new or empty folder.')
  for temporary in out.glob('**/*.tmp'):  # of a process that was killed
    temporary.unlink()
  _write_json(unfinished / 'plan.json', plan)
  parts = workers.map_in_processes(
    _pack_shard,
    [(out, i, plan['shards'], encoding) for i in range(plan['shards'])],
    common=source,
    processes=processes,
    total=len(source),
    max_bad=max_bad,
  )
  manifest = shards.manifest(source, plan, parts)
  if not manifest['count']:
    raise UserError(
      f'No image of {plan["source"]} can be read: there is no data set.'
    )
  keys = json.dumps([key for part in parts for key in part['keys']])
  with files.atomic_write(out / arrayrecord.KEYS) as path:
    path.write_bytes(gzip.compress(keys.encode(), mtime=0))
  _write_json(out / arrayrecord.MANIFEST, manifest, indent=1)
  shutil.rmtree(unfinished)
  return manifest


def _check_arguments(source, shard_mb, shard_count, processes):
  if not len(source):
    raise UserError('There is no image to pack: check the source.')
  for name, value, minimum in (
    ('shard_mb', shard_mb, 1),
    ('shards', shard_count, 0),
    ('processes', processes, 1),
  ):
    if value < minimum:
      raise UserError(f'{name} is {value}: take {minimum} or more.')


def _count_shards(source, encoding, shard_mb):
  """Estimates it from some images; the same for any number of processes."""
  sizes = []
  for row in np.linspace(0, len(source) - 1, min(len(source), _SAMPLE)):
    try:
      sizes.append(len(encoding(source[int(row)]['image'])[0]))
    except (OSError, decode.BadImage):
      continue
  num_bytes = np.mean(sizes or [0]) * len(source)
  minimum = min(_MIN_SHARDS, len(source) // _MIN_IMAGES)
  return max(1, minimum, round(num_bytes / (shard_mb * 2**20)))


def _check_plan(out, stored, plan):
  """Refuses to go on in a folder that was begun by another plan."""
  if stored.get('identity') != plan['identity']:
    raise UserError(
      f'{out} has images from {stored.get("source")}, and those of '
      f'{plan["source"]} are others, or have changed: take another folder.'
    )
  for key in ('shards', 'resize', 'quality', 'alpha'):
    if stored.get(key) != plan.get(key):
      raise UserError(
        f'{out} was begun with {key} = {stored.get(key)}, and now it is '
        f'{plan.get(key)}: take another folder.'
      )


def _write_json(path, value, indent=None):
  with files.atomic_write(path) as temporary:
    temporary.write_text(json.dumps(value, indent=indent))


def verify(out: str, processes: int = 1) -> dict[str, list[str]]:
  """Reads a packed data set back.

  Returns:
    Kind of fault -> its places, in words; empty if the data set is complete.

  Raises:
    UserError: there is no packed data set in `out`.
  """
  if files.is_url(out):
    raise UserError(f'{out} is no folder here: verify a copy.')
  manifest = arrayrecord.read_manifest(out)
  keys = arrayrecord.read_keys(out)
  ends = np.cumsum([0, *(shard['count'] for shard in manifest['shards'])])
  faults = collections.defaultdict(list)
  if not len(keys) == ends[-1] == manifest['count']:
    faults['not as many as the manifest says'].append(
      f'{len(keys)} keys and {ends[-1]} records for {manifest["count"]} images'
    )
  jobs = [
    (
      os.path.join(out, shard['name']),
      shard,
      keys[start : start + shard['count']],
      manifest['labels'],
    )
    for start, shard in zip(ends, manifest['shards'], strict=False)
  ]
  for part in workers.map_in_processes(
    _verify_shard, jobs, processes=processes, total=manifest['count']
  ):
    for fault, place in part:
      faults[fault].append(place)
  return dict(faults)


def _pack_shard(source, out, index, count, encoding) -> dict:
  """Packs a shard in a worker, unless it is finished; describes it."""
  path = out / shards.shard_names(count)[index]
  note = out / arrayrecord.UNFINISHED / f'{index:05}.json'
  start, stop = (len(source) * i // count for i in (index, index + 1))
  try:
    part = json.loads(note.read_text())
    if shards.sha256_of_file(path) == part['sha256']:
      workers.report_progress(stop - start, len(part['skipped']))
      return part
  except (OSError, ValueError):
    pass  # it was not finished
  part = shards.write(
    source, range(start, stop), path, encoding, workers.report_progress
  )
  _write_json(note, part)
  return part


def _verify_shard(_, *job):
  # The limit was applied when the images were packed.
  decode.limit_pixels(0)
  return shards.verify_shard(*job, workers.report_progress)
