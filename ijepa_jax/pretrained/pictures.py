"""Pictures of any kind, as the evaluations see them: uint8 [H, W, C].

A picture is a path, a PIL image or a uint8 array [H, W, C] or [H, W]. It is
turned upright, brought to the encoder's channels, and cut by the evaluations'
crop: the shorter side to 256/224 of the size (bicubic), and the middle of it.
"""

import concurrent.futures
import itertools
import os
import threading
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from ijepa_jax.data import decode
from ijepa_jax.data.transforms import crop
from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files


class PictureReader:
  """Reads pictures for an encoder, on all cores."""

  def __init__(self, image_size: tuple[int, int], channels: int):
    """Args: image_size (H, W) in pixels, and channels, of what is returned."""
    self._transform = crop.evaluation_crop(image_size)
    self._channels = channels
    # Pillow decodes when pixels are first asked for, and the same picture may
    # stand in a list twice.
    self._lock = threading.Lock()

  def batches(self, pictures: Iterable, size: int) -> Iterator[np.ndarray]:
    """Yields uint8 [n, H, W, C], n = size but for the last batch.

    Raises:
      UserError: a picture can't be read, with its name or its number.
    """
    numbered = enumerate(pictures)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      while batch := list(itertools.islice(numbered, size)):
        yield np.stack(list(pool.map(self._read, *zip(*batch, strict=True))))

  def _read(self, number: int, picture) -> np.ndarray:
    """Returns one picture, uint8 [H, W, C]."""
    name = f'Picture {number}'
    try:
      if isinstance(picture, str | os.PathLike):
        name = str(picture)
        encoded = files.resolve(picture).read_bytes()
        if not encoded.startswith(decode.NPY_MAGIC):
          return self._transform(decode.decode(encoded, self._decodable()))
        picture = decode.decode_npy(encoded)
      if not isinstance(picture, Image.Image):
        picture = self._from_array(picture)
      if isinstance(picture, Image.Image):
        with self._lock:
          picture = decode.upright(picture, self._decodable())
      return self._transform(picture)
    except (OSError, ValueError, decode.BadImage) as error:
      raise UserError(f'{name} cannot be read: {error}') from error

  def _from_array(self, picture) -> Image.Image | np.ndarray:
    """Returns a PIL image where the channels are to be changed."""
    x = np.asarray(picture) if hasattr(picture, '__array__') else None
    if x is None or x.dtype != np.uint8 or x.ndim not in (2, 3) or not x.size:
      kind = type(picture).__name__ if x is None else f'{x.dtype} {x.shape}'
      raise UserError(
        f'it is {kind}; take a path, a PIL image or a uint8 array [H, W, C].'
      )
    x = x if x.ndim == 3 else x[..., None]
    if x.shape[-1] == self._channels:
      return x
    if x.shape[-1] not in decode.MODES:
      raise UserError(f'it has {x.shape[-1]} channels, not {self._channels}.')
    return Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x)

  def _decodable(self) -> int:
    """Returns the channels, which pictures can be brought to.

    Raises:
      UserError: only arrays have as many.
    """
    if self._channels not in decode.MODES:
      raise UserError(
        f'the encoder takes {self._channels} channels and pictures have up to '
        f'{max(decode.MODES)}, so give arrays, or .npy files.'
      )
    return self._channels
