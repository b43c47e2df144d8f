"""One picture of a run: metrics.jsonl over steps."""

import pathlib

import matplotlib
import numpy as np

matplotlib.use('Agg')  # No screen on a cluster.
from matplotlib import pyplot as plt

# Panel title, then the metrics in it.
PANELS = (
  ('loss', ('loss',)),
  ('learning rate', ('lr',)),
  ('EMA momentum', ('momentum',)),
  ('feature spread', ('feature_std', 'token_std')),
  ('linear probe, held-out pictures', ('probe/*',)),
  ('RankMe', ('rankme',)),
)


def draw(
  rows: list[dict],
  path: pathlib.Path,
  *,
  title: str = '',
  levels: dict[str, dict[str, float]] | None = None,
) -> None:
  """Draws the panels whose metrics are there; points are steps.

  Args:
    rows: what `metrics.read` gives.
    path: the PNG to write.
    title: above all panels.
    levels: name -> metrics that do not change over steps, such as the untrained
      encoder's; drawn as dotted lines.
  """
  found = {name for row in rows for name in row}
  panels = []
  for label, names in PANELS:
    present = [
      name
      for name in sorted(found)
      if name in names or (name.startswith('probe/') and 'probe/*' in names)
    ]
    if present:
      panels.append((label, present))
  if not panels:
    return
  columns = min(3, len(panels))
  grid = -(-len(panels) // columns), columns
  figure, axes = plt.subplots(
    *grid, figsize=(4 * columns, 2.8 * grid[0]), squeeze=False
  )
  for axis, (label, names) in zip(axes.flat, panels, strict=False):
    for name in names:
      points = [
        (row['step'], row[name]) for row in rows if row.get(name) is not None
      ]
      x, y = np.asarray(points, float).T
      few = len(x) < 100
      axis.plot(
        x,
        y,
        marker='o' if few else None,
        markersize=3,
        linewidth=1.2 if few else 0.8,
        alpha=1.0 if few else 0.4 if name == 'loss' else 0.9,
        label=name.removeprefix('probe/'),
        color=None if len(names) > 1 else 'tab:blue',
      )
      if name == 'loss' and not few:
        width = max(len(y) // 50, 1)
        smooth = np.convolve(y, np.ones(width) / width, 'valid')
        axis.plot(x[width - 1 :], smooth, color='tab:blue', linewidth=1.5)
    axis.set_title(label, fontsize=10)
    axis.set_xlabel('step', fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    if len(names) > 1:
      axis.legend(fontsize=8)
  for axis in axes.flat[len(panels) :]:
    axis.set_visible(False)
  figure.suptitle(title)
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  plt.close(figure)
