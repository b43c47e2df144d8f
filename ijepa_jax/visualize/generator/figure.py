"""The figure: what is hidden, and what a generator draws there."""

import io
import logging

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ijepa_jax.train.pictures import mask_picture
from ijepa_jax.visualize.generator import blocks
from ijepa_jax.visualize.generator.readings import Drawn, Judged

_SEEDS = 5  # samples of a vector that are shown
_INCH = 0.66  # of a picture
_FRAME = '#ff2d2d'


def draw_figure(
  judged: Judged, drawn: Drawn, nearest_nHWC, patch_size: int, count: int
) -> dict[str, bytes]:
  """Draws a row for each of the first `count` images.

  Args:
    judged: the hidden blocks.
    drawn: what is drawn for them; seed s of every row has the same noise only
      where `drawn` has.
    nearest_nHWC: uint8, the real block whose vector is nearest to each.
    patch_size: in pixels.
    count: of rows.

  Returns:
    {'png': of 300 dots an inch, 'pdf': with text as text}.
  """
  count = min(count, len(judged), len(drawn.samples))
  seeds = min(_SEEDS, drawn.samples.shape[1])
  titles = ['image', 'context', *(f'sample {s + 1}' for s in range(seeds))]
  titles += ['no vector', "other's\nvector", 'mean\n(L2)', 'nearest\nreal']
  h, w = judged.images.shape[1:3]
  figure = Figure((_INCH * len(titles), _INCH * h / w * count + 0.35))
  axes = figure.subplots(count, len(titles), squeeze=False)
  for i, row in enumerate(axes):
    box = judged.box(i)
    context = mask_picture.mask_picture(
      judged.images[i], judged.context[judged.place[i]], patch_size
    )
    shown = [*drawn.samples[i, :seeds], drawn.null[i, 0], drawn.other[i, 0]]
    shown += [drawn.mean[i], nearest_nHWC[i]]
    pictures = [blocks.paste(context, box, block) for block in shown]
    pictures = [judged.images[i], context, *pictures]
    for axis, picture in zip(row, pictures, strict=True):
      axis.imshow(_rgb(picture), interpolation='nearest')
      axis.add_patch(_frame(box))
      axis.set_axis_off()
  for axis, title in zip(axes[0], titles, strict=True):
    axis.set_title(title, fontsize=6, pad=2)
  figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.3 / figure.get_figheight())
  figure.subplots_adjust(wspace=0.04, hspace=0.04)
  out = {}
  logging.getLogger('fontTools').setLevel(logging.WARNING)
  with matplotlib.rc_context({'pdf.fonttype': 42}):
    for kind in 'png', 'pdf':
      file = io.BytesIO()
      # Without dates the same figure is the same file.
      dated = {'CreationDate': None} if kind == 'pdf' else None
      figure.savefig(file, format=kind, dpi=300, metadata=dated)
      out[kind] = file.getvalue()
  return out


def _frame(box) -> Rectangle:
  left, top, right, bottom = box
  return Rectangle(
    (left - 0.5, top - 0.5),
    right - left,
    bottom - top,
    fill=False,
    edgecolor=_FRAME,
    linewidth=0.7,
  )


def _rgb(image_HWC) -> np.ndarray:
  """Three channels of however many."""
  x = np.asarray(image_HWC)
  return x[..., :3] if x.shape[-1] >= 3 else x[..., :1].repeat(3, -1)
