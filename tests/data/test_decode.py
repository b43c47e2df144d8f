"""Images as they come: each kind made as a real file, and what it must give."""

import io
import os
import pathlib
import struct
import subprocess
import sys
import zlib

import matplotlib
import numpy as np
import pytest
import sklearn
from PIL import Image, ImageOps

from ijepa_jax.data import decode
from ijepa_jax.data.transforms import crop as transforms_crop
from tests.close import close

PHOTOS = [
  pathlib.Path(matplotlib.__file__).parent
  / 'mpl-data/sample_data/grace_hopper.jpg',
  *sorted((pathlib.Path(sklearn.__file__).parent).rglob('images/*.jpg')),
]
# Two halves, left and right, of colours that survive JPEG.
LEFT, RIGHT = (200, 40, 90), (30, 160, 220)


def halves(mode='RGB', size=(32, 24)) -> Image.Image:
  image = Image.new('RGB', size, LEFT)
  image.paste(RIGHT, (size[0] // 2, 0, *size))
  return image.convert(mode)


def encoded(image, kind, **settings) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **settings)
  return file.getvalue()


def assert_halves(data, left=LEFT, right=RIGHT, size=(32, 24), atol=4):
  """The colours in the middles of the two halves."""
  channels = len(left)
  image = decode.decode(data, channels)
  assert image.size == size
  assert image.mode == decode.MODES[channels]
  pixels = np.asarray(image).reshape(size[1], size[0], channels)
  row = size[1] // 2
  for colour, x in ((left, size[0] // 4), (right, 3 * size[0] // 4)):
    close(pixels[row, x], colour, within=atol)


def grey(colour):
  return (round(np.dot(colour, [0.299, 0.587, 0.114])),)


@pytest.mark.parametrize(
  ('kind', 'settings'),
  [
    ('JPEG', {'quality': 95}),
    ('JPEG', {'quality': 95, 'progressive': True}),
    ('JPEG', {'quality': 95, 'subsampling': 0}),
    ('MPO', {'quality': 95}),
    ('PNG', {}),
    ('WEBP', {'lossless': True}),
    ('BMP', {}),
    ('DIB', {}),
    ('GIF', {}),
    ('PPM', {}),
    ('TIFF', {}),
    ('TIFF', {'compression': 'tiff_lzw'}),
  ],
)
def test_kinds(kind, settings):
  data = encoded(halves(), kind, **settings)
  assert_halves(data)
  assert_halves(data, grey(LEFT), grey(RIGHT))


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF', 'PPM'])
def test_grey(kind):
  data = encoded(halves('L'), kind)
  assert_halves(data, grey(LEFT), grey(RIGHT))
  assert_halves(data, 3 * grey(LEFT), 3 * grey(RIGHT))
  assert_halves(data, (*grey(LEFT), 255), (*grey(RIGHT), 255))


def test_one_bit():
  data = encoded(Image.fromarray(np.eye(9, dtype=bool)), 'PNG')
  pixels = np.asarray(decode.decode(data, 1))
  np.testing.assert_array_equal(pixels, 255 * np.eye(9))


@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'TIFF'])
def test_alpha(kind):
  """Dropped, as torchvision's ImageFolder does, with the colours below kept; or
  a channel of its own, that no resize mixes with the others.
  """
  image = halves('RGBA')
  image.putalpha(
    Image.fromarray(np.tile(np.uint8([0, 100]).repeat(16), (24, 1)))
  )
  data = encoded(
    image, kind, **({'lossless': True, 'exact': True} if kind == 'WEBP' else {})
  )
  assert_halves(data)
  assert_halves(data, grey(LEFT), grey(RIGHT))
  assert_halves(data, (*LEFT, 0), (*RIGHT, 100))
  assert_halves(data, (*grey(LEFT), 0), (*grey(RIGHT), 100))
  box = (0, 0, 32, 24)
  crop = transforms_crop.crop(decode.Encoded(data, 4), box, (6, 8))
  expected = image.convert('RGB').resize((8, 6), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(crop[..., :3], np.asarray(expected))


def test_grey_alpha():
  image = Image.merge('LA', [halves('L'), halves('L')])
  data = encoded(image, 'PNG')
  assert_halves(data, 3 * grey(LEFT), 3 * grey(RIGHT))
  assert_halves(data, 2 * grey(LEFT), 2 * grey(RIGHT))


@pytest.mark.parametrize(
  ('kind', 'transparency'),
  [('PNG', None), ('PNG', 0), ('PNG', b'\0\x80'), ('GIF', None), ('GIF', 0)],
)
def test_palette(kind, transparency):
  """Of its colours, transparent or not."""
  image = halves().quantize(2)
  first = image.getpixel((0, 0))
  settings = {} if transparency is None else {'transparency': transparency}
  data = encoded(image, kind, **settings)
  assert_halves(data)
  alphas = {None: (255, 255), 0: (0, 255), b'\0\x80': (0, 128)}[transparency]
  left, right = alphas if first == 0 else alphas[::-1]
  assert_halves(data, (*LEFT, left), (*RIGHT, right))


@pytest.mark.parametrize('kind', ['JPEG', 'TIFF'])
def test_cmyk(kind):
  """Without profiles; JPEGs have it inverted, as Adobe writes it."""
  data = encoded(halves('CMYK'), kind, quality=95)
  assert Image.open(io.BytesIO(data)).mode == 'CMYK'
  assert (b'Adobe' in data) == (kind == 'JPEG')
  assert_halves(data)
  assert_halves(data, (*LEFT, 255), (*RIGHT, 255))


def test_ycck():
  """As above with the colours turned, which Pillow reads and can't write."""
  cmyk = np.asarray(halves('CMYK'))
  turned = np.asarray(Image.fromarray(cmyk[..., :3]).convert('YCbCr'))
  # Pillow inverts what it writes.
  stored = np.concatenate([255 - turned, cmyk[..., 3:]], -1)
  image = Image.frombytes('CMYK', (32, 24), stored.tobytes())
  data = encoded(image, 'JPEG', quality=95, subsampling=0)
  at = data.index(b'Adobe') + len('Adobe') + 6  # what the colours are
  assert data[at] == 0
  assert_halves(data[:at] + b'\2' + data[at + 1 :])


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'PPM'])
def test_sixteen_bits(kind):
  """Scaled to 8, not cut off at 255."""
  values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 256 + 77
  image = Image.fromarray(values)
  data = encoded(image.convert('I') if kind == 'PPM' else image, kind)
  for channels in (1, 3):
    pixels = np.asarray(decode.decode(data, channels)).reshape(16, 16, -1)
    np.testing.assert_array_equal(
      pixels, np.stack(channels * [values >> 8], -1)
    )


