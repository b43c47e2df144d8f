"""Packing: what is read is what went in, and nothing is lost on the way."""

import contextlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time

import fsspec
import numpy as np
import pytest
from PIL import Image

from configs import tiny
from ijepa_jax.data import decode, loader, pipeline
from ijepa_jax.data.pack import __main__, pack, shards
from ijepa_jax.data.pack.encoding import Encoding
from ijepa_jax.data.sources import arrayrecord, make_source
from ijepa_jax.data.sources import remote as sources_remote
from ijepa_jax.data.transforms import crop
from ijepa_jax.errors import UserError
from ijepa_jax.methods import masks
from ijepa_jax.runtime import locks
from ijepa_jax.train.run import make_run
from tests.close import FLOAT64, close
from tests.data.sources.test_sources import (  # noqa: F401
  cache_folder,
  hugging_face,
  named,
  png,
  write,
)
from tests.fake_sources import BlockedList, DeadlyList, ImageList


def run(source, out, **changes):
  options = {'description': 'a test', 'encoding': Encoding()} | changes
  return pack.pack(source, str(out), **options)


def opened(out, **options):
  return make_source('arrayrecord', path=str(out), **options)


def assert_same(a, b):
  assert len(a) == len(b)
  for expected, actual in zip(a, b, strict=True):
    assert (
      expected['key'] == actual['key'] and expected['image'] == actual['image']
    )
    np.testing.assert_array_equal(expected['label'], actual['label'])
    assert actual['label'].dtype == np.int32


def encoded(pixels, kind='JPEG', **options):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind, **options)
  return file.getvalue()


@pytest.fixture(scope='module')
def packed(named, tmp_path_factory):  # noqa: F811
  """The ten images of `named`, in three shards, beside their source."""
  source = make_source('folder', path=named['folder'])
  out = tmp_path_factory.mktemp('packed')
  manifest = run(source, out / 'train', shard_count=3)
  return source, out, manifest


def test_what_is_packed_is_read(packed):
  """Bytes, labels, keys, classes, order; in workers, too."""
  source, out, _ = packed
  for path in (out, out / 'train'):
    again = opened(path)
    assert_same(source, again)
    assert again.keys() == source.keys()
    assert again.labels == source.labels
    assert again.class_names == source.class_names == ('a', 'b', 'c')
  message = pickle.dumps(again)
  assert len(message) < 3000
  assert_same(source, pickle.loads(message))
  assert opened(out / 'train', split='').identity == again.identity
  with pytest.raises(UserError, match="no packed data set 'val' in"):
    opened(out, split='val')
  assert sorted(p.name for p in (out / 'train').iterdir()) == [
    *(f'images-{i:05}-of-00003.array_record' for i in range(3)),
    'keys.json.gz',
    'manifest.json',
  ]


def test_manifest(packed):
  """Its figures are those of the pixels."""
  source, out, manifest = packed
  assert manifest == json.loads((out / 'train/manifest.json').read_text())
  pixels = np.stack(
    [np.asarray(Image.open(io.BytesIO(e['image']))) for e in source]
  )
  assert manifest['count'] == 10 and manifest['skipped'] == []
  assert manifest['height'] == {'min': 20, 'median': 20, 'max': 20}
  assert manifest['width'] == {'min': 30, 'median': 30, 'max': 30}
  values = pixels.reshape(-1, 3) / 255
  close(manifest['mean'], values.mean(0), FLOAT64)
  close(manifest['std'], values.std(0), FLOAT64)
  assert [s['count'] for s in manifest['shards']] == [3, 3, 4]
  for shard in manifest['shards']:
    path = out / 'train' / shard['name']
    assert shards.sha256_of_file(path) == shard['sha256']
    assert path.stat().st_size == shard['bytes']


def test_a_run_takes_mean_and_std_from_the_manifest(packed, monkeypatch):
  """And opens the packed images once, for its statistics and for itself."""
  _, out, manifest = packed
  config = tiny.get_config()
  config.data.from_manifest = True
  with pytest.raises(UserError, match=r"data.source is 'scenes'"):
    make_run(config)
  config.data.source, config.data.path = 'arrayrecord', str(out)
  opened, read = [], arrayrecord.read_manifest
  monkeypatch.setattr(
    arrayrecord, 'read_manifest', lambda p: opened.append(p) or read(p)
  )
  run = make_run(config)
  assert run.open_source(list_file='', split='train') is run.source
  assert len(opened) == 1
  assert list(run.method.mean) == manifest['mean']
  assert list(run.method.std) == manifest['std']
  assert json.loads(run.config_json)['data']['mean'] == manifest['mean']
  assert tuple(config.data.mean) == (0.5, 0.5, 0.5)


