"""A batch of I-JEPA with nothing in it: random pixels, random masks."""

import numpy as np


def make_batch(run, shapes) -> dict[str, np.ndarray]:
  """Makes a batch of these shapes, see `Method.batch_shapes`."""
  b, r = run.batch_size, np.random.default_rng(0)
  h, w, _ = run.image_shape
  n = h * w // run.method.encoder.patch_size**2

  def tokens(masks, k):
    rows = [r.permutation(n)[:k] for _ in range(b * masks)]
    return np.sort(rows).astype(np.int32).reshape(b, masks, k)

  return {
    'image': r.integers(0, 256, shapes['image'].shape, np.uint8),
    'context': tokens(*shapes['context'].shape[1:]),
    'targets': tokens(*shapes['targets'].shape[1:]),
  }
