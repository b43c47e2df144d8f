"""Packs images into ArrayRecord shards, which are read fast and in any order.

    python -m ijepa_jax.pack folder:/data/imagenet packed/train --split=train
    python -m ijepa_jax.pack --verify packed/train

SOURCE is kind:path, with the kinds of data.source: folder:/images,
tfds:imagenet2012, huggingface:/saved, arrayrecord:/packed, scenes:crowd. Every
image is decoded once: what can't be is left out and named in manifest.json,
which has counts, classes, sizes, mean and standard deviation too. The records
are in the order of the source, and the same whatever the number of processes.

A stopped run goes on when started again; finished shards are kept if their
checksums are right. The data set is whole as soon as manifest.json is there.
sources/arrayrecord.py tells the format; --config.data.source=arrayrecord
--config.data.path=packed reads it, with packed/<split> for each split.
"""

import argparse
import collections
import contextlib
import gzip
import json
import os
import pathlib
import shutil
import sys

import numpy as np

from ijepa_jax import (
  augment,
  cache,
  cli,
  decode,
  interruption,
  locks,
  parallel,
  paths,
  shards,
  sources,
)
from ijepa_jax.errors import UserError
from ijepa_jax.sources import arrayrecord, bucket

_SAMPLE = 256  # images, whose sizes stand for all
# Of a set that would fit into fewer shards of --shard_mb: work for processes.
_LEAST_SHARDS, _LEAST_IMAGES = 16, 1000