def test_processes_do_not_matter(packed, tmp_path):
  source, _, manifest = packed
  assert run(source, tmp_path, shard_count=3, processes=3) == manifest


def test_same_batches_from_anywhere(packed, named, tmp_path, monkeypatch):  # noqa: F811
  """Folder, TFDS, ArrayRecord, and Hugging Face where `datasets` is there."""
  _, out, _ = packed
  paths = named | {'arrayrecord': str(out)}
  try:
    monkeypatch.setenv('HF_DATASETS_CACHE', str(tmp_path / 'hf'))
    hugging_face(tmp_path, 10)
    paths['huggingface'] = str(tmp_path / 'saved')
  except pytest.skip.Exception:
    pass
  sampler = masks.make_sampler('release', grid=(4, 6), min_keep=4)
  batches = {}
  for kind, path in paths.items():
    dataset = pipeline.make_dataset(
      make_source(kind, path=path),
      sampler,
      pipeline.Reading(crop.RandomResizedCrop((16, 24))),
      batch_size=8,
      seed=3,
    )
    with loader.prefetch(dataset, lambda batch: batch) as stream:
      batches[kind] = [next(stream) for _ in range(4)]  # into a third epoch
  for kind, stream in batches.items():
    for expected, actual in zip(batches['folder'], stream, strict=True):
      assert (
        expected.keys() == actual.keys() >= {'image', 'label', 'context'}
      ), kind
      for name in expected:
        np.testing.assert_array_equal(
          expected[name], actual[name], err_msg=kind
        )


def test_names_of_any_bytes(tmp_path):
  name = os.fsdecode(b'a/\xff\n.png')
  try:
    write(tmp_path / 'tree', name, 'b/é.png')
  except OSError:
    pytest.skip('file names are UTF-8 here')
  source = make_source('folder', path=str(tmp_path / 'tree'))
  run(source, tmp_path / 'out')
  assert opened(tmp_path / 'out').keys() == source.keys()
  assert_same(source, opened(tmp_path / 'out'))
  assert pack.verify(str(tmp_path / 'out')) == {}


def test_scenes_become_png(tmp_path):
  source = make_source('scenes', flavour='crowd', count=12)
  manifest = run(source, tmp_path / 'out')
  again = opened(tmp_path / 'out')
  assert manifest['labels'] == again.labels == source.labels
  for expected, actual in zip(source, again, strict=False):
    pixels = Image.open(io.BytesIO(actual['image']))
    np.testing.assert_array_equal(np.asarray(pixels), expected['image'])
    np.testing.assert_array_equal(actual['label'], expected['label'])


def test_packed_again(packed, tmp_path):
  """From packed images, and only those of a list."""
  source, out, _ = packed
  (tmp_path / 'list.txt').write_text('c/9.png\n3\n')
  run(opened(out, list_file=str(tmp_path / 'list.txt')), tmp_path / 'out')
  assert_same([source[3], source[9]], list(opened(tmp_path / 'out')))


# ---- encoding ----


def ramp(height, width):
  """Smooth, so that JPEG keeps it nearly."""
  y, x = np.mgrid[:height, :width]
  planes = 255 * y / height, 255 * x / width, 255 - 255 * y / height
  return np.stack(planes, -1).astype(np.uint8)


def test_resize_only_shrinks():
  """The shorter side; what is small enough keeps its bytes."""
  encoding = Encoding(resize=40)
  small = encoded(ramp(40, 90))
  assert encoding(small)[0] is small
  for shape, size in (((80, 100), (50, 40)), ((600, 50), (40, 480))):
    for kind in ('JPEG', 'PNG', 'WEBP', 'TIFF', 'BMP'):
      image, pixels = encoding(encoded(ramp(*shape), kind))
      again = Image.open(io.BytesIO(image))
      assert again.size == pixels.size == size
      assert again.format == ('JPEG' if kind in ('JPEG', 'WEBP') else 'PNG')
      expected = Image.fromarray(ramp(*shape)).resize(size)
      error = np.asarray(again).astype(int) - np.asarray(expected)
      assert np.abs(error).max() < 16 and np.abs(error).mean() < 2


