"""Decodes image files to 8-bit pixels, the right way up.

As in torchvision's ImageFolder, which calls convert('RGB'), transparency is
dropped, with the colours under it, and CMYK is converted without profiles.
Other than there, an EXIF orientation is followed, and 16 bits are scaled to 8
rather than cut off at 255. Of an animation the first frame is taken.

More than four channels come as .npy files, which are taken as they are.
"""

import contextlib
import importlib.util
import io
import logging
import re
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from ijepa_jax.data.strip_metadata import strip_metadata

# No others: Pillow would start Ghostscript for PostScript that is called .jpg.
FORMATS = 'JPEG', 'PNG', 'WEBP', 'BMP', 'DIB', 'GIF', 'PPM', 'TIFF'
NPY_MAGIC = np.lib.format.MAGIC_PREFIX  # the first bytes of a .npy file
MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}  # Pillow's, by channels
FAST_PACKAGES = 'simplejpeg', 'cykooz_resizer'  # the extra [fast], for `fast`
# A JPEG is decoded at 1/2, 1/4 or 1/8 if the box is then still this many times
# its final size on either side. libjpeg's reduction is not the triangle filter
# of a resize: at 4, 99 values in 100 are within 2 grey levels of those of the
# full image, and at 2 they are not (tests/data/test_fast.py).
MIN_DRAFT_RATIO = 4
_ORIENTATION, _BITS = 0x0112, 0x0102  # tags of EXIF and TIFF
_TRANSPOSES = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  # From here on width and height change places.
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# BadImage says what is wrong with an image, and the pipeline logs it once.
# catch_warnings would not do: it is not thread-safe.
warnings.filterwarnings('ignore', module=r'PIL\.')
logging.getLogger('PIL').setLevel(logging.CRITICAL)


class BadImage(Exception):
  """The bytes are no complete image of an acceptable size."""


def max_bad_images(share: float, images: int) -> float:
  """How many of so many images may be bad if `share` of all may.

  The share is taken of 1000 images at least, so that an early failure or a
  small set does not stop the run.
  """
  return share * max(images, 1000)


def limit_pixels(limit: int) -> None:
  """Makes this process refuse images of more pixels from now on; 0: none.

  It is Pillow's own limit against decompression bombs.
  """
  Image.MAX_IMAGE_PIXELS = limit or None


def max_pixels() -> int:
  """Returns the limit of this process, see `limit_pixels`."""
  return Image.MAX_IMAGE_PIXELS or 0


def decode(data: bytes, channels: int) -> Image.Image:
  """Decodes an image to Pillow's L, LA, RGB or RGBA, for 1 to 4 channels.

  Raises:
    BadImage: it is in none of FORMATS, cut short, larger than `limit_pixels`
      allows, or its pixels are floating-point numbers or integers of more than
      16 bits.
  """
  return Encoded(data, channels).pixels()


def decode_npy(data: bytes) -> np.ndarray:
  """Reads the pixels in a .npy file: uint8 [H, W, C], of any C.

  Nothing in the file is executed.

  Raises:
    BadImage: it holds anything else, is cut short, or is larger than
      `limit_pixels` allows.
  """
  with _as_bad_image():
    pixels = np.load(io.BytesIO(data), allow_pickle=False)
    if pixels.ndim == 2:
      pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or not pixels.size:
      raise BadImage(
        f'{pixels.dtype} {pixels.shape}: store it as uint8 [H, W, C], with the '
        'values that matter in 0 to 255'
      )
    _check_size(pixels.shape[1], pixels.shape[0])
  return np.ascontiguousarray(pixels)


def upright(image: Image.Image, channels: int) -> Image.Image:
  """Converts an image that Pillow has opened as `decode` does with its bytes.

  Raises:
    BadImage: see `decode`.
  """
  with _as_bad_image():
    image.load()
    info = dict(image.info)
    try:
      return _upright(image, MODES[channels])
    finally:
      image.info.update(info)  # the caller's image keeps its entries


def missing_fast_packages() -> list[str]:
  """Returns the packages that `fast` needs and that are not installed."""
  return [name for name in FAST_PACKAGES if not importlib.util.find_spec(name)]


