"""Probes while a model trains: linear and kNN, of every label, and RankMe.

On a fixed set of labelled images held in memory: some of the training images,
and images that are used for nothing else.
"""

import dataclasses

import jax
import numpy as np

from ijepa_jax.data import loader, pipeline
from ijepa_jax.data.sources import subset
from ijepa_jax.errors import UserError
from ijepa_jax.methods.method import Method
from ijepa_jax.probes import knn, logistic, statistics
from ijepa_jax.probes.labels import check_probe, majority_baseline
from ijepa_jax.runtime import sharding

BATCH = 512
NEIGHBOURS = 20  # of kNN, or all training images where they are fewer
# Pixels are probed at this resolution: at 48 x 48 a probe of the same pictures
# gives half a point more or less (benchmarks/pixel_probe.py) and takes minutes.
PIXEL_GRID = 16


@dataclasses.dataclass(frozen=True)
class LabelledImages:
  """uint8 [N, H, W, C], and int32 [N, L] of each of `names` ->
  classes."""

  images: np.ndarray
  labels: np.ndarray
  names: dict[str, int]


def load_images(source, indices, transform, channels: int) -> LabelledImages:
  """Reads these images into memory.

  Raises:
    UserError: they have no labels.
    RuntimeError: one can't be read.
  """
  if not source.labels:
    reason = getattr(source, 'unlabelled', '')
    raise UserError(
      'probe.every_steps is set and the images have no labels'
      f'{reason and f" ({reason})"}: set it to 0, or give data.path class '
      'folders.'
    )
  dataset = pipeline.make_dataset(
    subset.Subset(source, indices),
    None,
    pipeline.Reading(transform, channels, max_bad_share=0.0),
    batch_size=min(BATCH, len(indices)),
    one_pass=True,
  )
  with loader.prefetch(dataset, lambda batch: batch) as batches:
    rows = [(batch['image'], batch['label']) for batch in batches]
  images, labels = (
    np.concatenate(x)[: len(indices)] for x in zip(*rows, strict=True)
  )
  return LabelledImages(images, labels, source.labels)


class Probe:
  """Probes encoders on one fixed set of images; `names` are its metrics.

  Args:
    method: whose encoder is probed.
    mesh: devices that share the work; every process calls alike.
    train, test: with the same names of labels.

  Raises:
    UserError: a label can't be probed, see `labels.check_probe`.
  """

  def __init__(
    self, method: Method, mesh, train: LabelledImages, test: LabelledImages
  ):
    self.train, self.test, self._method = train, test, method
    kinds = 'probe', 'knn'
    self.names = [f'{k}/{name}' for k in kinds for name in train.names]
    self.names.append('rankme')
    self._mesh = mesh
    for name, y, z in self._columns():
      check_probe(y, z, train.names[name])
    self._ks = knn.limit_ks((NEIGHBOURS,), len(train.labels))
    self._pool = jax.jit(
      lambda params, image: method.encode(params, image).mean(1),
      out_shardings=sharding.replicated(mesh),
    )

  def features(self, params, images) -> np.ndarray:
    """Average-pooled last-layer features: float32 [N, D]."""
    pooled = []
    for start in range(0, len(images), BATCH):
      batch = images[start : start + BATCH]
      pad = [(0, BATCH - len(batch))] + [(0, 0)] * 3
      batch = sharding.shard_rows(np.pad(batch, pad), self._mesh, np.uint8)
      with sharding.gathering(self._mesh):
        pooled.append(np.asarray(self._pool(params, batch)))
    return np.concatenate(pooled)[: len(images)]

  def monitor(self, state) -> dict[str, float]:
    """Probes the encoder of a train_step.State that is judged."""
    return self(self._method.evaluated(state.params, state.target))

  def __call__(self, params) -> dict[str, float]:
    """{'probe/<label>', 'knn/<label>': test accuracies, 'rankme': of the test
    features}."""
    train = self.features(params, self.train.images)
    test = self.features(params, self.test.images)
    return (
      self._linear(train, test)
      | self._knn(train, test)
      | {'rankme': statistics.rankme(test)}
    )

  def chance(self) -> dict[str, float]:
    """Of always answering the commonest label."""
    train, test = self.train.labels, self.test.labels
    accuracies = {
      name: majority_baseline(train[:, i], test[:, i])
      for i, name in enumerate(self.train.names)
    }
    return {
      f'{kind}/{k}': v
      for kind in ('probe', 'knn')
      for k, v in accuracies.items()
    }

  def pixels(self, grid: int = PIXEL_GRID) -> dict[str, float]:
    """Of the raw pixels, averaged over at most `grid` x `grid` cells."""
    train, test = (_shrink(x.images, grid) for x in (self.train, self.test))
    return self._linear(train, test) | self._knn(train, test)

  def _linear(self, train_ND, test_ND) -> dict[str, float]:
    # One number of classes for all labels: one compilation.
    classes = max(self.train.names.values())
    return {
      f'probe/{name}': logistic.quick_probe(
        train_ND, y, test_ND, z, classes=classes
      )
      for name, y, z in self._columns()
    }

  def _knn(self, train_ND, test_ND) -> dict[str, float]:
    classes = max(self.train.names.values())
    accuracies = {}
    for name, y, z in self._columns():
      result = knn.knn(
        train_ND, y, test_ND, z, classes=classes, ks=self._ks, mesh=self._mesh
      )
      accuracies[f'knn/{name}'] = result.accuracies[result.best]
    return accuracies

  def _columns(self):
    for i, name in enumerate(self.train.names):
      yield name, self.train.labels[:, i], self.test.labels[:, i]


def _shrink(images, grid: int) -> np.ndarray:
  n, h, w, c = images.shape
  rows, columns = (
    max(k for k in range(1, grid + 1) if size % k == 0) for size in (h, w)
  )
  cells = images.reshape(n, rows, h // rows, columns, w // columns, c)
  return cells.mean((2, 4), dtype=np.float32).reshape(n, -1) / 255
