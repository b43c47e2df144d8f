"""The pipeline: the same batches however they are made, and good crops."""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import multiprocessing
import os
import pathlib
import subprocess
import sys
import threading
import time

import grain
import numpy as np
import pytest
from PIL import Image

from ijepa_jax.data import decode, loader, pipeline, sources
from ijepa_jax.data import workers as data_workers
from ijepa_jax.data.transforms.crop import RandomResizedCrop
from ijepa_jax.errors import UserError
from ijepa_jax.methods import masks
from tests.close import close
from tests.data.sources.test_sources import png, prepared, write  # noqa: F401

SAMPLER = masks.make_sampler('release', grid=(4, 6), min_keep=4)


@dataclasses.dataclass
class Arrays:
  """`n` noisy pictures whose first byte tells their index."""

  n: int
  channels: int = 3

  def __post_init__(self):
    self.labels = {'index': self.n}

  def __len__(self):
    return self.n

  def __getitem__(self, index):
    shape = (24, 36, self.channels)
    image = np.random.default_rng(index).integers(0, 256, shape, np.uint8)
    label = np.array([index], np.int32)
    return {'image': image, 'label': label, 'key': f'array/{index}'}


class Encoded(Arrays):
  """The same as PNG, or JPEG of a quality; some are cut short or gone."""

  def __init__(self, n, cut=(), gone=(), quality=0):
    super().__init__(n)
    self.cut, self.gone, self.quality = cut, gone, quality

  def __getitem__(self, index):
    if index in self.gone:
      raise FileNotFoundError(2, 'No such file', f'gone/{index}')
    element, file = super().__getitem__(index), io.BytesIO()
    kind = {'format': 'JPEG', 'quality': self.quality}
    kind = kind if self.quality else {'format': 'PNG'}
    Image.fromarray(element['image']).save(file, **kind)
    image = file.getvalue()
    return element | {'image': image[:500] if index in self.cut else image}


CROP = 'size', 'scale', 'ratio', 'flip'  # go to the crop
READING = 'channels', 'fast', 'workers', 'max_bad_share'


def make(source, part=0, parts=1, **kwargs):
  kwargs = {'batch_size': 8, 'seed': 5, 'size': (16, 24)} | kwargs
  crop = {k: kwargs.pop(k) for k in CROP if k in kwargs}
  reading = {k: kwargs.pop(k) for k in READING if k in kwargs}
  return pipeline.make_dataset(
    source,
    SAMPLER,
    pipeline.Reading(RandomResizedCrop(**crop), **reading),
    shard=grain.sharding.ShardOptions(part, parts),
    **kwargs,
  )


def take(source, count, **kwargs):
  with contextlib.closing(iter(make(source, **kwargs))) as batches:
    return list(itertools.islice(batches, count))


def assert_same(expected, actual):
  assert len(expected) == len(actual)
  for batch, counterpart in zip(expected, actual, strict=True):
    assert batch.keys() == counterpart.keys()
    for key, value in batch.items():
      assert value.dtype == counterpart[key].dtype
      np.testing.assert_array_equal(value, counterpart[key])


# ---- the stream ----


def test_what_a_batch_is():
  """Shapes and types as promised; masks those of (seed, step, global row)."""
  for step, batch in enumerate(take(Arrays(300), 6)):
    kc, kt = SAMPLER.shape(5, step)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
      'image': ((8, 16, 24, 3), 'uint8'),
      'label': ((8, 1), 'int32'),
      'context': ((8, 1, kc), 'int32'),
      'targets': ((8, 4, kt), 'int32'),
    }
    for row in range(8):
      context, targets = SAMPLER(5, step, row)
      np.testing.assert_array_equal(batch['context'][row], context)
      np.testing.assert_array_equal(batch['targets'][row], targets)


@pytest.mark.parametrize(
  ('flip', 'digest'), [(False, '6f34b573b255785c'), (True, 'f8d7c95ef81f9131')]
)
def test_batches_stay_what_they_were(flip, digest):
  """Order, places, flips and masks: since before there were colours, reductions
  and `fast`. The crops are of the final size, as Pillow's resize has changed.
  """
  same_size = {'scale': (4 / 9, 4 / 9), 'ratio': (1.5, 1.5), 'flip': flip}
  for source in (Encoded(20), *([] if flip else [Arrays(20)])):
    content = hashlib.sha256()
    for batch in take(source, 3, **same_size):
      for key in sorted(batch):
        content.update(
          f'{key}{batch[key].shape}'.encode() + batch[key].tobytes()
        )
    assert content.hexdigest()[:16] == digest


def test_process_count_changes_nothing():
  """2 and 4 processes hold contiguous rows of the very same batches."""
  complete = take(Arrays(300), 5)
  for count in (2, 4):
    parts = [take(Arrays(300), 5, part=i, parts=count) for i in range(count)]
    joined = [
      {k: np.concatenate([p[step][k] for p in parts]) for k in complete[step]}
      for step in range(5)
    ]
    assert_same(complete, joined)


