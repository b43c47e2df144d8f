"""Damaged files: an image of the right shape or BadImage, never anything else.

Ten thousand of them, with the memory that they take:

    python -m pytest tests/data/test_damaged.py -m slow -s
"""

import gc
import struct
import time
import zlib
from typing import ClassVar

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ijepa_jax.data import decode, loader, pipeline
from ijepa_jax.data.transforms.crop import CenterCrop, RandomResizedCrop, Resize
from tests.data.test_decode import PHOTOS, encoded

# Pytest undoes what data/decode.py has Pillow told.
pytestmark = pytest.mark.filterwarnings('ignore::Warning')
CROPS = (
  RandomResizedCrop((16, 24)),
  RandomResizedCrop((4, 4)),  # of which JPEGs are reduced
  CenterCrop((16, 16), 18),
  Resize((16, 24)),
)
SIZE = 90, 70


def originals() -> list[bytes]:
  """Sound files of every kind, with all that decoders look into."""
  photo = Image.open(PHOTOS[0]).resize(SIZE)
  exif = Image.Exif()
  exif[0x0112], exif[0x010E] = 6, 'words'
  frames = {'save_all': True, 'append_images': [photo.rotate(90)] * 2}
  sixteen = Image.fromarray(np.asarray(photo.convert('L')) * np.uint16(257))
  transparent = {'transparency': bytes(range(100))}
  return [
    encoded(photo, 'JPEG', exif=exif),
    encoded(photo, 'JPEG', progressive=True, subsampling=0, comment=b'words'),
    encoded(photo, 'JPEG', restart_marker_rows=1, icc_profile=bytes(300)),
    encoded(photo.convert('L'), 'JPEG'),
    encoded(photo.convert('CMYK'), 'JPEG'),
    encoded(photo, 'MPO', save_all=True, append_images=[photo]),
    encoded(photo, 'PNG', exif=exif),
    encoded(photo, 'PNG', **frames),
    encoded(photo.quantize(), 'PNG', **transparent),
    encoded(photo.convert('1'), 'PNG'),
    encoded(sixteen, 'PNG'),
    encoded(photo, 'WEBP', exif=exif),
    encoded(photo.convert('RGBA'), 'WEBP', lossless=True),
    encoded(photo, 'WEBP', **frames),
    encoded(photo, 'BMP'),
    encoded(photo.quantize(), 'BMP'),
    encoded(photo, 'GIF', **frames),
    encoded(photo.quantize(), 'GIF', transparency=3, comment=b'words'),
    encoded(photo, 'PPM'),
    encoded(sixteen.convert('I'), 'PPM'),
    b'P3 9 7 255\n' + b' '.join(b'%d' % i for i in range(189)),
    encoded(photo, 'TIFF'),
    encoded(sixteen, 'TIFF'),
    encoded(photo.convert('RGBA'), 'TIFF', compression='tiff_lzw'),
    encoded(photo, 'TIFF', compression='tiff_adobe_deflate', exif=exif),
    encoded(photo, 'TIFF', compression='jpeg', **frames),
    encoded(photo.convert('1'), 'TIFF', compression='group4'),
    encoded(photo.convert('CMYK'), 'TIFF'),
    encoded(photo.convert('F'), 'TIFF'),
    # Bombs: a few kilobytes of many pixels.
    encoded(Image.new('1', (12_000, 12_000)), 'PNG'),
    encoded(Image.new('1', (12_000, 12_000)), 'TIFF', compression='group4'),
    # Wrong endings: what stands in image folders and is none.
    b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n',
    b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    b'<!DOCTYPE html><title>404 Not Found</title>',
    encoded(photo, 'ICO'),
    encoded(photo, 'TGA'),
    encoded(photo, 'PDF'),
    b'version https://git-lfs.github.com/spec/v1\nsize 12345\n',
    zlib.compress(bytes(10**6)),
    b'',
  ]


ORIGINALS = originals()


DAMAGES = 'flip', 'set', 'number', 'cut', 'end', 'double', 'other'


@st.composite
def damaged(draw) -> bytes:
  """A file with bits turned, parts cut out, doubled or of another file."""
  file = bytearray(draw(st.sampled_from(ORIGINALS)))

  def place():
    # Half of them in the head, where sizes and tables stand.
    end = len(file) if draw(st.booleans()) else min(len(file), 64)
    return draw(st.integers(0, end))

  for _ in range(draw(st.integers(0, 4))):
    start, stop = sorted((place(), place()))
    kind = draw(st.sampled_from(DAMAGES))
    if kind == 'flip' and start < len(file):
      file[start] ^= 1 << draw(st.integers(0, 7))
    elif kind == 'set' and start < len(file):
      file[start] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF]))
    elif kind == 'number':  # such as a size
      number = draw(st.sampled_from([0, 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1]))
      number = struct.pack(draw(st.sampled_from(['<L', '>L'])), number)
      file[start : start + 4] = number[: draw(st.sampled_from([2, 4]))]
    elif kind == 'cut':
      del file[start:stop]
    elif kind == 'end':
      del file[start:]
    elif kind == 'double':
      file[stop:stop] = file[start:stop]
    elif kind == 'other':
      file[start:] = draw(st.sampled_from(ORIGINALS))[start:]
  return bytes(file)