def test_quality_makes_all_jpeg():
  sizes = []
  for quality in (50, 95):
    image, _ = Encoding(quality=quality)(encoded(ramp(80, 90), 'PNG'))
    assert Image.open(io.BytesIO(image)).format == 'JPEG'
    sizes.append(len(image))
  assert sizes[0] < sizes[1]


def test_encoded_again_is_upright_and_grey_stays_grey():
  exif = Image.Exif()
  exif[0x0112] = 6  # a quarter turn
  data = encoded(ramp(80, 100), exif=exif)
  image, _ = Encoding(resize=40)(data)
  again = Image.open(io.BytesIO(image))
  assert again.size == (40, 50) and 0x0112 not in again.getexif()
  expected = decode.decode(data, 3).resize((40, 50))
  assert np.abs(np.asarray(again).astype(int) - np.asarray(expected)).mean() < 3
  for kind in ('JPEG', 'PNG'):
    grey = encoded(ramp(80, 100)[..., 0], kind)
    image, _ = Encoding(resize=40)(grey)
    assert Image.open(io.BytesIO(image)).mode == 'L'


def test_grey_images_have_one_mean(tmp_path):
  images = [encoded(ramp(8, 9)[..., 0], 'PNG'), encoded(ramp(9, 7)[..., 0])]
  manifest = run(ImageList(images), tmp_path / 'out')
  assert manifest['channels'] == len(manifest['mean']) == 1


def test_alpha_is_kept_if_asked(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 4), np.uint8)
  images = [encoded(pixels, 'PNG'), encoded(pixels[..., :3])]
  alpha = Encoding(resize=4, alpha=True)
  manifest = run(ImageList(images), tmp_path / 'out', encoding=alpha)
  assert manifest['channels'] == len(manifest['std']) == 4
  first, second = (
    np.asarray(decode.decode(e['image'], 4)) for e in opened(tmp_path / 'out')
  )
  expected = Image.fromarray(pixels[..., 3]).resize((4, 4), 3)
  assert np.abs(first[..., 3].astype(int) - np.asarray(expected)).max() <= 1
  assert (second[..., 3] == 255).all()
  assert run(ImageList(images), tmp_path / 'rgb')['channels'] == 3
  with pytest.raises(UserError, match='begun with alpha = True'):
    run(ImageList(images), tmp_path / 'out', encoding=Encoding(resize=4))
  with pytest.raises(UserError, match='JPEG has no alpha'):
    Encoding(quality=90, alpha=True)


def test_a_finished_pack_is_looked_at_again(packed, tmp_path):
  source, _, _ = packed
  run(source, tmp_path / 'out', shard_count=3)
  next((tmp_path / 'out').glob('*-00001-*')).unlink()
  with pytest.raises(UserError, match='is missing, and'):
    run(source, tmp_path / 'out', shard_count=3)


def test_arrays_of_many_channels(tmp_path):
  """Packed as they are, resized if asked; trained on as the manifest says."""
  rng = np.random.default_rng(0)
  arrays = [rng.integers(0, 256, (9, 7 + i, 5), np.uint8) for i in range(4)]
  manifest = run(ImageList(arrays), tmp_path / 'out', shard_count=2)
  assert pack.verify(str(tmp_path / 'out')) == {}
  source = opened(tmp_path / 'out')
  for i, array in enumerate(arrays):
    np.testing.assert_array_equal(source[i]['image'], array)
  moments = np.array(
    [[a.mean((0, 1)), (a / 255 * a).mean((0, 1))] for a in arrays]
  )
  mean, square = moments.mean(0) / 255
  close(manifest['mean'], mean, FLOAT64)
  close(manifest['std'], np.sqrt(square - mean**2), FLOAT64)
  config = tiny.get_config()
  with config.unlocked():
    config.data.update(source='arrayrecord', path=str(tmp_path / 'out'))
    config.data.from_manifest = True
  packed_run = make_run(config)
  assert packed_run.image_shape[2] == len(packed_run.method.mean) == 5
  smaller = tmp_path / 'smaller'
  run(ImageList(arrays), smaller, encoding=Encoding(resize=4))
  box = (0, 0, 10, 9)
  expected = crop.crop(arrays[3], box, (4, 4), 'bicubic')
  np.testing.assert_array_equal(opened(smaller)[3]['image'], expected)
  with pytest.raises(UserError, match='5 channels and a JPEG 1 or 3: leave q'):
    run(ImageList(arrays), tmp_path / 'lossy', encoding=Encoding(quality=9))


