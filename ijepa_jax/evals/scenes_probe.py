"""Linear probes of every label of the embedded pictures, and RankMe.

Pictures for the probe are the first of the training pictures; the test pictures
are made with a seed used for nothing else.
"""

import jax
import numpy as np

from ijepa_jax import gallery, scenes, sharding
from ijepa_jax.evals import linear
from ijepa_jax.ijepa import IJEPA

TEST_SEED = 20_230_619
BATCH = 512
# Pixels are probed at this resolution: at 48 x 48 a probe of the same pictures
# gives half a point more or less (benchmarks/pixel_probe.py) and takes minutes.
PIXEL_GRID = 16


class ScenesProbe:
  """Probes encoders on one fixed set of pictures.

  Args:
    model: whose encoder is probed.
    mesh: devices that share the work; every process calls alike.
    flavour: 'scenes' or 'crowd'.
    count: training pictures that the run makes; the probe takes the first
      `train_count` of them.
    train_count, test_count: pictures.
  """

  def __init__(
    self,
    model: IJEPA,
    mesh,
    *,
    flavour: str = 'scenes',
    count: int = 20_000,
    train_count: int = 5000,
    test_count: int = 2000,
  ):
    self.labels = scenes.LABELS[flavour]
    images, labels = gallery.load(flavour, 0, count)
    self.train = images[:train_count], labels[:train_count]
    self.test = gallery.load(flavour, TEST_SEED, test_count)
    self._mesh = mesh
    self._pool = jax.jit(
      lambda params, image: model.encode(params, image).mean(1),
      out_shardings=sharding.replicated(mesh),
    )

  def features(self, params, images) -> np.ndarray:
    """Average-pooled last-layer features: float32 [N, D]."""
    rows = BATCH // jax.process_count()
    mine = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)
    pooled = []
    for start in range(0, len(images), BATCH):
      batch = np.asarray(images[start : start + BATCH])
      pad = [(0, BATCH - len(batch))] + [(0, 0)] * 3
      batch = sharding.to_global(np.pad(batch, pad)[mine], self._mesh)
      pooled.append(np.asarray(self._pool(params, batch)))
    return np.concatenate(pooled)[: len(images)]

  def __call__(self, params) -> dict[str, float]:
    """{'probe/<label>': test accuracy, 'rankme': of the test features}."""
    train = self.features(params, self.train[0])
    test = self.features(params, self.test[0])
    return self._accuracies(train, test) | {'rankme': linear.rankme(test)}

  def chance(self) -> dict[str, float]:
    """Of always answering the commonest label."""
    train, test = self.train[1], self.test[1]
    return {
      f'probe/{name}': linear.majority(train[:, i], test[:, i])
      for i, name in enumerate(self.labels)
    }

  def pixels(self, grid: int = PIXEL_GRID) -> dict[str, float]:
    """Of the raw pixels, averaged over `grid` x `grid` cells."""
    return self._accuracies(
      _shrink(self.train[0], grid), _shrink(self.test[0], grid)
    )

  def _accuracies(self, train_ND, test_ND) -> dict[str, float]:
    # One number of classes for all labels: one compilation.
    classes = max(self.labels.values())
    return {
      f'probe/{name}': linear.probe(
        train_ND,
        self.train[1][:, i],
        test_ND,
        self.test[1][:, i],
        classes=classes,
      )
      for i, name in enumerate(self.labels)
    }


def _shrink(images, grid: int) -> np.ndarray:
  n, h, w, c = images.shape
  cells = images.reshape(n, grid, h // grid, grid, w // grid, c)
  return cells.mean((2, 4), dtype=np.float32).reshape(n, -1) / 255


def table(rows: dict[str, dict[str, float]]) -> str:
  """A small text table: a row a name, a column a metric, accuracies in %."""
  columns = list(dict.fromkeys(k for row in rows.values() for k in row))
  lines = [[''] + [c.removeprefix('probe/') for c in columns]]
  for name, row in rows.items():
    lines.append([name] + [_cell(c, row.get(c)) for c in columns])
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  return '\n'.join(
    '  '.join(
      cell.ljust(w) if i == 0 else cell.rjust(w)
      for i, (cell, w) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  )


def _cell(column: str, value: float | None) -> str:
  if value is None:
    return '-'
  scale = 100 if column.startswith('probe/') else 1
  return f'{scale * value:.1f}'