def test_worker_count_changes_nothing(monkeypatch):
  """Nor do threads, nor bad images, nor where the stream starts."""
  source = Encoded(300, cut=range(0, 300, 20), gone=range(5, 300, 20))
  batches = take(source, 7, max_bad_share=1)
  for cores in (1, 2, 4):
    monkeypatch.setattr(data_workers, 'cores', lambda cores=cores: cores)
    assert_same(batches, take(source, 7, max_bad_share=1))
  assert_same(batches[2:], take(source, 5, max_bad_share=1, start=2, workers=2))


def test_a_stopped_job_is_not_said_to_leak():
  """Python's own process removes the memory, and needs no warning for it."""
  script = (
    'import os\n'
    'from multiprocessing import shared_memory\n'
    'from ijepa_jax.data import workers\n'
    'workers.hush_resource_tracker()\n'
    'memory = shared_memory.SharedMemory(create=True, size=8)\n'
    'print(memory.name, flush=True)\n'
    'os._exit(0)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', script], capture_output=True, text=True
  )
  assert not done.stderr
  assert not (pathlib.Path('/dev/shm') / done.stdout.strip()).exists()


def test_processes_with_workers_change_nothing():
  """Two hosts, one with a worker, resumed: rows of the very same batches."""
  complete = take(Encoded(40), 5)
  settings = {'start': 3, 'parts': 2}
  parts = [
    take(Encoded(40), 2, part=i, workers=i, **settings) for i in range(2)
  ]
  for step in range(2):
    joined = {
      k: np.concatenate([p[step][k] for p in parts]) for k in complete[0]
    }
    assert_same([complete[3 + step]], [joined])


@pytest.mark.parametrize('start', [1, 3, 10**6])
def test_resuming_is_slicing(start):
  """Also far out, where it costs no more."""
  source = Arrays(300)
  if start < 10:
    assert_same(take(source, start + 3)[start:], take(source, 3, start=start))
  else:
    before = take(source, 3, start=start - 2)
    assert_same(before[2:], take(source, 1, start=start))


def test_every_image_once_an_epoch():
  """Epochs of 13 run on across batches of 8, each in an order of its own."""
  batches = take(Arrays(13), 13)
  epochs = np.concatenate([b['label'][:, 0] for b in batches]).reshape(8, 13)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(13), (8, 1)))
  assert len({tuple(epoch) for epoch in epochs}) == 8


def test_seeds_share_nothing():
  """Neither orders, nor an order shifted by an epoch, nor crops."""
  orders = []
  for seed in (0, 1, 2):
    labels = [b['label'][:, 0] for b in take(Arrays(8), 2, seed=seed)]
    orders += [tuple(x) for x in labels]
  assert len(set(orders)) == 6
  first, second = (take(Arrays(1), 1, seed=s)[0]['image'] for s in (0, 1))
  assert (first != second).any(axis=(1, 2, 3)).all()
  assert len(np.unique(first, axis=0)) == 8  # of the one image, eight crops


def test_one_image_is_enough():
  assert (take(Arrays(1), 2)[1]['label'] == 0).all()


def test_batches_of_one_image():
  """They are batches still: rows of those of two, and of one pass."""
  alone = take(Encoded(5), 6, batch_size=1)
  assert [b['image'].shape for b in alone] == 6 * [(1, 16, 24, 3)]
  parts = [take(Encoded(5), 3, batch_size=2, part=i, parts=2) for i in range(2)]
  pairs = take(Encoded(5), 3, batch_size=2)
  for step, pair in enumerate(pairs):
    joined = {k: np.concatenate([p[step][k] for p in parts]) for k in pair}
    assert_same([pair], [joined])
  once = take(Encoded(5), 9, batch_size=1, one_pass=True)
  assert [b['label'].tolist() for b in once] == [[[i]] for i in range(5)]


@pytest.mark.parametrize('workers', [0, 1])
def test_the_most_pixels_of_an_image(workers, monkeypatch, caplog):
  """Are as many in workers; encoded or not."""
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)
  decode.limit_pixels(24 * 36 - 1)
  with pytest.raises(UserError, match=r'36 x 24 pixels are more .* = 863'):
    take(Encoded(9), 1)
  # Pillow's own refusal comes at twice that.
  decode.limit_pixels(24 * 36)
  dataset = make(Encoded(9), workers=workers)
  if workers:  # they have a limit of their own
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
  before = Image.MAX_IMAGE_PIXELS
  with contextlib.closing(iter(dataset)) as batches:
    assert next(batches)['image'].shape == (8, 16, 24, 3)
  assert before == Image.MAX_IMAGE_PIXELS
  assert not caplog.text