def pack(
  source,
  out: str,
  *,
  words: str,
  encoding: shards.Encoding,
  shard_mb: float = 256,
  shard_count: int = 0,
  processes: int = 1,
  max_bad_share: float = 0.01,
) -> dict:
  """Packs a source into the folder `out` -> what manifest.json says.

  Args:
    source: see sources/.
    words: that tell the source to a person.
    shard_mb: about so large is a shard, in MiB.
    shard_count: so many shards instead; 0: by shard_mb.
    processes: that pack a shard each.
    max_bad_share: stop when more than this share of the images is left out.

  Raises:
    UserError: there are other files in `out`, another process packs into it,
      too many images are bad, a process died, or an argument can't be.
    OSError: a shard can't be written.
  """
  if bucket.is_url(out):
    raise UserError(f'{out} is no folder here: pack into one and copy that.')
  out = pathlib.Path(paths.resolve(out))
  _check_arguments(source, shard_mb, shard_count, processes)
  count = shard_count or _count_shards(source, encoding, shard_mb)
  # Of the first thousand as a whole: one of the first ten is no tenth.
  max_bad = max_bad_share * max(len(source), 1000)
  plan = {
    'source': words,
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
  """Begins, goes on with or finds finished what `plan` says -> manifest."""
  unfinished = out / arrayrecord.UNFINISHED
  if (out / arrayrecord.MANIFEST).exists():
    manifest = arrayrecord.read_manifest(str(out))
    _check_plan(out, manifest['plan'], plan)
    arrayrecord.check_sizes(str(out), manifest['shards'])
    shutil.rmtree(unfinished, ignore_errors=True)
    return manifest
  if (unfinished / 'plan.json').exists():
    there = json.loads((unfinished / 'plan.json').read_text())
    _check_plan(out, there, plan)
  elif out.exists() and any(out.iterdir()):
    raise UserError(f'{out} has other files: take a new or empty folder.')
  for left in out.glob('**/*.tmp'):  # by one that was killed
    left.unlink()
  _write_json(unfinished / 'plan.json', plan)
  parts = parallel.run(
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
  with cache.replacing(out / arrayrecord.KEYS) as path:
    path.write_bytes(gzip.compress(keys.encode(), mtime=0))
  _write_json(out / arrayrecord.MANIFEST, manifest, indent=1)
  shutil.rmtree(unfinished)
  return manifest


def _check_arguments(source, shard_mb, shard_count, processes):
  if not len(source):
    raise UserError('There is no image to pack: check the source.')
  for name, value, least in (
    ('shard_mb', shard_mb, 1),
    ('shards', shard_count, 0),
    ('processes', processes, 1),
  ):
    if value < least:
      raise UserError(f'{name} is {value}: take {least} or more.')


def _count_shards(source, encoding, shard_mb):
  """By the mean size of some images; the same whatever does the packing."""
  sizes = []
  for row in np.linspace(0, len(source) - 1, min(len(source), _SAMPLE)):
    try:
      sizes.append(len(encoding(source[int(row)]['image'])[0]))
    except (OSError, augment.BadImage):
      continue
  whole = np.mean(sizes or [0]) * len(source)
  least = min(_LEAST_SHARDS, len(source) // _LEAST_IMAGES)
  return max(1, least, round(whole / (shard_mb * 2**20)))


def _check_plan(out, there, plan):
  if there.get('identity') != plan['identity']:
    raise UserError(
      f'{out} has images from {there.get("source")}, and those of '
      f'{plan["source"]} are others, or have changed: take another folder.'
    )
  for key in ('shards', 'resize', 'quality', 'alpha'):
    if there.get(key) != plan.get(key):
      raise UserError(
        f'{out} was begun with {key} = {there.get(key)}, and now it is '
        f'{plan.get(key)}: take another folder.'
      )


def _write_json(path, value, indent=None):
  with cache.replacing(path) as temporary:
    temporary.write_text(json.dumps(value, indent=indent))


def verify(out: str, processes: int = 1) -> dict[str, list[str]]:
  """Reads a packed data set back: kind of fault -> where, in words.

  Raises:
    UserError: there is none.
  """
  if bucket.is_url(out):
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
  for part in parallel.run(
    _check_shard, jobs, processes=processes, total=manifest['count']
  ):
    for kind, where in part:
      faults[kind].append(where)
  return dict(faults)


def _pack_shard(source, out, index, count, encoding) -> dict:
  path = out / shards.names(count)[index]
  note = out / arrayrecord.UNFINISHED / f'{index:05}.json'
  first, last = (len(source) * i // count for i in (index, index + 1))
  try:
    part = json.loads(note.read_text())
    if shards.digest(path) == part['sha256']:
      parallel.tick(last - first, len(part['skipped']))
      return part
  except (OSError, ValueError):
    pass  # it was not finished
  part = shards.write(source, range(first, last), path, encoding, parallel.tick)
  _write_json(note, part)
  return part


def _check_shard(_, *job):
  # They are here because they were wanted, whatever their size.
  decode.limit_pixels(0)
  return shards.check(*job, parallel.tick)


def main(arguments=None) -> int:
  """-> the exit status: 0, or 1 after a fault."""
  args = _parse(arguments)
  with contextlib.suppress(AttributeError):  # not under pytest
    # Names of files may be of any bytes.
    sys.stdout.reconfigure(errors='backslashreplace')
  most = decode.most_pixels()
  with interruption.job():
    try:
      with cli.one_sentence():
        return _verify(args) if args.verify else _pack(args)
    finally:
      decode.limit_pixels(most)


def _parse(arguments):
  parser = argparse.ArgumentParser(
    prog='python -m ijepa_jax.pack',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('source', nargs='?', help='kind:path')
  add('out', nargs='?', help='a new folder, or one to go on with')
  add('--verify', metavar='OUT', help='read a packed data set back')
  add('--split', default='train', help='of the source (train)')
  add('--list_file', default='', help='of the images to take, a name a line')
  add('--count', type=int, help='pictures of scenes (20000)')
  add('--resize', type=int, default=0, help='shorter side of larger images')
  add('--quality', type=int, default=0, help='make all JPEG, of 1 to 100')
  add('--alpha', action='store_true', help='keep it, as a fourth channel')
  add(
    '--max_pixels',
    type=int,
    default=decode.most_pixels(),
    help='more are left out; 0: none (%(default)s)',
  )
  add('--shard_mb', type=float, default=256, help='about this size (256)')
  add('--shards', type=int, default=0, help='so many instead')
  add('--processes', type=int, default=parallel.cores(), help='(all cores)')
  add('--max_bad_share', type=float, default=0.01, help='then stop (0.01)')
  args = parser.parse_args(arguments)
  if bool(args.verify) == bool(args.source and args.out):
    parser.error('give a source and an output folder, or --verify OUT.')
  return args


def _pack(args):
  kind, colon, path = args.source.partition(':')
  if not colon and kind != 'scenes':
    raise UserError(
      f'The source is {kind}: say of what kind, as in folder:{kind}.'
    )
  if kind == 'scenes' and args.split != 'train':
    raise UserError(f'--split is {args.split}, and scenes have none: leave it.')
  if kind != 'scenes' and args.count is not None:
    raise UserError(
      f'--count is {args.count}, and only scenes have one: name the images in '
      '--list_file, or leave it.'
    )
  decode.limit_pixels(args.max_pixels)
  more = {'flavour': path or 'scenes'} if kind == 'scenes' else {'path': path}
  source = sources.make_source(
    kind,
    split=args.split,
    list_file=args.list_file,
    count=20_000 if args.count is None else args.count,
    **more,
  )
  words = [args.source, f'split {args.split}' if kind != 'scenes' else '']
  words.append(f'list {args.list_file}' if args.list_file else '')
  manifest = pack(
    source,
    args.out,
    words=', '.join(filter(None, words)),
    encoding=shards.Encoding(
      args.resize, args.quality, args.alpha, args.max_pixels
    ),
    shard_mb=args.shard_mb,
    shard_count=args.shards,
    processes=args.processes,
    max_bad_share=args.max_bad_share,
  )
  classes = ', '.join(f'{k}: {v}' for k, v in manifest['labels'].items())
  print(
    f'{args.out}: {manifest["count"]} images (labels {classes or "none"}) in '
    f'{len(manifest["shards"])} shards, {manifest["bytes"] / 1e9:.2f} GB; '
    f'{len(manifest["skipped"])} left out.'
  )
  for name in ('mean', 'std'):
    print(f'{name} {tuple(round(x, 4) for x in manifest[name])}')
  print('To train with them: --config.data.from_manifest=True')
  return 0


def _verify(args):
  faults = verify(args.verify, args.processes)
  for kind, where in faults.items():
    some = '; '.join(where[:3]) + ('; ...' if where[3:] else '')
    print(f'{len(where)} {kind}: {some}')
  if not faults:
    print(f'{args.verify} is whole: every image can be read.')
  return 1 if faults else 0


if __name__ == '__main__':
  sys.exit(main())