@pytest.mark.parametrize('count', [1, 2])
def test_other_numbers_of_channels_are_told(tmp_path, count):
  arrays = [np.zeros((5, 5, c), np.uint8) for c in (5, 6)]
  with pytest.raises(UserError, match=r'6 channels .* 5: pack them apart'):
    run(ImageList(arrays), tmp_path / 'out', shard_count=count)


@pytest.mark.parametrize('wrong', [{'resize': -1}, {'quality': 101}])
def test_encodings_that_can_not_be(wrong):
  with pytest.raises(UserError, match=f'{next(iter(wrong))} is .*: take 1'):
    Encoding(**wrong)


# ---- faults ----


def test_bad_images_are_left_out_and_named(tmp_path):
  images = [png(i) for i in range(8)]
  images[2], images[5] = images[2][:400], b'nothing'
  manifest = run(ImageList(images), tmp_path / 'out', shard_count=2)
  assert manifest['count'] == 6
  assert [key for key, _ in manifest['skipped']] == ['2', '5']
  assert [e['key'] for e in opened(tmp_path / 'out')] == list('013467')
  with pytest.raises(UserError, match=r'2 of \d images cannot be read'):
    run(ImageList(images), tmp_path / 'few', max_bad_share=0.001)
  with pytest.raises(UserError, match='packed in part only'):
    opened(tmp_path / 'few')
  with pytest.raises(UserError, match='No image of a test can be read'):
    run(ImageList([b'', b'']), tmp_path / 'none')


def test_stopped_and_started_again(tmp_path):
  """No half shard is there, what was finished is kept, the end is the same."""
  images = [png(i) for i in range(20)]
  expected = run(ImageList(images), tmp_path / 'straight', shard_count=4)
  out, gate = tmp_path / 'out', tmp_path / 'gate'
  source = BlockedList(images, gate)
  third = out / expected['shards'][1]['name']

  def interrupt():
    while not third.exists():
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
    # It waits for the image that is being read; on a busy machine it takes a
    # while until the signal is seen.
    time.sleep(2)
    gate.touch()

  thread = threading.Thread(target=interrupt)
  thread.start()
  with pytest.raises(KeyboardInterrupt):
    run(source, out, shard_count=4)
  thread.join()
  finished = sorted(p.name for p in out.glob('*.*'))
  assert finished == [s['name'] for s in expected['shards'][:2]]
  times = [(out / name).stat().st_mtime_ns for name in finished]
  with pytest.raises(UserError, match='packed in part only'):
    opened(out)
  # One that was killed may leave this; and a disk may lose what it was given.
  (out / f'{finished[1]}.x.tmp').touch()
  flip(out / finished[0])
  assert run(source, out, shard_count=4) == expected
  assert (out / finished[1]).stat().st_mtime_ns == times[1]
  assert (out / finished[0]).stat().st_mtime_ns > times[0]
  assert pack.verify(str(out)) == {} and not list(out.glob('**/*.tmp'))
  assert run(source, out, shard_count=4) == expected  # nothing is to be done


def test_sigterm_is_told(tmp_path):
  """Of a process of its own, with a status that says it was stopped."""
  write(tmp_path / 'tree', '0.png')
  for i in range(1, 9000):  # which take seconds
    os.link(tmp_path / 'tree/0.png', tmp_path / f'tree/{i}.png')
  out = tmp_path / 'out'
  module = sys.executable, '-m', 'ijepa_jax.data.pack'
  options = '--shards=2', '--processes=1'
  process = subprocess.Popen(
    [*module, f'folder:{tmp_path}/tree', str(out), *options],
    stderr=subprocess.PIPE,
    text=True,
  )
  while not list(out.glob('*.tmp')):
    assert process.poll() is None
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  _, printed = process.communicate(timeout=60)
  assert process.returncode == 143
  assert 'the same command goes on from what is saved' in printed
  assert 'Traceback' not in printed
  assert [p.name for p in out.iterdir()] == ['unfinished']


def test_a_process_that_dies_is_told(tmp_path):
  with pytest.raises(UserError, match='A process died'):
    source = DeadlyList([png(i) for i in range(9)])
    run(source, tmp_path / 'out', shard_count=1)


def test_other_files_are_not_touched(packed, tmp_path):
  source, out, _ = packed
  (tmp_path / 'mine').touch()
  with pytest.raises(UserError, match='has other files: take a new'):
    run(source, tmp_path)
  with pytest.raises(UserError, match='begun with shards = 3, and now it is'):
    run(source, out / 'train', shard_count=2)
  with pytest.raises(UserError, match='those of a test are others'):
    run(ImageList([png(0)]), out / 'train', shard_count=1)
  with pytest.raises(UserError, match='no folder here: pack into one'):
    run(source, 's3://bucket/x')
  with pytest.raises(UserError, match='processes is 0: take 1'):
    run(source, tmp_path / 'x', processes=0)


