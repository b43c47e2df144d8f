"""An image of which only the patches of a mask are seen."""

import numpy as np


def mask_picture(
  image_HWC: np.ndarray, mask_K: np.ndarray, patch_size: int, fill: int = 128
) -> np.ndarray:
  """The image with every patch outside a mask in grey: uint8 [H, W, C].

  Args:
    image_HWC: uint8.
    mask_K: indices of tokens, row-major.
    patch_size: in pixels.
    fill: the grey.
  """
  h, w, _ = image_HWC.shape
  seen = np.zeros((h // patch_size) * (w // patch_size), bool)
  seen[mask_K] = True
  seen = seen.reshape(h // patch_size, w // patch_size)
  seen = seen.repeat(patch_size, 0).repeat(patch_size, 1)
  return np.where(seen[..., None], image_HWC, np.uint8(fill))
