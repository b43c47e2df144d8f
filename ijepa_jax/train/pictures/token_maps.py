"""Tokens as colors, and how alike they are: pictures of what tokens hold."""

import jax
import jax.numpy as jnp
import numpy as np


def principal_colors(tokens_BND: np.ndarray) -> np.ndarray:
  """The three directions in which tokens differ most, as red, green and blue.

  Tokens of like colors are alike to the encoder, within an image and between
  images (Oquab et al., 2023, show DINOv2 like this).

  Args:
    tokens_BND: float.

  Returns:
    uint8 [B, N, 3]; a direction that does not exist is mid-grey.
  """
  b, n, d = tokens_BND.shape
  x = tokens_BND.reshape(-1, d).astype(np.float64)
  x = x - x.mean(0)
  _, _, directions = np.linalg.svd(x.T @ x / len(x), hermitian=True)
  scores = x @ directions[:3].T
  # Each direction's sign is arbitrary: fixed so that pictures are the same on
  # any machine.
  scores *= np.where((scores**3).sum(0) < 0, -1.0, 1.0)
  low, high = np.percentile(scores, (1, 99), axis=0)
  flat = high - low < 1e-9 * max(np.abs(x).max(), 1e-30)
  share = np.where(flat, 0.5, (scores - low) / np.where(flat, 1, high - low))
  colors = np.full((b * n, 3), 128, np.uint8)
  colors[:, : share.shape[1]] = np.clip(share * 255, 0, 255).round()
  return colors.reshape(b, n, 3)


def own_colors(tokens_BND: np.ndarray) -> np.ndarray:
  """As `principal_colors`, by the directions of each image alone.

  Where images differ much, as photographs do, the directions of all of them
  tell images apart, and each is of one color.
  """
  return np.concatenate([principal_colors(x[None]) for x in tokens_BND])


def overlapping_tokens(
  encode, image_BHWC: np.ndarray, patch_size: int, times: int
) -> np.ndarray:
  """Tokens of patches that overlap: a grid so many times as fine.

  The image is moved by parts of a patch, with its edge repeated, and encoded
  each time.

  Args:
    encode: uint8 [B, H, W, C] -> [B, N, D].
    image_BHWC: uint8.
    patch_size: in pixels.
    times: how much finer the grid gets, on either side.

  Returns:
    float32 [B, times * H / patch_size, times * W / patch_size, D].
  """
  b, h, w, _ = image_BHWC.shape
  rows, columns = h // patch_size, w // patch_size
  pad = patch_size // 2
  wide = [(0, 0), (pad, pad), (pad, pad), (0, 0)]
  image_BHWC = np.pad(image_BHWC, wide, 'edge')
  # The patch of each cell of the fine grid has the cell in its middle.
  starts = [int(pad - (times - 1 - 2 * i) * pad / times) for i in range(times)]
  grid = [
    [
      np.asarray(encode(image_BHWC[:, top : top + h, left : left + w]))
      for left in starts
    ]
    for top in starts
  ]
  tokens = np.asarray(grid, np.float32).reshape(
    times, times, b, rows, columns, -1
  )
  tokens = tokens.transpose(2, 3, 0, 4, 1, 5)
  return tokens.reshape(b, times * rows, times * columns, -1)


def average_windows(fine_BRCD: np.ndarray, times: int) -> np.ndarray:
  """Averages what all patches that cover a cell of a fine grid say of it.

  Without it the grid of positions is seen: a patch that is moved has the
  position of where it was.

  Args:
    fine_BRCD: float32, from `overlapping_tokens`.
    times: how much finer than patches it is.
  """
  kernel = np.convolve(np.ones(times), np.ones(2)) / (2 * times)
  pad = times // 2
  for axis in 1, 2:
    width = fine_BRCD.shape[axis]
    wide = [(0, 0)] * 4
    wide[axis] = (pad, len(kernel) - 1 - pad)
    x = np.pad(fine_BRCD, wide, 'edge')
    fine_BRCD = sum(
      weight * x.take(range(i, i + width), axis)
      for i, weight in enumerate(kernel)
    )
  return fine_BRCD


@jax.jit
def cosine_maps(query_BQD, tokens_BND) -> jax.Array:
  """Cosines of queries with every token of their image: [B, Q, N] in [-1, 1].

  Args:
    query_BQD: float; vectors of the image, such as predicted tokens.
    tokens_BND: float; what they are compared with.
  """

  def unit(x):
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.maximum(length, 1e-12)

  return jnp.einsum(
    'bqd,bnd->bqn',
    unit(query_BQD),
    unit(tokens_BND),
    precision=jax.lax.Precision.HIGHEST,
  )
