"""Sources: what is an image, what its label, and what a user is told."""

import io
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs import tiny
from ijepa_jax.data import decode
from ijepa_jax.data.scenes import scene
from ijepa_jax.data.sources import clevr, make_source, subset
from ijepa_jax.data.sources.folder import listing
from ijepa_jax.data.sources.folder.listing import ENDINGS
from ijepa_jax.errors import UserError
from ijepa_jax.evals import tasks
from ijepa_jax.train.run import make_run

tfds.disable_progress_bar()


def png(index, height=20, width=30):
  """Noise that is a function of the index."""
  pixels = np.random.default_rng(index).integers(
    0, 256, (height, width, 3), np.uint8
  )
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


def write(root, *names):
  for index, name in enumerate(names):
    path = pathlib.Path(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(index))


class TinyNoise(tfds.core.GeneratorBasedBuilder):
  """Ten PNGs of three classes; TFDS encodes arrays with TensorFlow only."""

  VERSION = tfds.core.Version('1.0.0')
  FEATURES = {  # noqa: RUF012
    'image': tfds.features.Image(encoding_format='png'),
    'label': tfds.features.ClassLabel(num_classes=3),
    'name': tfds.features.Text(),
  }

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(self.FEATURES),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for index in range(10):
      example = {
        'image': io.BytesIO(png(index)),
        'label': index % 3,
        'name': str(index),
      }
      yield index, {k: example[k] for k in self.FEATURES}


class TinyWords(TinyNoise):
  FEATURES = {'name': tfds.features.Text()}  # noqa: RUF012


class TinyNamed(TinyNoise):
  """The images of TinyNoise with names, and in the order of other classes."""

  FEATURES = {  # noqa: RUF012
    'image': tfds.features.Image(encoding_format='png'),
    'label': tfds.features.ClassLabel(names=['a', 'b', 'c']),
    'file_name': tfds.features.Text(),
  }

  def _generate_examples(self):
    for index in range(10):
      name = f'{index}.png'
      image = io.BytesIO(png(index))
      label = index // 4
      yield index, {'image': image, 'label': label, 'file_name': name}


class TinyClevr(TinyNoise):
  """As TFDS's `clevr`: what is to be told stands in the objects."""

  FEATURES = {  # noqa: RUF012
    'image': tfds.features.Image(encoding_format='png'),
    'objects': tfds.features.Sequence(
      {'pixel_coords': tfds.features.Tensor(shape=(3,), dtype=np.float32)}
    ),
  }

  def _generate_examples(self):
    for index in range(8):
      depths = 8.25 + np.arange(index + 3)[::-1]
      objects = [{'pixel_coords': [1.0, 2.0, d]} for d in depths]
      yield index, {'image': io.BytesIO(png(index)), 'objects': objects}


@pytest.fixture(scope='session')
def prepared(tmp_path_factory):
  """The directory of TinyNoise as ArrayRecord."""
  return prepare(TinyNoise, tmp_path_factory.mktemp('tfds'))