def tiff(bits, samples, pixels, size=(32, 24)) -> bytes:
  """One strip, by hand: Pillow writes neither 12 bits nor 16 of colour."""
  tags = [
    (256, 3, size[0]),
    (257, 3, size[1]),
    (258, 3, bits),
    (259, 3, 1),  # no compression
    (262, 3, 1 if samples == 1 else 2),
    (273, 4, 8),  # where the pixels begin
    (277, 3, samples),
    (278, 3, size[1]),
    (279, 4, len(pixels)),
  ]
  directory = struct.pack('<H', len(tags))
  after = 8 + len(pixels) + 2 + 12 * len(tags) + 4
  bits_of_samples = b''
  for tag, kind, value in tags:
    if tag == 258 and samples > 1:
      directory += struct.pack('<HHLL', tag, kind, samples, after)
      bits_of_samples = struct.pack(f'<{samples}H', *samples * [bits])
    else:
      directory += struct.pack('<HHLL', tag, kind, 1, value)
  head = b'II*\0' + struct.pack('<L', 8 + len(pixels))
  return head + pixels + directory + bytes(4) + bits_of_samples


def test_other_tiffs():
  """Of 12 bits; of 16 for each colour."""
  values = np.arange(32 * 24, dtype=np.uint16).reshape(24, 32) * 5
  high, low = values.ravel()[::2], values.ravel()[1::2]
  packed = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], -1)
  pixels = decode.decode(tiff(12, 1, packed.astype(np.uint8).tobytes()), 1)
  np.testing.assert_array_equal(np.asarray(pixels), values >> 4)
  deep = np.asarray(halves()).astype('<u2') * 256 + 77
  assert_halves(tiff(16, 3, deep.tobytes()), atol=0)