@pytest.mark.parametrize('channels', [1, 3, 4, 5])
def test_channels_of_arrays(channels):
  (batch,) = take(Arrays(9, channels), 1, channels=channels)
  assert batch['image'].shape == (8, 16, 24, channels)
  message = r'array/0 has \d channels, and 2 are wanted: set data\.ch'
  with pytest.raises(UserError, match=message):
    make(Arrays(9, channels), channels=2)


def test_encoded_images_turn_grey_on_demand():
  grey, colour = (
    take(Encoded(9), 1, channels=c, size=(8, 12))[0]['image'] for c in (1, 3)
  )
  assert grey.shape == (8, 8, 12, 1)
  luma = colour @ np.array([0.299, 0.587, 0.114])
  close(grey[..., 0], luma, within=2)


@pytest.mark.parametrize('channels', [0, 5])
def test_channels_that_no_file_has(channels):
  with pytest.raises(UserError, match=r'channels is \d: encoded images have 1'):
    make(Encoded(9), channels=channels)


def test_npy_files_are_trained_on(tmp_path, caplog):
  """Of as many channels as they have; a bad one is replaced."""
  for i in range(8):
    np.save(tmp_path / f'{i}.npy', Arrays(8, 13)[i]['image'])
  (tmp_path / '5.npy').write_bytes((tmp_path / '5.npy').read_bytes()[:-1])
  source = sources.make_source('folder', path=str(tmp_path))
  (batch,) = take(source, 1, channels=13)
  assert batch['image'].shape == (8, 16, 24, 13)
  assert '5.npy: ' in caplog.text
  with pytest.raises(UserError, match=r'0\.npy has 13 channels, and 3 are'):
    make(source)


def test_folder_and_tfds_are_alike(prepared, tmp_path):  # noqa: F811
  """The same ten files from either give the same batches."""
  write(tmp_path, *(f'{i}.png' for i in range(10)))
  folder = sources.make_source('folder', path=str(tmp_path))
  tfds = sources.make_source('tfds', path=str(prepared))
  from_folder, from_tfds = take(folder, 3), take(tfds, 3)
  assert [b.pop('label').shape for b in from_folder] == 3 * [(8, 0)]
  assert [b.pop('label').shape for b in from_tfds] == 3 * [(8, 1)]
  assert_same(from_folder, from_tfds)


@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    ({'parts': 3}, 'batch_size of 8 does not divide over 3 processes'),
    ({'seed': -1}, r'seed is -1: take one from 0'),
    ({'workers': -1}, r'data\.workers is -1: take 0'),
    ({'size': (0, 3)}, r'image_size is \(0, 3\): take a height'),
    ({'scale': (0.5, 0.3)}, r'crop_scale is \(0\.5, 0\.3\): take two'),
    ({'ratio': (0, 1)}, r'crop_ratio is \(0, 1\): take two'),
    pytest.param(
      {'workers': 2, 'size': (10**6, 10**6)},
      r'2 workers need \d+ MiB of shared memory',
      marks=pytest.mark.skipif(not os.path.isdir('/dev/shm'), reason='Linux'),
    ),
  ],
)
def test_mistakes_are_told(wrong, message):
  with pytest.raises(UserError, match=message):
    make(Arrays(9), **wrong)


def test_fast_needs_its_extra(monkeypatch):
  monkeypatch.setattr(
    decode, 'missing_fast_packages', lambda: ['some', 'other']
  )
  with pytest.raises(
    UserError, match=r'fast needs some and other: pip install'
  ):
    make(Encoded(9), fast=True)


def test_fast_is_of_encoded_images(monkeypatch, caplog):
  monkeypatch.setattr(decode, 'missing_fast_packages', lambda: ['some'])
  make(Arrays(9), fast=True)
  assert 'data.fast is passed over' in caplog.text


def test_fast_batches_are_near():
  """Of JPEGs and of others; with the same masks and boxes."""
  for name in decode.FAST_PACKAGES:
    pytest.importorskip(name)
  for quality in (0, 90):
    exact, fast_batches = (
      take(Encoded(40, quality=quality), 3, fast=f) for f in (0, 1)
    )
    for a, b in zip(exact, fast_batches, strict=True):
      apart = abs(a.pop('image').astype(int) - b.pop('image'))
      assert apart.any() and apart.max() == 1
    assert_same(exact, fast_batches)


def test_a_source_without_an_image_is_told():
  message = r'None of the first 101 images can be read: .*gone/0'
  with pytest.raises(UserError, match=message):
    make(Encoded(300, gone=range(300)))


def test_an_empty_source_is_told():
  with pytest.raises(UserError, match='source is empty'):
    make(Arrays(0))