@pytest.fixture(scope='session')
def named(tmp_path_factory):
  """Ten images of three classes: as TFDS, and as class folders."""
  root = tmp_path_factory.mktemp('named')
  write(root / 'folder', *(f'{"abc"[i // 4]}/{i}.png' for i in range(10)))
  return {
    'folder': str(root / 'folder'),
    'tfds': str(prepare(TinyNamed, root / 'tfds')),
  }


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('IJEPA_JAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


def prepare(builder, folder):
  builder = builder(data_dir=folder, file_format='array_record')
  builder.download_and_prepare()
  return builder.data_path


def test_scenes():
  """The pictures themselves, from the cache, and cheap to send to workers."""
  for flavour in ('scenes', 'crowd'):
    source = make_source('scenes', flavour=flavour, count=12, seed=3)
    assert len(source) == 12
    assert source.labels == scene.LABELS[flavour]
    message = pickle.dumps(source)
    assert len(message) < 1000
    for s in (source, pickle.loads(message)):
      image, labels = scene.render(flavour, 3, 7)
      np.testing.assert_array_equal(s[7]['image'], image)
      np.testing.assert_array_equal(s[7]['label'], labels)
      assert s[7]['key'] == f'{flavour}/3/7'


def test_class_folders(tmp_path):
  """Sorted; any depth below the class; nothing hidden, nothing but images."""
  names = ['dog/a.JPEG', 'cat/x/y/b.png', 'cat/é.webp', 'cat/a.jpg']
  write(tmp_path, *names, 'cat/.b.png', '.git/c.png', 'cat/notes.txt')
  (tmp_path / 'empty').mkdir()
  source = make_source('folder', path=str(tmp_path))
  elements = [source[i] for i in range(len(source))]
  assert [e['key'] for e in elements] == [
    f'{tmp_path.name}/{n}'
    for n in ('cat/a.jpg', 'cat/x/y/b.png', 'cat/é.webp', 'dog/a.JPEG')
  ]
  assert source.labels == {'label': 2} and source.class_names == ('cat', 'dog')
  assert [e['label'].tolist() for e in elements] == [[0], [0], [0], [1]]
  assert elements[0]['label'].dtype == np.int32
  assert elements[3]['image'] == png(0)
  again = pickle.loads(pickle.dumps(source))
  assert again[2]['key'] == elements[2]['key']


def test_split_folder(tmp_path):
  write(tmp_path, 'train/a/1.png', 'train/b/1.png', 'val/b/2.png')
  train = make_source('folder', path=str(tmp_path))
  val = make_source('folder', path=str(tmp_path), split='val')
  assert [train[i]['key'] for i in range(2)] == [
    'train/a/1.png',
    'train/b/1.png',
  ]
  assert len(val) == 1 and val[0]['image'] == png(2)
  both = make_source('folder', path=str(tmp_path), split='')
  assert both.class_names == ('train', 'val')
  with pytest.raises(UserError, match=r"no folder 'test' in .*: check split"):
    make_source('folder', path=str(tmp_path), split='test')


def test_flat_folder_has_no_labels(tmp_path):
  write(tmp_path, '1.png', '2.png', 'more/3.png')
  source = make_source('folder', path=str(tmp_path))
  assert len(source) == 3 and source.labels == {}
  assert source.keys() == [source[i]['key'] for i in range(3)]
  assert source[0]['label'].shape == (0,)
  assert source[0]['label'].dtype == np.int32


def test_arrays(tmp_path):
  """Where nothing else is: beside images they are no images."""
  for i, shape in enumerate([(5, 4, 13), (6, 7)]):
    (tmp_path / str(i)).mkdir()
    np.save(tmp_path / f'{i}/x.npy', np.full(shape, i, np.uint8))
  np.save(tmp_path / '1/y.NPY', np.zeros((5, 4, 3)))
  os.rename(tmp_path / '1/y.NPY.npy', tmp_path / '1/y.NPY')
  source = make_source('folder', path=str(tmp_path))
  expected = [f'{tmp_path.name}/{n}' for n in ('0/x.npy', '1/x.npy', '1/y.NPY')]
  assert source.keys() == expected
  assert source[0]['image'].shape == (5, 4, 13)
  assert source[1]['image'].shape == (6, 7, 1) and source[1]['image'].all()
  with pytest.raises(OSError, match=r'store it as uint8 .*1/y\.NPY'):
    source[2]
  write(tmp_path, '0/a.png', '1/b.png')
  source = make_source('folder', path=str(tmp_path))
  expected = [f'{tmp_path.name}/{n}' for n in ('0/a.png', '1/b.png')]
  assert source.keys() == expected


def test_no_images(tmp_path):
  """Told with the path, and with what counts as an image."""
  with pytest.raises(UserError, match=f'no folder {tmp_path}/x: check'):
    make_source('folder', path=str(tmp_path / 'x'))
  (tmp_path / 'a.txt').touch()
  with pytest.raises(UserError, match=rf'in {tmp_path} .*\.jpg, .*\.webp'):
    make_source('folder', path=str(tmp_path))
  with pytest.raises(UserError, match=r'set data\.path'):
    make_source('folder')
  with pytest.raises(UserError, match="'imagenet': take one of scenes, folder"):
    make_source('imagenet')


def test_tfds(prepared):
  """Bytes as they were written, labels, slices of splits, pickling."""
  source = make_source('tfds', path=str(prepared))
  assert len(source) == 10 and source.labels == {'label': 3}
  part = make_source('tfds', path=str(prepared), split='train[40%:]')
  assert len(part) == 6
  for i in (4, 9):
    assert source[i]['image'] == part[i - 4]['image'] == png(i)
    assert source[i]['label'].tolist() == [i % 3]
    assert source[i]['label'].dtype == np.int32
  assert source[4]['key'] == 'tiny_noise/1.0.0/train/4'
  message = pickle.dumps(source)
  assert len(message) < 1000 and pickle.loads(message)[4]['image'] == png(4)


def test_prepared_anew_it_is_another(tmp_path, monkeypatch):
  """Where its name and its length are the same, and its images are not."""
  first, again = (
    make_source('tfds', path=str(prepare(TinyNoise, tmp_path / name)))
    for name in 'ab'
  )
  assert again.listing == first.listing
  generate = TinyNoise._generate_examples
  monkeypatch.setattr(
    TinyNoise,
    '_generate_examples',
    lambda self: (
      (i, x | {'image': io.BytesIO(png(i, height=30))})
      for i, x in generate(self)
    ),
  )
  third = make_source('tfds', path=str(prepare(TinyNoise, tmp_path / 'c')))
  assert len(third) == len(first) and third.listing != first.listing


def test_rules(tmp_path):
  """Labels worked out of the record, in workers too."""
  folder = str(prepare(TinyClevr, tmp_path))
  source = make_source('tfds', path=folder, rules=clevr.CLEVR)
  assert source.labels == {'count': 8, 'distance': 6}
  assert source.identity != make_source('tfds', path=folder).identity
  for s in (source, pickle.loads(pickle.dumps(source))):
    assert [s[i]['label'].tolist() for i in (0, 7)] == [[0, 1], [7, 1]]


def test_tfds_needs_no_tensorflow(prepared):
  code = (
    'import sys; from ijepa_jax.data.sources import make_source;'
    f's = make_source("tfds", path={str(prepared)!r}); s[3];'
    'sys.exit("tensorflow" in sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_tfds_that_can_not_be_read(prepared, tmp_path):
  """Each told in a sentence, with what to do."""
  with pytest.raises(UserError, match=r"neither.*Did you mean 'cifar10'\?"):
    make_source('tfds', path='cifar_10')
  with pytest.raises(UserError, match="'/no/where' is neither"):
    make_source('tfds', path='/no/where')
  with pytest.raises(UserError, match=r'version 9\.9\.9, only: 1\.0\.0'):
    make_source('tfds', path='tiny_noise:9.9.9')
  with pytest.raises(UserError, match=r'tiny_noise/1\.0\.0 is not prepared'):
    make_source('tfds', path='tiny_noise')
  with pytest.raises(UserError, match="no split 'test': take one of train"):
    make_source('tfds', path=str(prepared), split='test')
  with pytest.raises(UserError, match='no one image feature: it has name'):
    make_source('tfds', path=str(prepare(TinyWords, tmp_path)))
  old = tmp_path / 'old'
  shutil.copytree(prepared, old)
  info = old / 'dataset_info.json'
  info.write_text(
    json.dumps(json.loads(info.read_text()) | {'fileFormat': 'tfrecord'})
  )
  with pytest.raises(UserError, match=r'stored as tfrecord, .*array_record'):
    make_source('tfds', path=str(old))


def test_file_names_of_any_bytes(tmp_path):
  name = os.fsdecode(b'\xff.png')
  try:
    write(tmp_path, name)
  except OSError:
    pytest.skip('file names are UTF-8 here')
  assert make_source('folder', path=str(tmp_path))[0]['image'] == png(0)


def test_endings_cover_what_pillow_reads():
  """All but floating-point pixels, which `decode` refuses."""
  Image.init()
  kinds = *decode.FORMATS, 'MPO'
  read = {e for e, k in Image.registered_extensions().items() if k in kinds}
  assert set(ENDINGS) == read - {'.pfm'} | {'.npy', '.jif', '.jfi'}


# ---- what folders may hold ----


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_a_class_that_is_called_as_a_split(tmp_path, split):
  """Is refused, with how to say what is meant, unless it can't be a class."""
  write(tmp_path, 'bus/1.png', f'{split}/2.png', 'car/x/3.png')
  with pytest.raises(UserError, match=f'folder {split!r}, .* bus, car: for'):
    make_source('folder', path=str(tmp_path), split=split)
  all_images = make_source('folder', path=str(tmp_path), split='')
  assert len(all_images) == 3 and len(all_images.class_names) == 3
  alone = make_source('folder', path=str(tmp_path / split), split='')
  assert len(alone) == 1
  # Another split, or nothing but other things beside it.
  sibling = {'train': 'val', 'val': 'train', 'test': 'validation'}[split]
  (tmp_path / sibling).mkdir()
  assert len(make_source('folder', path=str(tmp_path), split=split)) == 1
  (tmp_path / sibling).rmdir()
  shutil.rmtree(tmp_path / 'bus')
  (tmp_path / 'car/x/3.png').rename(tmp_path / 'car/x/3.txt')
  assert len(make_source('folder', path=str(tmp_path), split=split)) == 1
  write(tmp_path, 'a.png')
  with pytest.raises(UserError, match=f'folder {split!r}, .* in a.png: for'):
    make_source('folder', path=str(tmp_path), split=split)


def test_splits_are_no_classes(tmp_path):
  write(tmp_path, 'training/a/1.png', 'val/a/2.png')
  with pytest.raises(UserError, match=r'no folder train in .* training, val:'):
    make_source('folder', path=str(tmp_path))
  assert len(make_source('folder', path=str(tmp_path), split='')) == 2
  write(tmp_path, 'control/1.png')
  assert len(make_source('folder', path=str(tmp_path))) == 3


def test_stray_images_are_named(tmp_path, caplog):
  """Where labels are asked for, too."""
  for split in 'train', 'val':
    write(tmp_path, f'{split}/a/1.png', f'{split}/b/2.png')
  write(tmp_path, 'train/preview.png', 'train/x.png')
  task = tasks.get('folder').read_from('folder', str(tmp_path), 'train', 'val')
  reason = (
    r'none \(preview\.png and 1 more beside the 2 folders of images: move'
  )
  with pytest.raises(UserError, match=f"no label 'label': they have {reason}"):
    task.open()
  assert 'no labels for preview.png and 1 more beside' in caplog.text
  for name in 'preview.png', 'x.png':
    (tmp_path / 'train' / name).unlink()
  assert task.open()[3] == 2


def test_files_that_are_passed_over(tmp_path, caplog, index, looks):
  """Are counted in the log, also when the index is read; classes are told."""
  endings = 'JFIF', 'jpe', 'dib', 'pnm', 'PbM', 'apng', 'mpo', 'jif'
  write(tmp_path / 'tree', *(f'a/{i}.{e}' for i, e in enumerate(endings)))
  write(tmp_path / 'tree', 'A/x.png', 'A/.y.png', 'c/1.heic', 'c/2.HEIC')
  write(tmp_path / 'tree', 'a/name', 'a/x.jpg/3.png', 'a/notes.txt')
  (tmp_path / 'tree/a/empty.png').touch()
  (tmp_path / 'tree/a/nothing.png').symlink_to(tmp_path / 'nothing')
  for _ in range(2):
    caplog.clear()
    source = tree(tmp_path)
    assert len(source) == len(endings) + 3
    assert source.class_names == ('A', 'a')
    for note in (
      'passed over 2 .heic, ',
      '1 hidden',
      '1 without an ending',
      '1 .txt',
      '1 no files',
      'no class without an image that is read: c.',
      'classes that differ in case alone: A, a.',
    ):
      assert note in caplog.text
  assert len(looks) == 1
  shutil.rmtree(tmp_path / 'tree/a'), shutil.rmtree(tmp_path / 'tree/A')
  with pytest.raises(UserError, match=r'no image .*, and there are 2 \.heic'):
    tree(tmp_path)


# ---- the index of a folder ----


@pytest.fixture
def index(monkeypatch, cache_folder):
  """Kept for any tree, however small and young; called, it is the file."""
  monkeypatch.setattr(listing, '_MIN_ENTRIES_TO_CACHE', 1)
  monkeypatch.setattr(listing, '_MIN_AGE_NS', 0)
  return lambda: next(cache_folder.glob('folder-*.npz'))


@pytest.fixture
def looks(monkeypatch):
  """A list that grows by one whenever a tree is looked through."""
  walk, roots = listing._walk, []

  def counted_walk(root):
    roots.append(root)
    return walk(root)

  monkeypatch.setattr(listing, '_walk', counted_walk)
  return roots


def tree(tmp_path):
  return make_source('folder', path=str(tmp_path / 'tree'))


def changed(path):
  """Waits until a change to it would be seen in its time."""
  before = path.stat().st_ctime_ns
  while time.time_ns() - before < 20_000_000:
    time.sleep(0.001)


def test_a_folder_is_looked_through_once(tmp_path, index, looks):
  """The same from its index; also for another split, and for workers."""
  names = 'a/1.png', 'a/x/\u00e9 2.png', os.fsdecode(b'b/\xff.png')
  write(tmp_path / 'tree', *names)
  first, again = tree(tmp_path), tree(tmp_path)
  assert len(looks) == 1
  for source in (again, pickle.loads(pickle.dumps(again))):
    assert source.keys() == first.keys() == [f'tree/{n}' for n in names]
    assert source.identity == first.identity
    assert source.class_names == first.class_names == ('a', 'b')
    assert [e['label'].tolist() for e in source] == [[0], [0], [1]]
    assert source[-1]['image'] == png(2)
  flat = make_source('folder', path=str(tmp_path / 'tree' / 'a'))
  assert len(flat) == 2 and flat.labels == {} and len(looks) == 2


@pytest.mark.parametrize(
  'change',
  [
    lambda root: write(root, 'a/y.png'),
    lambda root: write(root, 'c/y.png'),
    lambda root: (root / 'a/x/2.png').unlink(),
    lambda root: (root / 'a/x/2.png').rename(root / 'a/x/3.png'),
    lambda root: (root / 'b').rename(root / 'c'),
    lambda root: shutil.rmtree(root / 'a/x'),
  ],
)
def test_a_changed_folder_is_looked_through_again(
  tmp_path, index, looks, change
):
  write(tmp_path / 'tree', 'a/1.png', 'a/x/2.png', 'b/3.png')
  before = tree(tmp_path)
  for name in ('tree/a', 'tree/a/x', 'tree'):
    changed(tmp_path / name)
  change(tmp_path / 'tree')
  after = tree(tmp_path)
  assert len(looks) == 2 and after.identity != before.identity
  assert sorted(after.keys()) == sorted(
    str(p.relative_to(tmp_path)) for p in tmp_path.rglob('tree/**/*.png')
  )


def test_an_overwritten_file_is_read_as_it_is(tmp_path, index, looks):
  write(tmp_path / 'tree', 'a/1.png', 'b/2.png')
  before = tree(tmp_path).identity
  (tmp_path / 'tree/b/2.png').write_bytes(b'other')
  after = tree(tmp_path)
  assert len(looks) == 1 and after[1]['image'] == b'other'
  assert after.identity != before


def test_a_damaged_index_is_made_again(tmp_path, index, looks, caplog):
  write(tmp_path / 'tree', *(f'{c}/{i}.png' for c in 'ab' for i in range(9)))
  identity = tree(tmp_path).identity
  good = index().read_bytes()
  flipped = bytearray(good)
  flipped[len(good) // 3] ^= 255
  for bad in (b'', b'nonsense', good[: len(good) // 2], bytes(flipped)):
    index().write_bytes(bad)
    caplog.clear()
    assert tree(tmp_path).identity == identity
    assert 'is damaged' in caplog.text
    assert index().read_bytes() == good
  assert len(looks) == 5


def test_young_folders_are_not_trusted(tmp_path, index, looks, monkeypatch):
  """They may change once more within the resolution of their time."""
  monkeypatch.setattr(listing, '_MIN_AGE_NS', 10**15)
  write(tmp_path / 'tree', 'a/1.png')
  assert tree(tmp_path).identity == tree(tmp_path).identity
  assert len(looks) == 2


def test_small_folders_leave_no_index(tmp_path, cache_folder):
  write(tmp_path / 'tree', 'a/1.png')
  tree(tmp_path)
  assert not cache_folder.exists()


def test_a_cache_that_can_not_be_written(tmp_path, index, monkeypatch, caplog):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('IJEPA_JAX_CACHE', str(tmp_path / 'file'))
  write(tmp_path / 'tree', 'a/1.png')
  assert len(tree(tmp_path)) == 1 and 'set IJEPA_JAX_CACHE' in caplog.text


def test_links(tmp_path):
  """Are followed, but not up into the folders they lie in."""
  write(tmp_path / 'tree', 'a/1.png')
  write(tmp_path / 'other', '2.png')
  (tmp_path / 'tree/b').symlink_to(tmp_path / 'other')
  (tmp_path / 'tree/a/up').symlink_to(tmp_path / 'tree')
  assert tree(tmp_path).keys() == ['tree/a/1.png', 'tree/b/2.png']
  # To each other, which goes on for ever; to nothing; to no file.
  (tmp_path / 'tree/a/other').symlink_to(tmp_path / 'other')
  (tmp_path / 'other/a').symlink_to(tmp_path / 'tree/a')
  (tmp_path / 'tree/a/none.png').symlink_to(tmp_path / 'nothing')
  os.mkfifo(tmp_path / 'tree/a/pipe.png')
  assert tree(tmp_path).keys() == [
    *('tree/a/1.png', 'tree/a/other/2.png'),
    *('tree/b/2.png', 'tree/b/a/1.png'),
  ]


def test_a_folder_that_can_not_be_read(tmp_path, monkeypatch):
  """Is told: without it the classes would be others."""
  write(tmp_path / 'tree', 'a/1.png', 'b/2.png', 'c/3.png')
  scandir = os.scandir

  def refusing(path):
    if path.endswith('/b'):
      raise PermissionError(13, 'Permission denied', path)
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refusing)
  with pytest.raises(UserError, match=r'tree/b cannot be read \(Permission'):
    tree(tmp_path)


# ---- lists of names ----


def test_list_of_names(tmp_path):
  """By the ends of names; never another example than was meant."""
  keys = [f'train/{c}/{c}_{i}.JPEG' for c in ('n01', 'n02') for i in range(3)]
  path = tmp_path / 'list.txt'
  for text in (
    'n02_0.JPEG\n\nn01/n01_2.JPEG\r\nn02_0.JPEG\n',
    'n02/n02_0\nn01_2',
  ):
    path.write_text(text)
    np.testing.assert_array_equal(
      subset.indices_from_list(keys, str(path)), [2, 3]
    )
  keys = [*keys, 'train/n03/n01_2.JPEG', 'train/n03/n02/n02_0']
  path.write_text('n02_0\nn01/n01_2.JPEG')
  np.testing.assert_array_equal(
    subset.indices_from_list(keys, str(path)), [2, 7]
  )
  for text, match in {
    'n02_0.JPEG\nn2_0.JPEG\nx': r'2 of the 3 names .* there \(n2_0\.JPEG, x\)',
    'n01_2.JPEG': '1 of the 1 names .* stand for several',
    'n01_2': '1 of the 1 names .* stand for several',
    '\n': 'is empty',
  }.items():
    path.write_text(text)
    with pytest.raises(UserError, match=match):
      subset.indices_from_list(keys, str(path))
  with pytest.raises(UserError, match=r'cannot be read \(No such'):
    subset.indices_from_list(keys, str(tmp_path / 'none'))


def test_lists_as_they_come(tmp_path):
  """From Windows, from find, with one image under two names."""
  path = tmp_path / 'list.txt'
  path.write_bytes(b'\xef\xbb\xbfb.png\r\n./a.png\r\na\r\nt/b.png\r\n')
  indices = subset.indices_from_list(
    ['t/a.png', 't/b.png', 't/c.png'], str(path)
  )
  assert indices.tolist() == [0, 1]


def test_a_list_restricts_any_source(named, tmp_path):
  """To the same images, by the same names."""
  path = tmp_path / 'list.txt'
  path.write_text('7.png\n2\n')
  for kind in ('folder', 'tfds'):
    source = make_source(kind, path=named[kind], list_file=str(path))
    assert [e['image'] for e in source] == [png(2), png(7)]
    assert [e['label'].tolist() for e in source] == [[0], [1]]
    assert source.keys() == [e['key'] for e in source]
    assert source.class_names == ('a', 'b', 'c')
    config = tiny.get_config()
    config.data.source, config.data.path = kind, named[kind]
    config.data.list_file = str(path)
    assert make_run(config).source.identity == source.identity
  path.write_text('0/11\n')
  source = make_source('scenes', count=12, list_file=str(path))
  assert source.keys() == ['scenes/0/11'] == [source[0]['key']]


def test_names_of_tfds(named, prepared, cache_folder):
  """Read once where the records have them, else made of numbers."""
  source = make_source('tfds', path=named['tfds'])
  expected = [f'tiny_named/1.0.0/train/{i}.png' for i in range(10)]
  assert source.keys() == expected == [source[i]['key'] for i in range(10)]
  (path,) = cache_folder.glob('names-*.json')
  path.write_text(json.dumps(expected[::-1]))
  assert source.keys() == expected[::-1]
  path.write_text('[')
  assert source.keys() == expected
  plain = make_source('tfds', path=str(prepared))
  assert plain.keys() == [plain[i]['key'] for i in range(10)]


# ---- Hugging Face's data sets ----


def hugging_face(root, count):
  """The ten images of `named` in each form: as saved, with splits, parquet."""
  datasets = pytest.importorskip('datasets')
  datasets.disable_progress_bars()
  features = datasets.Features(
    {
      'image': datasets.Image(),
      'label': datasets.ClassLabel(names=['a', 'b', 'c']),
    }
  )
  rows = [{'bytes': png(i), 'path': f'x/{i}.png'} for i in range(count)]
  columns = {'image': rows, 'label': [i // 4 for i in range(count)]}
  data = datasets.Dataset.from_dict(columns, features)
  data.save_to_disk(root / 'saved')
  splits = datasets.DatasetDict(train=data, test=data.select(range(3)))
  splits.save_to_disk(root / 'splits')
  (root / 'parquet/data').mkdir(parents=True)
  for split, part in splits.items():
    name = f'parquet/data/{split}-00000-of-00001.parquet'
    part.to_parquet(root / name)


@pytest.mark.parametrize('form', ['saved', 'splits', 'parquet'])
def test_hugging_face(tmp_path, form, monkeypatch):
  monkeypatch.setenv('HF_DATASETS_CACHE', str(tmp_path / 'hf'))
  hugging_face(tmp_path, 10)
  path = str(tmp_path / form)
  source = make_source('huggingface', path=path)
  assert len(source) == 10 and source.labels == {'label': 3}
  assert source.class_names == ('a', 'b', 'c')
  assert source.keys() == [f'{form}/train/{i}.png' for i in range(10)]
  message = pickle.dumps(source)
  assert len(message) < 1000
  for s in (source, pickle.loads(message)):
    assert s[9]['image'] == png(9) and s[9]['key'] == f'{form}/train/9.png'
    assert s[9]['label'].tolist() == [2] and s[9]['label'].dtype == np.int32
  again = make_source('huggingface', path=path)
  assert again.identity == source.identity
  if form != 'saved':
    test = make_source('huggingface', path=path, split='test')
    assert len(test) == 3 and test.identity != source.identity
  with pytest.raises(UserError, match="no split 'val' of a Hugging Face"):
    make_source('huggingface', path=path, split='val')


def test_hugging_face_without_an_image(tmp_path):
  datasets = pytest.importorskip('datasets')
  datasets.disable_progress_bars()
  features = datasets.Features({'image': datasets.Image()})
  rows = {'image': [{'bytes': png(0), 'path': None}, None]}
  datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / 'x')
  source = make_source('huggingface', path=str(tmp_path / 'x'))
  assert source[0]['image'] == png(0)
  assert source.keys() == ['x/train/0', 'x/train/1']
  with pytest.raises(OSError, match="no image: 'x/train/1'"):
    source[1]


def test_hugging_face_that_can_not_be_read(tmp_path, monkeypatch):
  with pytest.raises(UserError, match='pack its images'):
    make_source('huggingface', path='s3://bucket/x')
  monkeypatch.setitem(sys.modules, 'datasets', None)
  with pytest.raises(UserError, match=r'ijepa_jax\[huggingface\]'):
    make_source('huggingface', path=str(tmp_path))