@pytest.mark.parametrize(
  ('pixels', 'reason'),
  [
    (np.float32, 'floating-point pixels: store'),
    (np.int32, 'more than 16 bits: store'),
  ],
)
def test_no_range_is_known(pixels, reason):
  data = encoded(Image.fromarray(np.full((4, 4), 70_000, pixels)), 'TIFF')
  with pytest.raises(decode.BadImage, match=reason):
    decode.decode(data, 3)


def assert_turned(kind, orientation, fast=False):
  image, exif = Image.new('RGB', (30, 20)), Image.Exif()
  image.paste(LEFT, (0, 0, 30, 5))
  image.paste(RIGHT, (0, 0, 5, 20))
  exif[0x0112] = orientation
  settings = {'quality': 100} if kind == 'JPEG' else {'lossless': True}
  data = encoded(image, kind, exif=exif, **settings)
  expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  lazy = decode.Encoded(data, 3, fast)
  assert lazy.size == expected.size
  np.testing.assert_array_equal(lazy.pixels(), expected)
  if kind == 'JPEG':
    broken = data.replace(b'Exif\0\0', b'Exif\0\0??')
    assert decode.decode(broken, 3).size == (30, 20)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
def test_orientation(kind):
  """As Pillow's own exif_transpose; and whole where the tag is broken."""
  for orientation in range(1, 9):
    assert_turned(kind, orientation)


@pytest.mark.parametrize('kind', ['GIF', 'PNG', 'WEBP', 'TIFF'])
def test_the_first_frame(kind):
  frames = [Image.new('RGB', (32, 24), c) for c in ('black', 'white')]
  lossless = {'lossless': True} if kind == 'WEBP' else {}
  data = encoded(
    halves(), kind, save_all=True, append_images=frames, **lossless
  )
  assert Image.open(io.BytesIO(data)).n_frames == 3
  assert_halves(data)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF'])
@pytest.mark.parametrize('size', [(1, 1), (1, 50), (50, 1)])
def test_tiny(kind, size):
  data = encoded(Image.new('RGB', size, LEFT), kind)
  for transform in (
    transforms_crop.RandomResizedCrop((16, 24)),
    transforms_crop.CenterCrop((16, 16), 18),
    transforms_crop.Resize((16, 24)),
  ):
    rng = np.random.default_rng(0)
    pixels = transform(decode.Encoded(data, 3), rng)
    assert pixels.shape == (*transform.size, 3)
    close(pixels[8, 8], LEFT, within=6)


def bomb(kind, width, height) -> bytes:
  """An image whose header alone has grown."""
  data = bytearray(encoded(Image.new('L', (3, 3)), kind))
  if kind == 'PNG':
    data[16:24] = struct.pack('>LL', width, height)
    data[29:33] = struct.pack('>L', zlib.crc32(data[12:29]))
  else:
    at = data.index(b'\xff\xc0') + 5
    data[at : at + 4] = struct.pack('>HH', height, width)
  return bytes(data)


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
def test_huge(kind):
  """Refused by their header, whatever the file holds."""
  with pytest.raises(
    decode.BadImage, match='10000 x 10000 pixels are more than max_pixels'
  ):
    decode.decode(bomb(kind, 10_000, 10_000), 3)
  with pytest.raises(
    decode.BadImage, match='3600000000 pixels are more than max_pix'
  ):
    decode.decode(bomb(kind, 60_000, 60_000), 3)