def test_flips():
  """Half of the images; the boxes stay those without."""
  straight, maybe = (
    take(Arrays(300), 25, flip=flip, size=(4, 6)) for flip in (False, True)
  )
  a, b = (np.concatenate([x['image'] for x in s]) for s in (straight, maybe))
  same = (a == b).all(axis=(1, 2, 3))
  assert (same | (a[:, :, ::-1] == b).all(axis=(1, 2, 3))).all()
  assert 70 < same.sum() < 130


# ---- bad images ----


def test_bad_images_are_replaced_and_named(caplog):
  """By the next good one of the source; once in the log, with the reason."""
  source = Encoded(12, cut=[3, 4], gone=[11])
  with caplog.at_level('WARNING'):
    batches = take(source, 6, max_bad_share=1)  # four epochs
  labels = np.concatenate([b['label'][:, 0] for b in batches])
  counts = np.bincount(labels, minlength=12)
  assert counts.tolist() == [8, 4, 4, 0, 0, 12, 4, 4, 4, 4, 4, 0]
  assert all(isinstance(v, np.ndarray) for b in batches for v in b.values())
  messages = sorted(r.getMessage() for r in caplog.records)
  assert len(messages) == 3
  assert messages[0].startswith('Took the image after array/3: OSError: ')
  assert messages[1].startswith('Took the image after array/4: OSError: ')
  assert messages[2].startswith('Took the image after gone/11: ')


def test_too_many_bad_images_stop_the_run():
  """More than the share of those seen, or of a thousand in the beginning."""
  source = Encoded(50, gone=[7])
  with pytest.raises(UserError, match=r'21 of 1\d\d\d .*\(gone/7\), .*0\.02'):
    take(source, 500, max_bad_share=0.02)
  take(source, 100, max_bad_share=0.021)


def test_no_good_image_near():
  """Damaged neighbours are passed over, and told when they have no end."""
  assert take(Encoded(50, gone=range(9, 40)), 2, max_bad_share=1)
  source = Encoded(300, gone=range(20, 200))
  with pytest.raises(UserError, match=r'101 images in a row .* gone/\d+'):
    take(source, 500, max_bad_share=1)


# ---- ahead of the loop ----


def running():
  return [t for t in threading.enumerate() if 'thread-prefetch' in t.name]


def test_prefetch_puts_in_order_and_ahead():
  made = []

  def put(batch):
    made.append(len(made))
    return made[-1], batch['image']

  expected = take(Arrays(300), 4)
  with loader.prefetch(make(Arrays(300)), put, depth=2) as batches:
    for step in range(4):
      at, image = next(batches)
      assert at == step
      np.testing.assert_array_equal(image, expected[step]['image'])
    deadline = time.monotonic() + 10
    while len(made) < 6 and time.monotonic() < deadline:
      time.sleep(0.01)
    time.sleep(0.1)
    assert 6 <= len(made) <= 7  # two in the queue, one waiting to get in
  assert not running()


def test_prefetch_passes_on_what_goes_wrong():
  def fail(batch):
    raise ZeroDivisionError('put')

  with (
    pytest.raises(ZeroDivisionError, match='put'),
    loader.prefetch(make(Arrays(9)), fail) as batches,
  ):
    next(batches)
  source = Encoded(300, gone=range(20, 200))
  with (
    pytest.raises(UserError, match='in a row'),
    loader.prefetch(make(source, max_bad_share=1), lambda b: b) as batches,
  ):
    for _ in range(100):
      next(batches)
  assert not running()


def test_a_killed_worker_is_told():
  """In words, within seconds; and the others end with it."""
  with loader.prefetch(make(Encoded(9), workers=2), lambda b: b) as batches:
    next(batches), next(batches)
    children = multiprocessing.active_children()
    assert len(children) == 2
    for child in children:
      # In a group of its own: what interrupts the run reaches the run alone.
      assert os.getpgid(child.pid) == child.pid
    children[-1].kill()
    killed = time.monotonic()
    with pytest.raises(UserError, match=r'died with exit code -9: -9 is most'):
      for _ in range(100):
        next(batches)
    assert time.monotonic() - killed < 10  # one or two of them
  assert not running() and not multiprocessing.active_children()


def test_workers_die_with_a_killed_run():
  """None is left waiting to hand out a batch."""
  code = (
    'import sys, time; sys.path.insert(0, ".");'
    'from absl import flags; flags.FLAGS.mark_as_parsed();'
    'from tests.data import test_pipeline as t;'
    'i = iter(t.make(t.Arrays(9), workers=1)); next(i);'
    'print("up", flush=True); time.sleep(60)'
  )
  run = subprocess.Popen(
    [sys.executable, '-c', code],
    cwd=pathlib.Path(__file__).parents[2],
    stdout=subprocess.PIPE,
  )
  assert run.stdout.readline() == b'up\n'
  run.kill()
  # Its end comes when the last that holds it, the worker, is gone.
  run.communicate(timeout=20)