def flip(path, at=0.5):
  data = bytearray(path.read_bytes())
  data[int(len(data) * at)] ^= 255
  path.write_bytes(data)


def test_verify(packed, tmp_path, capsys):
  """Each kind of fault in words, and a status for scripts."""
  source, _, _ = packed
  out = tmp_path / 'out'
  run(source, out, shard_count=3)
  command = ['--verify', str(out), '--processes=1']
  assert __main__.main(command) == 0
  assert 'is whole: every image can be read' in capsys.readouterr().out
  first, second, third = sorted(out.glob('*.array_record'))
  content = third.read_bytes()
  flip(first, 0.02)  # of 64 KiB, mostly of nothing
  second.unlink()
  assert __main__.main(command) == 1
  printed = capsys.readouterr().out
  assert '1 not of the SHA-256 in the manifest: images-00000' in printed
  assert '1 missing: images-00001-of-00003.array_record' in printed
  assert 'no longer readable: folder/a/' in printed
  manifest = json.loads((out / 'manifest.json').read_text())
  manifest['labels'], manifest['count'] = {'label': 2}, 11
  (out / 'manifest.json').write_text(json.dumps(manifest))
  third.write_bytes(content[: len(content) // 2])
  assert __main__.main(command) == 1
  printed = capsys.readouterr().out
  assert '1 not as many as the manifest says: 10 keys' in printed
  third.write_bytes(content)
  assert __main__.main(command) == 1
  assert '2 of a label out of range: folder/c/8.png' in capsys.readouterr().out
  with pytest.raises(SystemExit, match='There is no packed data set'):
    __main__.main(['--verify', str(tmp_path)])


def test_a_damaged_record_is_a_bad_image(packed, tmp_path):
  """Found by its checksum, and told as what the pipeline replaces."""
  source, _, _ = packed
  run(source, tmp_path / 'out')
  (path,) = (tmp_path / 'out').glob('*.array_record')
  flip(path, 0.02)
  again = opened(tmp_path / 'out')
  equal = []
  for index in range(len(again)):
    try:
      equal.append(again[index]['image'] == source[index]['image'])
    except OSError as error:
      assert f'record {index} of {tmp_path}' in str(error)
      equal.append(None)
  assert equal.count(None) == 1 and equal.count(True) == 9
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(UserError, match='bytes were packed: copy it again'):
    opened(tmp_path / 'out')


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{', 'manifest.json is damaged'),
    ('{"format": "ijepa_jax"}', 'manifest.json is damaged'),
    ('{"format": "ijepa_jax", "version": 9}', 'version 9: this code reads'),
  ],
)
def test_manifests_that_can_not_be_read(tmp_path, text, message):
  (tmp_path / 'manifest.json').write_text(text)
  with pytest.raises(UserError, match=message):
    opened(tmp_path)


def test_command_line(named, tmp_path, capsys):  # noqa: F811
  out = str(tmp_path / 'out')
  assert __main__.main([f'tfds:{named["tfds"]}', out, '--processes=2']) == 0
  printed = capsys.readouterr().out
  assert '10 images (labels label: 3) in 1 shards' in printed
  assert 'mean (0.' in printed
  assert len(opened(out)) == 10
  with pytest.raises(SystemExit, match="data source is 'nothing'"):
    __main__.main(['nothing:x', out])
  with pytest.raises(SystemExit, match='as in folder:images'):
    __main__.main(['images', out])
  with pytest.raises(SystemExit, match='2'):
    __main__.main([out])


# ---- buckets ----


@pytest.fixture
def remote(packed):
  """The packed images in a bucket that is in memory."""
  _, out, _ = packed
  files = fsspec.filesystem('memory')
  files.put(str(out), '/bucket/images', recursive=True)
  yield files
  files.rm('/bucket', recursive=True)


def test_a_bucket_is_copied_once(packed, remote, cache_folder):  # noqa: F811
  source, out, _ = packed
  first = opened('memory://bucket/images/')
  assert_same(source, first)
  assert first.keys() == source.keys()
  assert first.listing == opened(out).listing
  for name in remote.glob('/bucket/images/train/*.array_record'):
    remote.rm(name)
  (cache_folder / 'shards/left.tmp').touch()
  assert_same(source, opened('memory://bucket/images/train', split=''))
  copies = sorted((cache_folder / 'shards').glob('*.array_record'))
  assert len(list((cache_folder / 'shards').iterdir())) == 3
  remote.put(str(out / 'train'), '/bucket/images/', recursive=True)
  copies[0].write_bytes(copies[0].read_bytes()[:-1])
  assert_same(source, opened('memory://bucket/images/'))


def test_buckets_that_can_not_be_read(packed, remote, monkeypatch):
  """Each told in a sentence; no damaged copy stays."""
  path = 'memory://bucket/images'
  with pytest.raises(UserError, match='no packed data set in memory://none'):
    opened('memory://none')
  with pytest.raises(UserError, match='nosuch://bucket'):
    opened('nosuch://bucket')
  free = type('', (), {'free': 1000})
  with monkeypatch.context() as patch:
    patch.setattr(sources_remote.shutil, 'disk_usage', lambda _: free)
    with pytest.raises(UserError, match='set IJEPA_JAX_CACHE to a larger'):
      opened(path)
  name = remote.glob('/bucket/images/train/*.array_record')[0]
  content = remote.cat(name)
  remote.pipe(name, content[:-9])
  with pytest.raises(UserError, match='its SHA-256 is not the one'):
    opened(path)
  remote.rm(name)
  with pytest.raises(UserError, match='array_record cannot be read'):
    opened(path)
  remote.pipe(name, content)
  assert len(opened(path)) == 10


def test_format_is_documented():
  """As the module says: three entries of MessagePack."""
  record = arrayrecord.to_record(b'\x00\xff', np.array([3, -1]), 'a/é')
  assert record == (
    b'\x83\xa5image\xc4\x02\x00\xff\xa5label\x92\x03\xff\xa3key\xa4a/\xc3\xa9'
  )


def test_large_images(tmp_path, capsys):
  """Are left out, with the knob's name, or taken; by name, never by size."""
  write(tmp_path / 'images', *(f'{i}.png' for i in range(3)))
  (tmp_path / 'images/1.png').write_bytes(png(1, 40, 50))
  for limit, count in ((1999, 2), (2000, 3), (0, 3)):
    out = tmp_path / f'out{limit}'
    arguments = [f'folder:{tmp_path}/images', str(out), f'--max_pixels={limit}']
    assert __main__.main([*arguments, '--processes=1', '--shards=1']) == 0
    manifest = arrayrecord.read_manifest(str(out))
    assert manifest['count'] == count
  (skipped,) = arrayrecord.read_manifest(str(tmp_path / 'out1999'))['skipped']
  assert skipped[1] == '50 x 40 pixels are more than max_pixels = 1999'
  capsys.readouterr()
  with pytest.raises(SystemExit, match='--split is val'):
    __main__.main(['scenes', 'x', '--split=val'])
  with pytest.raises(SystemExit, match='--count is 2'):
    __main__.main([f'folder:{tmp_path}/images', 'x', '--count=2'])


def test_shards_exchanged_in_place(packed, tmp_path):
  """Are others, also with the sizes and times that they had."""
  _, out, _ = packed
  shutil.copytree(out, tmp_path / 'x')
  before = opened(tmp_path / 'x')
  first, second = sorted((tmp_path / 'x/train').glob('*.array_record'))[:2]
  assert before.identity == opened(tmp_path / 'x').identity
  first.rename(tmp_path / 'one')
  second.rename(first)
  (tmp_path / 'one').rename(second)
  with contextlib.suppress(ValueError):  # where their sizes differ
    after = opened(tmp_path / 'x')
    assert after.identity != before.identity


def test_one_packed_in_another(packed, tmp_path):
  """Which of the two is meant is not guessed."""
  _, out, _ = packed
  shutil.copytree(out / 'train', tmp_path / 'x')
  shutil.copytree(out / 'train', tmp_path / 'x/train')
  with pytest.raises(UserError, match="holds another one, 'train': for the"):
    opened(tmp_path / 'x')
  assert len(opened(tmp_path / 'x', split='')) == 10


def test_two_at_once(tmp_path):
  """The second is refused, and touches nothing of the first."""
  out = tmp_path / 'packed'
  with locks.only_writer(out, beside=True):
    with pytest.raises(UserError, match=f'process {os.getpid()} .* {out}'):
      run(ImageList([encoded(np.zeros((8, 8, 3), np.uint8))]), out)
    assert not out.exists()