def chunk(kind, data, checksum=None) -> bytes:
  checksum = zlib.crc32(kind + data) if checksum is None else checksum
  return (
    struct.pack('>L', len(data)) + kind + data + struct.pack('>L', checksum)
  )


LONG = zlib.compress(bytes(3_000_000))
NOTES = {
  'text': chunk(b'zTXt', b'a\0\0' + LONG),
  'international text': chunk(b'iTXt', b'a\0\1\0\0\0' + LONG),
  'profile': chunk(b'iCCP', b'a\0\0' + LONG),
  'damaged profile': chunk(b'iCCP', b'a\0\0damaged'),
  'all of it': 70 * chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(10**6))),
  'checksum': chunk(b'tEXt', b'a\0b', 7),
  'short gamma': chunk(b'gAMA', b''),
  'animation': chunk(b'acTL', b'') + chunk(b'fcTL', b'x'),
  'EXIF': chunk(b'eXIf', bytes(10**6), 7),
  'unknown': chunk(b'prVt', bytes(9), 7),
}


@pytest.mark.parametrize('notes', NOTES)
def test_notes_in_a_png(notes):
  """Do not hide its pixels, before them or after, whole or cut short."""
  plain = encoded(halves(), 'PNG')
  start, end = 33, plain.index(b'IEND') - 4
  for data in (
    plain[:start] + NOTES[notes] + plain[start:],
    plain[:end] + NOTES[notes] + plain[end:],
    plain[:end] + NOTES[notes][:-3],
  ):
    np.testing.assert_array_equal(decode.decode(data, 3), halves())
  with pytest.raises(decode.BadImage):
    decode.decode(plain[:start] + NOTES[notes] + plain[start : end - 20], 3)


@pytest.mark.parametrize('fast', [False, True])
def test_notes_in_a_jpeg(fast):
  if fast and decode.missing_fast_packages():
    pytest.skip('the extra is not installed')
  image, exif = halves(), Image.Exif()
  exif[0x0112] = 6
  plain = encoded(image, 'JPEG', exif=exif)
  expected = np.asarray(decode.decode(plain, 3))
  for marker, notes in (
    (0xE0, b'JFIF\0'),
    (0xE1, b'Exif\0\0II*\0' + bytes(60_000)),
    (0xE2, b'ICC_PROFILE\0'),
    (0xE2, b'MPF\0II*\0\x08\0\0\0'),
    (0xED, b'Photoshop 3.0\x008BIM\3\xed'),
    (0xFE, bytes(60_000)),
  ):
    segment = struct.pack('>BBH', 0xFF, marker, len(notes) + 2) + notes
    at = 20 if marker == 0xE1 else 2
    data = plain[:at] + segment + plain[at:] + bytes(1000)
    if marker == 0xE1:  # the first one counts
      data = plain + bytes(1000)
    pixels = decode.Encoded(data, 3, fast).pixels()
    np.testing.assert_array_equal(pixels, expected)


def test_notes_in_others():
  web = encoded(
    *(halves(), 'WEBP'), lossless=True, icc_profile=bytes(99), xmp=bytes(999)
  )
  assert_halves(web[:-9], atol=0)
  assert_halves(web + bytes(99), atol=0)
  gif = encoded(halves(), 'GIF')
  at = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
  for notes in (b'!\xff\x0bNETSCAPE2.0\0', b'!\xf9\1x\0', b'!\xfe\2ab\0'):
    assert_halves(gif[:at] + notes + gif[at:])
  # XMP as words of a kind that has no length.
  pixels = np.asarray(halves()).tobytes()
  plain = tiff(8, 3, pixels)
  at = 8 + len(pixels) + 2 + 12 * 7  # in the place of a tag with a default
  notes = struct.pack('<HHLL', 700, 12, 1, 5)
  data = plain[:at] + plain[at + 12 : at + 24] + notes + plain[at + 24 :]
  assert_halves(data, atol=0)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF'])
