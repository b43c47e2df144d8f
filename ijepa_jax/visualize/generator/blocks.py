"""What the generator learns from: predicted blocks as vectors, their pixels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax.data import loader
from ijepa_jax.data.sources.subset import Subset
from ijepa_jax.data.transforms import crop
from ijepa_jax.pretrained import stored_arrays
from ijepa_jax.runtime import files
from ijepa_jax.runtime.checkpoint import checksums
from ijepa_jax.visualize.subject import Subject

_VERSION = 1  # raise it if the same input gives other arrays


@dataclasses.dataclass(frozen=True)
class BlockData:
  """Target blocks of n images, M of each, mapped from disk.

  Attributes:
    vector: float32 [n, M, D], the layer-normed average of the predictor's
      outputs over the block (RCDM, Bordes et al., 2022).
    pixels: uint8 [n, M, s, s, C], the block's box, resized.
    label: int32 [n, L], of the image.
    key: names them by all that they depend on.
  """

  vector: np.ndarray
  pixels: np.ndarray
  label: np.ndarray
  key: str

  def __len__(self) -> int:
    return self.vector.shape[0] * self.vector.shape[1]

  def block_vectors(self, numbers) -> np.ndarray:
    """float32 [b, D] of blocks by their number, from 0 to len - 1."""
    return self.vector[np.divmod(np.asarray(numbers), self.vector.shape[1])]

  def block_pixels(self, numbers) -> np.ndarray:
    """uint8 [b, s, s, C] of blocks by their number."""
    return self.pixels[np.divmod(np.asarray(numbers), self.vector.shape[1])]

  def block_labels(self, numbers, column: int) -> np.ndarray:
    """int32 [b], label `column` of the image that each block is of."""
    return self.label[np.asarray(numbers) // self.vector.shape[1], column]


def stored_blocks(
  model: Subject, source, mesh, *, count: int, size: int, seed: int, **options
) -> BlockData:
  """Computes the blocks of images, as the run saw them, and keeps them.

  Args:
    model: whose predictions they are.
    source: of the images; where more blocks are asked for than there are, an
      image is taken again, with another crop and other masks.
    mesh: devices that share the work.
    count: of blocks, at least.
    size: s, of the pixels that are kept of each, in both directions.
    seed: of crops and masks.
    **options: batch_size (images), workers, and cache_dir.
  """
  images = -(-count // model.num_blocks)
  row_order = np.resize(np.arange(len(source)), images)
  if images < len(source):
    row_order = np.linspace(0, len(source) - 1, images).astype(int)
  subset, transform = Subset(source, row_order), model.train_transform
  batch_size = -(-options['batch_size'] // mesh.size) * mesh.size
  sampler = model.one_size(batch_size)
  key = files.name_of(
    kind='blocks',
    version=_VERSION,
    params=checksums.digests((model.params, model.target)),
    method=repr(model.method),
    images=subset.identity,
    transform=repr(transform),
    sampler=repr(sampler),
    size=size,
    seed=seed,
  )
  shapes = _shapes(model, images, len(subset.labels), size)
  store = stored_arrays.StoredArrays(options['cache_dir'], key, shapes)

  def run(params, batch):
    vector = condition(model.method, params, batch)
    return {
      'vector': vector,
      'pixels': batch['pixels'],
      'label': batch['label'],
    }

  def make_dataset(start):
    return loader.local_batches(
      subset,
      sampler,
      transform=transform,
      batch_size=batch_size,
      seed=seed,
      start=start,
      channels=model.channels,
      one_pass=True,
      workers=options['workers'],
      max_bad_share=1.0,  # a bad image is replaced, and named in the log
    ).map(_CutBlocks(model.method.encoder.patch_size, size))

  store.compute(
    run,
    model.params,
    make_dataset,
    mesh=mesh,
    keys=('image', 'context', 'targets', 'pixels', 'label'),
    batch_size=batch_size,
    title='blocks',
  )
  return BlockData(**store.read(), key=key)


def _shapes(model, images: int, labels: int, size: int) -> dict:
  """Shapes of the arrays of BlockData."""
  n, m, c = images, model.num_blocks, model.channels
  width = model.method.encoder.width
  return {
    'vector': jax.ShapeDtypeStruct((n, m, width), np.float32),
    'pixels': jax.ShapeDtypeStruct((n, m, size, size, c), np.uint8),
    'label': jax.ShapeDtypeStruct((n, labels), np.int32),
  }


def condition(method, params, batch) -> jax.Array:
  """The vector of each target block: float32 [B, M, D].

  Args:
    method: ijepa.IJEPA.
    params: {'encoder', 'predictor'}.
    batch: image, context [B, E, Kc], of which the first is taken, and targets
      [B, M, Kt].
  """
  predictions_BMKD = method.predict(
    params, batch['image'], batch['context'][:, :1], batch['targets']
  )[:, 0]
  x = predictions_BMKD.astype(jnp.float32).mean(2)
  x = x - x.mean(-1, keepdims=True)
  return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


@dataclasses.dataclass(frozen=True)
class _CutBlocks:
  """Adds the pixels of each target block to a batch, resized."""

  patch_size: int
  size: int

  def __call__(self, batch: dict) -> dict:
    columns = batch['image'].shape[2] // self.patch_size
    pixels = [
      [
        cut(image, box_of(block, columns, self.patch_size), self.size)
        for block in blocks
      ]
      for image, blocks in zip(batch['image'], batch['targets'], strict=True)
    ]
    return batch | {'pixels': np.array(pixels)}


def box_of(block_K, columns: int, patch_size: int) -> tuple[int, ...]:
  """The box of a target block: left, top, right, bottom in pixels.

  Args:
    block_K: its tokens, row-major.
    columns: of the grid of tokens.
    patch_size: in pixels.
  """
  rows, cols = np.divmod(np.asarray(block_K), columns)
  corners = cols.min(), rows.min(), cols.max() + 1, rows.max() + 1
  return tuple(patch_size * int(x) for x in corners)


def is_box(block_K, columns: int) -> bool:
  """Whether the tokens fill a rectangle."""
  left, top, right, bottom = box_of(block_K, columns, 1)
  return len(block_K) == (right - left) * (bottom - top)


def cut(image_HWC, box, size: int) -> np.ndarray:
  """The pixels in a box, resized: uint8 [size, size, C]."""
  return crop.crop(image_HWC, box, (size, size), 'bicubic')


def paste(image_HWC, box, block_ssC) -> np.ndarray:
  """A copy of the image with a block in its box, resized to it."""
  left, top, right, bottom = box
  block = np.ascontiguousarray(block_ssC)
  image = image_HWC.copy()
  image[top:bottom, left:right] = crop.crop(
    block,
    (0, 0, block.shape[1], block.shape[0]),
    (bottom - top, right - left),
    'bicubic',
  )
  return image
