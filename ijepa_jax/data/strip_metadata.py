"""Takes out of an image file everything but its pixels and orientation.

Decoders refuse a file if text, profiles or thumbnails in it are damaged, cut
short, or larger than a decoder's limit.
"""

import struct
import zlib

_PNG = b'\x89PNG\r\n\x1a\n'
_PNG_CHUNKS = b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'eXIf'
_WEBP_CHUNKS = b'VP8X', b'ALPH', b'VP8 ', b'VP8L', b'ANIM', b'ANMF', b'EXIF'
# Flags in VP8X of chunks that are taken out: a color profile and XMP.
_WEBP_FLAGS = 0x20 | 0x04
# Tags of TIFF that describe how its pixels are stored, and its orientation.
_TIFF_TAGS = {
  *(254, 255, 256, 257, 258, 259, 262, 263, 266, 273, 274, 277, 278, 279, 284),
  *(292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339, 347),
  *(*range(512, 522), 529, 530, 531, 532),
}


def strip_metadata(data: bytes) -> bytes:
  """Returns a file with its pixels, all that they need, and its EXIF.

  It knows JPEG, PNG, WebP, GIF and TIFF; all other files are returned as they
  are, and a file that is cut short within its pixels stays so.
  """
  if data.startswith(_PNG):
    return _png(data)
  if data.startswith(b'\xff\xd8\xff'):
    return _jpeg(data)
  if data[:4] == b'RIFF' and data[8:12] == b'WEBP':
    return _webp(data)
  if data.startswith((b'GIF87a', b'GIF89a')):
    return _gif(data)
  if data.startswith((b'II*\0', b'MM\0*')):
    return _tiff(data)
  return data


def _png(data):
  at, kept = len(_PNG), [_PNG]
  while at + 8 <= len(data):
    length, name = struct.unpack_from('>L4s', data, at)
    chunk, at = data[at : at + length + 12], at + length + 12
    if name == b'IEND':
      break
    if name not in _PNG_CHUNKS:
      continue
    if name == b'eXIf':
      # A new checksum: a wrong one may be the fault of the file.
      content = name + chunk[8 : 8 + length]
      chunk = chunk[:4] + content + struct.pack('>L', zlib.crc32(content))
    kept.append(chunk)
    if at > len(data):
      return b''.join(kept)
  return b''.join([*kept, bytes(4), b'IEND\xaeB`\x82'])


def _jpeg(data):
  at, kept = 2, [data[:2]]
  while at + 4 <= len(data) and data[at] == 0xFF:
    marker, length = struct.unpack_from('>xBH', data, at)
    if marker == 0xFF:  # a fill byte
      at += 1
      continue
    if marker == 0xDA or length < 2:  # the pixels begin
      break
    segment, at = data[at : at + 2 + length], at + 2 + length
    content = segment[4:]
    if (
      not (0xE0 <= marker <= 0xEF or marker == 0xFE)
      or (marker == 0xEE and content.startswith(b'Adobe') and length >= 14)
      or (marker == 0xE0 and content.startswith(b'JFIF\0') and length >= 16)
      or (marker == 0xE1 and content.startswith(b'Exif\0\0'))
    ):
      kept.append(segment)
  return b''.join([*kept, data[at:]])


def _webp(data):
  at, kept = 12, [b'WEBP']
  while at + 8 <= len(data):
    name, length = struct.unpack_from('<4sL', data, at)
    end = at + 8 + length + length % 2
    chunk, at = data[at:end], end
    if name not in _WEBP_CHUNKS or (name == b'EXIF' and end > len(data)):
      continue
    if name == b'VP8X' and len(chunk) > 8:
      chunk = chunk[:8] + bytes([chunk[8] & ~_WEBP_FLAGS]) + chunk[9:]
    kept.append(chunk)
  content = b''.join(kept)
  return b'RIFF' + struct.pack('<L', len(content)) + content


def _gif(data):
  def color_table_size(flags):
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0

  def end_of_blocks(at):
    while at < len(data) and data[at]:
      at += 1 + data[at]
    return at + 1

  if len(data) < 13:
    return data
  at = 13 + color_table_size(data[10])
  kept = [data[:at]]
  while at + 10 < len(data):
    if data[at] == 0x21:
      end = end_of_blocks(at + 2)
      if data[at + 1 : at + 3] == b'\xf9\x04':  # the transparent color
        kept.append(data[at:end])
      at = end
    elif data[at] == 0x2C:  # the first frame
      end = end_of_blocks(at + 11 + color_table_size(data[at + 9]))
      return b''.join([*kept, data[at:end], b';'])
    else:
      break
  return data


def _tiff(data):
  order = '<' if data.startswith(b'II') else '>'
  try:
    (at,) = struct.unpack_from(f'{order}L', data, 4)
    (count,) = struct.unpack_from(f'{order}H', data, at)
  except struct.error:
    return data
  entries = [data[i : i + 12] for i in range(at + 2, at + 2 + 12 * count, 12)]
  kept = [
    entry
    for entry in entries
    if len(entry) == 12
    and struct.unpack_from(f'{order}H', entry)[0] in _TIFF_TAGS
  ]
  directory = struct.pack(f'{order}H', len(kept)) + b''.join(kept) + bytes(4)
  end = at + 2 + 12 * count + 4
  return data[:at] + directory.ljust(end - at, b'\0') + data[end:]
