"""A monitor that draws: images, their masks, and their tokens as colors."""

from collections.abc import Callable

import jax
import numpy as np

from ijepa_jax.methods.method import Method
from ijepa_jax.runtime import sharding
from ijepa_jax.train.pictures import mask_picture, token_maps

_ROWS = 6  # images
_SIDE, _GAP = 96, 4  # pixels of one of the pictures at least, and between them


class Tokens:
  """A monitor without metrics: it draws the first images of a batch.

  Args:
    method: whose encoder is judged.
    batch: on the devices; what `method.batch_keys` name.
    mesh: of these devices; every process calls alike.
    write: (step, uint8 [H, W, 3]) -> nothing.
  """

  names = ()

  def __init__(
    self, method: Method, batch, mesh, write: Callable[[int, np.ndarray], None]
  ):
    self._method, self._batch, self._mesh = method, batch, mesh
    self._write = write

    def run(params, batch):
      few = jax.tree.map(lambda x: x[:_ROWS], batch)
      return few, method.encode(params, few['image'])

    self._run = jax.jit(run, out_shardings=sharding.replicated(mesh))

  def __call__(self, state) -> dict[str, float]:
    """Draws by a train_step.State; there is nothing to measure."""
    params = self._method.evaluated(state.params, state.target)
    with sharding.gathering(self._mesh):
      few, tokens_BND = self._run(params, self._batch)
    few, tokens_BND = jax.device_get((few, tokens_BND))
    self._write(int(state.step), draw(self._method, few, tokens_BND))
    return {}


def draw(method: Method, batch, tokens_BND: np.ndarray) -> np.ndarray:
  """A row for each image: uint8 [H, W, 3].

  The image; where there are masks, what the context encoder sees and what is to
  be predicted; its tokens as colors, among all these images and by themselves.

  Args:
    method: of patches of one size.
    batch: on the host; 'image' uint8 [B, H, W, C], perhaps 'context' and
      'targets'.
    tokens_BND: of these images.
  """
  patch = method.encoder.patch_size
  grid = [n // patch for n in batch['image'].shape[1:3]]
  columns = [batch['image']]
  for mask in 'context', 'targets':
    if mask in batch:
      pairs = zip(batch['image'], batch[mask], strict=True)
      pictures = [
        mask_picture.mask_picture(image, np.ravel(rows), patch)
        for image, rows in pairs
      ]
      columns.append(np.stack(pictures))
  columns += [
    colors(tokens_BND).reshape(-1, *grid, 3)
    for colors in (token_maps.principal_colors, token_maps.own_colors)
  ]
  rows = [_row(pictures) for pictures in zip(*columns, strict=True)]
  return np.concatenate(rows)[:-_GAP]


def _row(pictures) -> np.ndarray:
  """The pictures side by side, as large as the first of them."""
  first = pictures[0]
  scale = -(-_SIDE // first.shape[1])
  height, width = (n * scale for n in first.shape[:2])
  parts = []
  for picture in pictures:
    # Of more than three channels the first three, of two the first.
    x = picture[..., :3] if picture.shape[-1] >= 3 else picture[..., :1]
    x = np.broadcast_to(x, (*x.shape[:2], 3))
    x = x.repeat(height // x.shape[0], 0).repeat(width // x.shape[1], 1)
    parts.append(np.pad(x, [(0, _GAP), (0, _GAP), (0, 0)], constant_values=255))
  return np.concatenate(parts, 1)[:, :-_GAP]
