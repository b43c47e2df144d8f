"""Images that are looked at, with masks, and what the model makes of them."""

import dataclasses

import jax
import numpy as np

from ijepa_jax.data import loader
from ijepa_jax.data.sources.subset import Subset
from ijepa_jax.data.transforms import crop
from ijepa_jax.errors import UserError
from ijepa_jax.runtime import sharding
from ijepa_jax.train import health
from ijepa_jax.visualize import retrieval
from ijepa_jax.visualize.subject import Subject

_HEALTH_IMAGES = 256  # as a run's own signals, configs/base.py


@dataclasses.dataclass(frozen=True)
class Gallery:
  """n images on the host, in an order that has nothing to do with the source's.

  Attributes:
    rows: of the source, int [n].
    image: uint8 [n, H, W, C].
    label: int32 [n, L].
    context, targets: masks int32 [n, E, Kc] and [n, M, Kt].
    vectors: of retrieval.compiled.
    signals: of health, see train/health.py; {} without a predictor.
  """

  rows: np.ndarray
  image: np.ndarray
  label: np.ndarray
  context: np.ndarray
  targets: np.ndarray
  vectors: dict[str, np.ndarray]
  signals: dict[str, float]

  def __len__(self) -> int:
    return len(self.image)

  @property
  def blocks(self) -> retrieval.Blocks:
    """All target blocks, as retrieval takes them."""
    return retrieval.Blocks.of_images(
      self.targets, self.vectors['predicted'], self.vectors['true']
    )


def read_gallery(
  model: Subject,
  source,
  mesh,
  *,
  count: int,
  batch_size: int,
  seed: int,
  workers: int = 0,
) -> Gallery:
  """Reads images, and encodes and predicts them.

  Args:
    model: that looks.
    source: of the images.
    mesh: devices that share the work.
    count: of images, where there are as many.
    batch_size: images at a time.
    seed: of the choice of images and of masks.
    workers: see Reading.

  Raises:
    UserError: there are too few, or one can't be read.
  """
  if len(source) < 2:
    raise UserError(
      f'There are {len(source)} images to look at, and 2 are needed: name '
      'others in data.path, or take more.'
    )
  rows = np.random.default_rng(seed).permutation(len(source))[:count]
  count, size = len(rows), model.image_size
  batch_size = -(-min(batch_size, count) // mesh.size) * mesh.size
  dataset = loader.local_batches(
    Subset(source, rows),
    model.one_size(batch_size),
    transform=crop.CenterCrop(size, max(size)),
    batch_size=batch_size,
    seed=seed,
    channels=model.channels,
    one_pass=True,
    workers=workers,
    max_bad_share=0.0,
  )
  run = retrieval.compiled(model.method, model.has_predictor)
  host, vectors, signals = [], [], {}
  with loader.prefetch(dataset, lambda batch: batch) as batches:
    for batch in batches:
      keys = model.method.batch_keys
      arrays = sharding.to_global({k: batch[k] for k in keys}, mesh)
      vectors.append(jax.device_get(run(model.params, model.target, arrays)))
      if not host and model.has_predictor:
        signals = _signals(model, arrays)
      host.append(batch)
  fields = 'image', 'label', 'context', 'targets'
  return Gallery(
    rows,
    *(np.concatenate([b[k] for b in host])[:count] for k in fields),
    {
      k: np.concatenate([part[k] for part in vectors])[:count]
      for k in vectors[0]
    },
    signals,
  )


def _signals(model: Subject, batch) -> dict[str, float]:
  run = jax.jit(
    lambda params, target, batch: health.signals(
      model.method, params, target, batch
    )
  )
  few = jax.tree.map(lambda x: x[:_HEALTH_IMAGES], batch)
  values = jax.device_get(run(model.params, model.target, few))
  return {k: float(v) for k, v in values.items()}
