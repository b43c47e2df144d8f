"""Draws docs/ijepa.png: how I-JEPA learns from one image.

    python docs/picture.py

A picture of the data set `scenes`, with masks as the paper draws them on a grid
of 12 x 12 patches. A token is drawn as the mean color of its patch.
"""

import pathlib
import sys

import matplotlib
import numpy as np
from matplotlib import patches
from matplotlib import pyplot as plt

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from ijepa_jax.data.scenes import scene  # noqa: E402
from ijepa_jax.methods import masks  # noqa: E402

GRID = 12
SEED, STEP, INDEX = 0, 7, 4
INK, GREY, CONTEXT, TARGET = '#1d2433', '#8a93a5', '#2f6fde', '#d9632c'


def main():
  image, _ = scene.render('scenes', 0, INDEX)
  sampler = masks.make_sampler(
    'uniform',
    grid=(GRID, GRID),
  )
  (context,), targets = sampler(SEED, STEP, 0)
  side = image.shape[0] // GRID
  tokens = image.reshape(GRID, side, GRID, side, 3).mean((1, 3)) / 255
  matplotlib.rcParams.update({'font.size': 11, 'text.color': INK})
  figure = plt.figure(figsize=(11, 4.7))
  ax = figure.add_axes((0, 0, 1, 1), xlim=(0, 110), ylim=(0, 47))
  ax.axis('off')

  _picture(ax, 3, 14, 19, image, 'an image', grid=True)
  seen = np.isin(np.arange(GRID**2), context).reshape(GRID, GRID)
  hidden = image.copy()
  hidden[~seen.repeat(side, 0).repeat(side, 1)] = 255
  _picture(
    ax, 29, 28.5, 15, hidden, 'context: patches that are seen', grid=True
  )
  _picture(ax, 29, 3.5, 15, image, 'the whole image', grid=True, below=True)
  _box(ax, 49, 31, 'context\nencoder', CONTEXT)
  _box(ax, 49, 6, 'target\nencoder', TARGET)
  shown = np.where(seen[..., None], tokens, 1)
  _picture(ax, 65.5, 30.5, 11, shown, 'tokens')
  _box(ax, 81, 31, 'predictor', CONTEXT)
  _picture(ax, 65.5, 5.5, 11, tokens, 'tokens', below=True)
  rng = np.random.default_rng(0)
  for k, target in enumerate(targets):
    rows, columns = np.divmod(target, GRID)
    top, left = rows.min(), columns.min()
    block = tokens[top : rows.max() + 1, left : columns.max() + 1]
    noisy = np.clip(block + rng.normal(0, 0.06, block.shape), 0, 1)
    x = 97 + 6.2 * (k % 2)
    for y, values in ((36.5, noisy), (11.5, block)):
      y -= 6.6 * (k // 2)
      height, width = (5.2 * n / 6 for n in block.shape[:2])
      ax.imshow(values, extent=(x, x + width, y, y + height), zorder=2)
    for x0, y0, size in ((29, 3.5, 15), (3, 14, 19)):
      unit = size / GRID
      corner = x0 + left * unit, y0 + size - (rows.max() + 1) * unit
      ax.add_patch(
        patches.Rectangle(
          corner,
          unit * block.shape[1],
          unit * block.shape[0],
          fill=False,
          edgecolor=TARGET,
          linewidth=1.8,
          zorder=4,
        )
      )
  ax.text(102.5, 43.6, 'predicted blocks', ha='center')
  ax.text(109, 1.2, 'the same blocks, by\nthe target encoder', ha='right')
  for start, end in (
    ((22.6, 27), (28.4, 33)),
    ((22.6, 20), (28.4, 13)),
    ((44.6, 36), (48.4, 36)),
    ((61.2, 36), (65, 36)),
    ((77, 36), (80.4, 36)),
    ((93.2, 36), (96.4, 36)),
    ((44.6, 11), (48.4, 11)),
    ((61.2, 11), (65, 11)),
    ((77, 11), (96.4, 11)),
  ):
    _arrow(ax, start, end)
  _arrow(ax, (86.8, 24.5), (86.8, 30.4))
  ax.text(86.8, 21.2, 'where the\nblocks are', ha='center', color=GREY)
  _arrow(ax, (55, 30.4), (55, 16.8), style='--')
  ax.text(56, 22.2, 'follows slowly\n(moving average)', color=GREY)
  _arrow(ax, (102.5, 27.6), (102.5, 19.4), style='<->', color=INK)
  ax.text(101.6, 22.2, 'loss: their\ndifference', ha='right')
  figure.savefig(ROOT / 'docs/ijepa.png', dpi=150, metadata={'Software': None})


def _picture(ax, x, y, size, image, title, grid=False, below=False):
  """An image with its lower left corner at (x, y), `size` wide."""
  ax.imshow(image, extent=(x, x + size, y, y + size), zorder=1)
  if grid:
    for k in range(1, GRID):
      at = k * size / GRID
      ax.plot([x + at] * 2, [y, y + size], color='w', linewidth=0.5, zorder=3)
      ax.plot([x, x + size], [y + at] * 2, color='w', linewidth=0.5, zorder=3)
  ax.add_patch(
    patches.Rectangle((x, y), size, size, fill=False, edgecolor=GREY, zorder=3)
  )
  where = (y - 2.2, 'center') if below else (y + size + 0.9, 'bottom')
  ax.text(x + size / 2, where[0], title, ha='center', va=where[1])


def _box(ax, x, y, words, color):
  ax.add_patch(
    patches.FancyBboxPatch(
      (x, y), 12, 10, boxstyle='round,pad=0.1,rounding_size=1', color=color
    )
  )
  ax.text(
    x + 6, y + 5, words, color='w', ha='center', va='center', weight='bold'
  )


def _arrow(ax, start, end, style='-', color=GREY):
  both = style == '<->'
  ax.add_patch(
    patches.FancyArrowPatch(
      start,
      end,
      arrowstyle='<|-|>' if both else '-|>',
      linestyle='-' if both else style,
      mutation_scale=11,
      color=color,
      shrinkA=0,
      shrinkB=0,
    )
  )


if __name__ == '__main__':
  main()
