"""Sources: what is an image, what its label, and what a user is told."""

import io
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ijepa_jax import scenes, sources
from ijepa_jax.evals import tasks
from ijepa_jax.sources import make_source

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


def prepare(builder, folder):
  builder = builder(data_dir=folder, file_format='array_record')
  builder.download_and_prepare()
  return builder.data_path


def test_scenes(tmp_path, monkeypatch):
  """The pictures themselves, from the cache, and cheap to send to workers."""
  monkeypatch.setenv('IJEPA_JAX_CACHE', str(tmp_path))
  for flavour in ('scenes', 'crowd'):
    source = make_source('scenes', flavour=flavour, count=12, seed=3)
    assert len(source) == 12
    assert source.labels == scenes.LABELS[flavour]
    message = pickle.dumps(source)
    assert len(message) < 1000
    for s in (source, pickle.loads(message)):
      image, labels = scenes.render(flavour, 3, 7)
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
  whole = make_source('folder', path=str(tmp_path), split='')
  assert whole.class_names == ('train', 'val')
  with pytest.raises(ValueError, match=r"no folder 'test' in .*: check split"):
    make_source('folder', path=str(tmp_path), split='test')


def test_flat_folder_has_no_labels(tmp_path):
  write(tmp_path, '1.png', '2.png', 'more/3.png')
  source = make_source('folder', path=str(tmp_path))
  assert len(source) == 3 and source.labels == {}
  assert source.keys() == [source[i]['key'] for i in range(3)]
  assert source[0]['label'].shape == (0,)
  assert source[0]['label'].dtype == np.int32


def test_no_images(tmp_path):
  """Told with the path, and with what counts as an image."""
  with pytest.raises(ValueError, match=f'no folder {tmp_path}/x: check'):
    make_source('folder', path=str(tmp_path / 'x'))
  (tmp_path / 'a.txt').touch()
  with pytest.raises(ValueError, match=rf'in {tmp_path} .*\.jpg, .*\.webp'):
    make_source('folder', path=str(tmp_path))
  with pytest.raises(ValueError, match=r'set data\.path'):
    make_source('folder')
  with pytest.raises(ValueError, match="'imagenet': take scenes, folder or"):
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


def test_rules(tmp_path):
  """Labels worked out of the record, in workers too."""
  folder = str(prepare(TinyClevr, tmp_path))
  source = make_source('tfds', path=folder, rules=tasks.CLEVR)
  assert source.labels == {'count': 8, 'distance': 6}
  assert source.identity != make_source('tfds', path=folder).identity
  for s in (source, pickle.loads(pickle.dumps(source))):
    assert [s[i]['label'].tolist() for i in (0, 7)] == [[0, 1], [7, 1]]


def test_tfds_needs_no_tensorflow(prepared):
  code = (
    'import sys; from ijepa_jax.sources import make_source;'
    f's = make_source("tfds", path={str(prepared)!r}); s[3];'
    'sys.exit("tensorflow" in sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_tfds_that_can_not_be_read(prepared, tmp_path):
  """Each told in a sentence, with what to do."""
  with pytest.raises(ValueError, match=r"neither.*Did you mean 'cifar10'\?"):
    make_source('tfds', path='cifar_10')
  with pytest.raises(ValueError, match="'/no/where' is neither"):
    make_source('tfds', path='/no/where')
  with pytest.raises(ValueError, match=r'version 9\.9\.9, only: 1\.0\.0'):
    make_source('tfds', path='tiny_noise:9.9.9')
  with pytest.raises(ValueError, match=r'tiny_noise/1\.0\.0 is not prepared'):
    make_source('tfds', path='tiny_noise')
  with pytest.raises(ValueError, match="no split 'test': take one of train"):
    make_source('tfds', path=str(prepared), split='test')
  with pytest.raises(ValueError, match='no one image feature: it has name'):
    make_source('tfds', path=str(prepare(TinyWords, tmp_path)))
  old = tmp_path / 'old'
  shutil.copytree(prepared, old)
  info = old / 'dataset_info.json'
  info.write_text(
    json.dumps(json.loads(info.read_text()) | {'fileFormat': 'tfrecord'})
  )
  with pytest.raises(ValueError, match=r'stored as tfrecord, .*array_record'):
    make_source('tfds', path=str(old))


def test_file_names_of_any_bytes(tmp_path):
  name = os.fsdecode(b'\xff.png')
  try:
    write(tmp_path, name)
  except OSError:
    pytest.skip('file names are UTF-8 here')
  assert make_source('folder', path=str(tmp_path))[0]['image'] == png(0)


def test_endings_cover_what_pillow_reads():
  Image.init()
  assert set(sources.ENDINGS) <= set(Image.registered_extensions())