class Encoded:
  """An encoded image, decoded only as far as a crop needs it.

  Args:
    channels: 1 to 4, see MODES.
    fast: simplejpeg decodes JPEGs, a tenth faster and to the same pixels, and
      `crop.crop` resizes with cykooz_resizer.

  Attributes:
    size: width and height in pixels, the right way up.

  Raises:
    BadImage: see `decode`; here or from the methods.
  """

  def __init__(self, data: bytes, channels: int, fast: bool = False):
    self.fast = fast
    self._data, self._mode = data, MODES[channels]
    self._decoded = {}  # scale -> pixels
    with _as_bad_image():
      self._opened = self._try(self._open)
      self.size = self._opened.size
      self._is_jpeg = self._opened.format in ('JPEG', 'MPO')
      # The others may tell their orientation only when they are loaded.
      if not self._is_jpeg:
        self.size = self.pixels().size
        return
      orientation = _orientation(self._opened)
      self._rotated = orientation > 1
      if orientation >= 5:
        self.size = self.size[::-1]

  def _try(self, function, *args):
    """Calls a function; if it fails, again with the file's pixels alone."""
    try:
      return function(*args)
    except BadImage:
      raise
    except Exception as error:
      stripped = strip_metadata(self._data)
      if stripped == self._data:
        raise
      self._data, self._opened = stripped, None
      try:
        return function(*args)
      except Exception:
        raise error from None

  def _open(self):
    image = Image.open(io.BytesIO(self._data), formats=FORMATS)
    _check_size(*image.size)
    # In one piece: at the end of each piece, libjpeg decodes a row of blocks
    # again.
    image.decodermaxblock = max(len(self._data), 1)
    return image

  def region_for_crop(self, box, size):
    """Decodes an image at the lowest resolution that is enough for a crop.

    Args:
      box: left, top, right, bottom in pixels of `size`.
      size: (H, W) in pixels that the box will be resized to.

    Returns:
      The image, see `pixels`, perhaps reduced; and the box in it, perhaps with
      fractions of pixels.
    """
    left, top, right, bottom = box
    ratio = (
      min((right - left) / size[1], (bottom - top) / size[0]) / MIN_DRAFT_RATIO
    )
    scales = (8, 4, 2) if self._is_jpeg else ()
    scale = next((k for k in scales if k <= ratio and self._fits(k)), 1)
    return self.pixels(scale), tuple(x / scale for x in box)

  def _fits(self, scale):
    # Otherwise a rotated image would not begin where its reduced pixels do.
    return not self._rotated or not any(x % scale for x in self.size)

  def pixels(self, scale: int = 1) -> Image.Image | np.ndarray:
    """Decodes all of it at 1/scale: Pillow's, or, if fast, uint8 [h, w, C]."""
    if scale not in self._decoded:
      with _as_bad_image():
        self._decoded[scale] = self._try(self._pixels, scale)
    return self._decoded[scale]

  def _pixels(self, scale):
    image, self._opened = self._opened or self._open(), None
    fast = self.fast and self._is_jpeg and not self._rotated
    if fast and image.mode == self._mode:
      import simplejpeg

      # Pillow reads some files that simplejpeg refuses.
      with contextlib.suppress(ValueError):
        return simplejpeg.decode_jpeg(
          self._data,
          'GRAY' if self._mode == 'L' else 'RGB',
          min_height=-(-image.height // scale),
          min_width=-(-image.width // scale),
        )
    if scale > 1:
      image.draft(None, (image.width // scale, image.height // scale))
    image.load()
    return _upright(image, self._mode)


def _check_size(width, height):
  limit = max_pixels()
  if limit and width * height > limit:
    raise BadImage(
      f'{width} x {height} pixels are more than max_pixels = {limit}'
    )


@contextlib.contextmanager
def _as_bad_image():
  """Raises whatever a decoder raises as BadImage, with its reason."""
  try:
    yield
  except BadImage:
    raise
  except UnidentifiedImageError:  # its message names an object in memory
    raise BadImage(f'none of {", ".join(FORMATS)}') from None
  except Image.DecompressionBombError as error:  # at twice the limit
    size = re.search(r'\d+', str(error))[0]
    raise BadImage(
      f'{size} pixels are more than max_pixels = {max_pixels()}'
    ) from None
  # Decoders raise errors of any type; MemoryError if a header asks for more
  # than any image needs.
  except Exception as error:
    raise BadImage(f'{type(error).__name__}: {error}') from error


def _upright(image, mode):
  transpose = _TRANSPOSES.get(_orientation(image))
  image = _convert(image, mode)
  return image if transpose is None else image.transpose(transpose)


def _orientation(image) -> int:
  # A JPEG has it in one of these, if at all: most JPEGs have neither.
  if image.format == 'JPEG' and not {'exif', 'xmp'} & image.info.keys():
    return 1
  try:
    value = image.getexif().get(_ORIENTATION)
    return value if value in _TRANSPOSES else 1
  except Exception:  # broken EXIF around sound pixels
    return 1


def _convert(image, mode):
  if image.mode.startswith('I'):
    image = _eight_bits(image)
  elif image.mode == 'F':
    raise BadImage('floating-point pixels: store them as 8 or 16 bits')
  elif image.mode in ('La', 'RGBa'):  # colours times their alpha
    image = image.convert(image.mode.upper())
  if mode in ('L', 'RGB'):
    image.info.pop('transparency', None)  # Pillow would try to keep it
  # Pillow's convert copies, even if there is nothing to convert.
  return image if image.mode == mode else image.convert(mode)


def _eight_bits(image):
  values = np.asarray(image)
  if not 0 <= values.min() <= values.max() < 2**16:
    raise BadImage('integers of more than 16 bits: store them as 16')
  # Pillow widens to 16 bits, except for the 12 bits of a TIFF.
  bits = getattr(image, 'tag_v2', {}).get(_BITS, (16,))[0]
  shift = 4 if bits == 12 else 8
  return Image.fromarray((values >> shift).astype(np.uint8))
