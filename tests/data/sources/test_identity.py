"""What is known of the images without reading them: which, and if changed."""

import os
import shutil

from ijepa_jax.data.sources import make_source, subset
from tests.data.sources.test_sources import (  # noqa: F401
  cache_folder,
  hugging_face,
  index,
  prepared,
  tree,
  write,
)


def exchange(first, second, kept=True):
  """Two files under each other's name; with the times of the names, or not."""
  times = [os.stat(path) for path in (first, second)]
  waiting = first.with_name('waiting')
  first.rename(waiting), second.rename(first), waiting.rename(second)
  for path, stat in zip((first, second), times, strict=True):
    if kept:
      os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_images_exchanged_in_place(tmp_path, index):  # noqa: F811
  """Any two of them; of one size, and with the times that were there."""
  names = [f'{"ab"[i % 2]}/{i:04}.png' for i in range(1500)]
  write(tmp_path / 'tree', *names[:2])
  for name in names[2:]:
    shutil.copy(tmp_path / 'tree' / names[0], tmp_path / 'tree' / name)
  before = tree(tmp_path)
  identities = {before.identity}
  assert tree(tmp_path).identity in identities
  root = tmp_path / 'tree'
  for i, k in ((0, 1), (701, 902)):
    exchange(root / names[i], root / names[k])
    after = tree(tmp_path)
    assert after.identity not in identities and after.listing == before.listing
    identities.add(after.identity)
  restricted = subset.Subset(after, [0, 701])
  exchange(root / names[0], root / names[1])
  again = subset.Subset(tree(tmp_path), [0, 701])
  assert restricted.identity != again.identity
  assert restricted.listing == again.listing != before.listing


def test_links_exchanged_in_place(tmp_path):
  """Of files and of folders."""
  write(tmp_path / 'store', 'x/1.png', 'y/1.png')
  shutil.copy2(tmp_path / 'store/x/1.png', tmp_path / 'store/y/1.png')
  (tmp_path / 'tree').mkdir()
  identities = set()
  for pairs in (('ax', 'by'), ('ay', 'bx')):
    for name, target in pairs:
      (tmp_path / 'tree' / name).unlink(missing_ok=True)
      (tmp_path / 'tree' / name).symlink_to(tmp_path / 'store' / target)
    identities.add(tree(tmp_path).identity)
  assert len(identities) == 2


def test_a_listing_is_of_no_place(tmp_path, prepared):  # noqa: F811
  """Nor of a time: the same for a copy; another where the order may be."""
  write(tmp_path / 'tree', 'a/1.png', 'b/2.png')
  shutil.copytree(tmp_path / 'tree', tmp_path / 'copy')
  first = tree(tmp_path)
  copy = make_source('folder', path=str(tmp_path / 'copy'))
  assert copy.listing == first.listing and copy.identity != first.identity
  write(tmp_path / 'copy', 'a/0.png')
  other = make_source('folder', path=str(tmp_path / 'copy'))
  assert other.listing != first.listing
  shutil.copytree(prepared, tmp_path / 'tfds')
  one, copy = (
    make_source('tfds', path=str(p)) for p in (prepared, tmp_path / 'tfds')
  )
  assert copy.listing == one.listing and copy.identity != one.identity
  scenes = [make_source('scenes', count=12, seed=s) for s in (0, 0, 1)]
  listings = [source.listing for source in scenes]
  assert listings[0] == listings[1] != listings[2]
  assert all(len(x) == 64 for x in (*listings, one.listing, first.listing))


def test_records_of_tfds_exchanged_in_place(prepared, tmp_path):  # noqa: F811
  shutil.copytree(prepared, tmp_path / 'x')
  before = make_source('tfds', path=str(tmp_path / 'x')).identity
  assert make_source('tfds', path=str(tmp_path / 'x')).identity == before
  (path,) = (tmp_path / 'x').glob('*array_record*')
  shutil.copy2(path, tmp_path / 'other')
  exchange(path, tmp_path / 'other')
  assert make_source('tfds', path=str(tmp_path / 'x')).identity != before


def test_saved_files_replaced_in_place(tmp_path):
  hugging_face(tmp_path, 10)
  path = str(tmp_path / 'saved')
  before = make_source('huggingface', path=path)
  identity, listing = before.identity, before.listing
  (file,) = (tmp_path / 'saved').glob('*.arrow')
  shutil.copy2(file, tmp_path / 'other')
  exchange(file, tmp_path / 'other')
  after = make_source('huggingface', path=path)
  assert after.identity != identity and after.listing == listing