def test_truncated(kind):
  data = encoded(Image.open(PHOTOS[0]), kind)
  for share in (0.1, 0.5, 0.95):
    with pytest.raises(decode.BadImage):
      decode.decode(data[: int(share * len(data))], 3)


@pytest.mark.parametrize(
  'data',
  [b'', b'\0', b'hello', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n'],
)
def test_no_image(data):
  """Nor anything that Pillow would call another program for."""
  with pytest.raises(decode.BadImage, match='none of JPEG, PNG, WEBP'):
    decode.decode(data, 3)


def npy(pixels) -> bytes:
  file = io.BytesIO()
  np.save(file, pixels)
  return file.getvalue()


@pytest.mark.parametrize('shape', [(5, 4, 13), (5, 4, 1), (5, 4)])
def test_arrays(shape):
  """As they are, in any order of memory."""
  pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  for order in 'CF':
    loaded = decode.decode_npy(npy(np.array(pixels, order=order)))
    np.testing.assert_array_equal(loaded, pixels.reshape(5, 4, -1))
    assert loaded.dtype == np.uint8 and loaded.flags.c_contiguous


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (npy(np.zeros((5, 4, 13), np.uint16)), r'uint16 \(5, 4, 13\): store it as'),
    (npy(np.zeros((5, 4, 3))), r'float64 \(5, 4, 3\): store it as uint8'),
    (npy(np.zeros((0, 4, 3), np.uint8)), r'uint8 \(0, 4, 3\): store it'),
    (npy(np.zeros(5, np.uint8)), r'uint8 \(5,\): store it as uint8 \[H, W, C'),
    (npy(np.zeros((10**4, 10**4), 'V0')), r'V0 \(10000, 10000, 1\): store it'),
    (npy(np.zeros((5, 4, 3), np.uint8))[:-1], 'ValueError'),
    (npy(np.array([print])), 'ValueError: Object arrays cannot be loaded'),
  ],
)
def test_arrays_that_are_no_images(data, message):
  with pytest.raises(decode.BadImage, match=message):
    decode.decode_npy(data)


def test_huge_arrays():
  data = npy(np.zeros((10**4, 10**4), np.uint8))
  with pytest.raises(decode.BadImage, match='10000 x 10000 pixels are more'):
    decode.decode_npy(data)
  bomb = data[:128].replace(b'(10000, 10000)', b'(9999999999,9)')
  with pytest.raises(decode.BadImage):
    decode.decode_npy(bomb)


def test_pillow_is_quiet():
  """Its warnings neither show nor become errors, as -W error has it."""
  code = (
    'from tests.data.test_decode import *\n'
    'def tell(data):\n'
    '  try: decode.decode(data, 3)\n'
    '  except decode.BadImage as error: print(error)\n'
    "tell(encoded(halves().quantize(2), 'PNG', transparency=b'ab'))\n"
    "tell(bomb('PNG', 10_000, 10_000))\n"
    "exif = b'Exif\\0\\0II*\\0\\x08\\0\\0\\0' + bytes(range(1, 99))\n"
    "tell(encoded(halves(), 'JPEG', exif=exif))\n"
  )
  process = subprocess.run(
    [sys.executable, '-c', code],
    cwd=pathlib.Path(__file__).parent,
    env=os.environ
    | {
      'PYTHONWARNINGS': 'error::UserWarning',
      'PYTHONPATH': str(pathlib.Path(__file__).parents[2]),
    },
    capture_output=True,
    text=True,
  )
  assert process.stderr == ''
  assert (
    process.stdout
    == '10000 x 10000 pixels are more than max_pixels = 89478485\n'
  )
