"""Measures how long it takes to open a tree of many images, first and again.

    python benchmarks/open_folder.py --images=200000 --folders=1000

The files are of one byte, in a temporary folder (TMPDIR says where): only their
names are read.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import tqdm

from ijepa_jax.data import sources


def main(images: int, folders: int) -> None:
  with tempfile.TemporaryDirectory() as root:
    os.environ['IJEPA_JAX_CACHE'] = f'{root}/cache'
    tree = pathlib.Path(root, 'tree')
    for i in tqdm.tqdm(range(folders), 'making folders', disable=None):
      (tree / f'{i:08}').mkdir(parents=True)
      for k in range(i, images, folders):
        (tree / f'{i:08}' / f'{i:08}_{k}.JPEG').write_bytes(b'x')
    time.sleep(3)  # else its folders are too young for a kept listing
    for ordinal in ('first', 'second'):
      start = time.perf_counter()
      source = sources.make_source('folder', path=str(tree))
      seconds = time.perf_counter() - start
      print(
        f'{ordinal} time: {seconds:.2f} s for {len(source)} images in '
        f'{len(source.class_names)} folders'
      )
    size = sum(p.stat().st_size for p in pathlib.Path(root).glob('cache/*'))
    print(f'the index has {size / 1e6:.1f} MB')


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--images', type=int, default=200_000)
  parser.add_argument('--folders', type=int, default=1000)
  main(**vars(parser.parse_args()))