def seconds(file: bytes, channels: int, crop: int, seed: int, fast=False):
  """Decodes and crops as the pipeline does -> whether it is an image, and the
  seconds that it took.
  """
  begin, transform = time.process_time(), CROPS[crop]
  try:
    image = decode.Encoded(file, channels, fast)
    pixels = transform(image, np.random.default_rng(seed))
  except decode.BadImage as error:
    assert str(error)
    return False, time.process_time() - begin
  assert pixels.shape == (*transform.size, channels)
  assert pixels.dtype == np.uint8
  return True, time.process_time() - begin


anything = given(
  damaged(), st.integers(1, 4), st.integers(0, 3), st.integers(0, 9)
)


def quickly(count):
  return settings(
    max_examples=count,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
  )


def test_originals():
  """All but those that are no images, and floats, are decoded."""
  good = [seconds(file, 3, 0, 0)[0] for file in ORIGINALS]
  assert good == [True] * 28 + [False] * (len(ORIGINALS) - 28)


@quickly(400)
@anything
def test_damaged(file, channels, crop, seed):
  seconds(file, channels, crop, seed)


@quickly(400)
@given(st.data())
def test_damaged_arrays(data):
  """Whatever their header says."""
  header = data.draw(
    st.text("{}()[]:, '0123456789descrfortanhupTFlV|u1<>\n", max_size=99)
    | st.builds(
      "{{'descr': '{}', 'fortran_order': {}, 'shape': {}, }}\n".format,
      st.sampled_from(['|u1', '<u2', '|V0', '|O', '<f8', 'M8']),
      st.sampled_from([True, False, 0]),
      st.lists(st.integers(-1, 5) | st.just(2**40), max_size=4).map(tuple),
    )
  )
  length = data.draw(st.just(len(header)) | st.integers(0, 99))
  version = data.draw(st.integers(0, 4))
  size = struct.pack('<H' if version < 2 else '<L', length)
  head = decode.NPY_MAGIC + bytes([version, 0]) + size + header.encode()
  try:
    pixels = decode.decode_npy(head + bytes(data.draw(st.integers(0, 200))))
  except decode.BadImage as error:
    assert str(error)
  else:
    assert pixels.ndim == 3 and pixels.dtype == np.uint8 and pixels.size


class Mixed:
  """Every other image is damaged."""

  labels: ClassVar = {}

  def __init__(self, files):
    self.files = files

  def __len__(self):
    return 2 * len(self.files)

  def __getitem__(self, index):
    image = self.files[index // 2] if index % 2 else ORIGINALS[0]
    return {'image': image, 'label': np.zeros(0, np.int32), 'key': str(index)}


def memory() -> float:
  gc.collect()
  return psutil.Process().memory_info().rss / 2**20


@pytest.mark.slow
def test_ten_thousand_damaged():
  """Twice, and with `fast` where it is installed: each in a second or two, in
  the memory of the first time; and once more through the pipeline's workers.
  """
  cases = []

  @quickly(10_000)
  @anything
  def collect(file, channels, crop, seed):
    cases.append((file, channels, crop, seed))

  collect()
  fasts = (False,) if decode.missing_fast_packages() else (False, True)
  memories, slowest, images = [memory()], 0, 0
  for fast in (*fasts, *fasts):
    for case in cases:
      is_image, spent = seconds(*case, fast)
      images += is_image
      slowest = max(slowest, spent)
    memories.append(memory())
  print(
    f'{len(cases)} files, {len(memories) - 1} times: {images} images, slowest '
    f'{slowest:.2f} s, memory {", ".join(f"{m:.0f}" for m in memories)} MiB'
  )
  assert slowest < 10
  assert memories[-1] - memories[len(fasts)] < 20
  dataset = pipeline.make_dataset(
    Mixed([case[0] for case in cases]),
    None,
    pipeline.Reading(CROPS[0], workers=2, max_bad_share=1),
    batch_size=100,
    one_pass=True,
  )
  with loader.prefetch(dataset, lambda batch: batch['image'].shape) as shapes:
    assert list(shapes) == [(100, 16, 24, 3)] * (len(cases) // 50)
