"""The command line of packing: python -m ijepa_jax.data.pack."""

import argparse
import contextlib
import sys

from ijepa_jax.data import decode, sources, workers
from ijepa_jax.data.pack import encoding, pack
from ijepa_jax.errors import UserError
from ijepa_jax.runtime import cli, preemption


def main(arguments=None) -> int:
  """Packs or verifies; returns the exit status: 0, or 1 after a fault."""
  args = _parse(arguments)
  with contextlib.suppress(AttributeError):  # not under pytest
    # Names of files may be of any bytes.
    sys.stdout.reconfigure(errors='backslashreplace')
  limit = decode.max_pixels()
  with preemption.job():
    try:
      with cli.one_sentence():
        return _verify(args) if args.verify else _pack(args)
    finally:
      decode.limit_pixels(limit)


def _parse(arguments):
  parser = argparse.ArgumentParser(
    prog='python -m ijepa_jax.data.pack',
    description=pack.__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('source', nargs='?', help='kind:path, such as folder:/my/images')
  add('out', nargs='?', help='a new folder, or one to go on with')
  add('--verify', metavar='OUT', help='read a packed data set back')
  add('--split', default='train', help='split of the source to pack (train)')
  add('--list_file', default='', help='text file of the images to take')
  add('--count', type=int, help='number of pictures, of scenes alone (20000)')
  add('--resize', type=int, default=0, help='shorter side, of larger images')
  add('--quality', type=int, default=0, help='write JPEG of this quality')
  add('--alpha', action='store_true', help='keep transparency (4 channels)')
  add(
    '--max_pixels',
    type=int,
    default=decode.max_pixels(),
    help='leave out larger images; 0: no limit (%(default)s)',
  )
  add('--shard_mb', type=float, default=256, help='size of a shard (256)')
  add('--shards', type=int, default=0, help='number of shards, or --shard_mb')
  add('--processes', type=int, default=workers.cores(), help='(all cores)')
  add('--max_bad_share', type=float, default=0.01, help='unreadable (0.01)')
  args = parser.parse_args(arguments)
  if bool(args.verify) == bool(args.source and args.out):
    parser.error('give a source and an output folder, or --verify OUT.')
  return args


def _pack(args):
  kind, colon, path = args.source.partition(':')
  is_scenes = kind == 'scenes'
  if not colon and not is_scenes:
    raise UserError(
      f'The source is {kind}: say of what kind, as in folder:{kind}.'
    )
  if is_scenes and args.split != 'train':
    raise UserError(f'--split is {args.split}, and scenes have none: leave it.')
  if not is_scenes and args.count is not None:
    raise UserError(
      f'--count is {args.count}, and only scenes have one: name the images in '
      '--list_file, or leave it.'
    )
  decode.limit_pixels(args.max_pixels)
  source = sources.make_source(
    kind,
    split=args.split,
    list_file=args.list_file,
    count=20_000 if args.count is None else args.count,
    **({'flavour': path or 'scenes'} if is_scenes else {'path': path}),
  )
  description = args.source
  if not is_scenes:
    description += f', split {args.split}'
  if args.list_file:
    description += f', list {args.list_file}'
  manifest = pack.pack(
    source,
    args.out,
    description=description,
    encoding=encoding.Encoding(
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
  faults = pack.verify(args.verify, args.processes)
  for fault, places in faults.items():
    examples = '; '.join(places[:3]) + ('; ...' if places[3:] else '')
    print(f'{len(places)} {fault}: {examples}')
  if not faults:
    print(f'{args.verify} is whole: every image can be read.')
  return 1 if faults else 0


if __name__ == '__main__':
  sys.exit(main())
