"""The sections of the page that need no training."""

import jax
import numpy as np

from ijepa_jax.train import report
from ijepa_jax.train.pictures import mask_picture, token_maps
from ijepa_jax.visualize import mask_coverage, retrieval
from ijepa_jax.visualize.gallery import Gallery
from ijepa_jax.visualize.page import markup
from ijepa_jax.visualize.subject import Subject

_NEIGHBORS = 4  # nearest real blocks that are shown of a vector


def masks(
  model: Subject,
  coverage: mask_coverage.Coverage,
  seen: Gallery,
  count: int,
) -> str:
  """How often a patch is hidden and seen, and some masks on images.

  Args:
    model: whose masks they are.
    coverage: of its sampler.
    seen: images with masks.
    count: of images that are shown.
  """
  p = model.method.encoder.patch_size
  figures = []
  for name, share in zip(coverage._fields, coverage[:2], strict=False):
    low, high = 100 * share.min(), 100 * share.max()
    words = f'as {name}: {low:.0f} to {high:.0f}%'
    figures.append(markup.figure(markup.png(_grey(share)), words))
  fields = seen.image, seen.context, seen.targets
  for image, context, targets in zip(*(x[:count] for x in fields), strict=True):
    pair = [
      mask_picture.mask_picture(image, mask[0], p)
      for mask in (context, targets)
    ]
    figures.append(markup.figure(markup.png(np.hstack(pair), 208)))
  return markup.section(
    'What is hidden, what is seen',
    'How often each patch is in a target and in a context, over '
    f"{coverage.draws} draws of this model's masks (bright is often); then "
    'images as the context encoder sees them, each beside one of its target '
    'blocks. What is never in a target is never learned to be predicted.',
    markup.row(figures),
  )


def colors(model: Subject, seen: Gallery, count: int) -> str:
  """Tokens as colors, of `count` images: among all images, and each alone."""
  tokens_BND = seen.vectors['tokens']
  image, patch = seen.image[:count], model.method.encoder.patch_size
  rows, columns = model.grid
  times = next(k for k in (4, 2, 1) if patch % k == 0)
  fine = token_maps.overlapping_tokens(
    jax.jit(lambda x: model.method.targets_of_all(model.target, x)[0]),
    image,
    patch,
    times,
  )
  # Without what all images have in common at a place.
  common = tokens_BND.mean(0).reshape(rows, columns, -1)
  fine -= common.repeat(times, 0).repeat(times, 1)
  fine = token_maps.average_windows(fine, times)
  alone = token_maps.own_colors(fine.reshape(len(fine), -1, fine.shape[-1]))
  of_all = token_maps.principal_colors(tokens_BND)[:count]
  figures = []
  for one, color, own in zip(image, of_all, alone, strict=True):
    of_one = [
      markup.figure(markup.png(one)),
      _colors(color, rows, patch, 'among all'),
      _colors(own, times * rows, patch // times, 'by itself'),
    ]
    figures.append(markup.row(of_one))
  return markup.section(
    'Tokens as colors',
    "The three directions in which the target encoder's tokens differ most "
    '(PCA), as red, green and blue: patches of one color are alike to the '
    'encoder. Among all images a color means the same in each of them: colors '
    'that follow objects speak of content, colors that follow the place in '
    'every image of position. By itself an image has directions of its own, '
    'without what is common to a place, and patches that overlap, moved by '
    'quarters of a patch: it shows the parts of one photograph, where all '
    'photographs together only tell one from the other.',
    markup.row(figures),
  )


def _colors(colors_N3, rows: int, pixels: int, caption: str) -> str:
  """A grid of colors, a square of so many pixels each."""
  grid = colors_N3.reshape(rows, -1, 3).repeat(pixels, 0).repeat(pixels, 1)
  return markup.figure(markup.png(grid), caption)


def maps(model: Subject, seen: Gallery, count: int) -> str:
  """Images to explore: where a true and a predicted token are alike.

  Args:
    model: without a predictor the true tokens alone are shown.
    seen: images with their vectors.
    count: of images that are shown.
  """
  vectors = seen.vectors
  n = model.grid[0] * model.grid[1]
  # Tokens share a large part, which makes all of them alike: without it.
  mean_D = vectors['tokens'].mean((0, 1))
  parts = []
  for i, image in enumerate(seen.image[:count]):
    y_ND = vectors['tokens'][i] - mean_D
    similar, captions = [_cosines(y_ND, y_ND)], ['true token']
    known, start = [None], n // 2
    if model.has_predictor:
      position = seen.targets[i].reshape(-1)
      predicted = vectors['predicted_tokens'][i].reshape(len(position), -1)
      similar.append(np.zeros((n, n), np.float32))
      similar[1][position] = _cosines(predicted - mean_D, y_ND)
      captions.append('predicted token')
      known.append(np.isin(np.arange(n), position))
      start = position[0]
    parts.append(
      markup.explorer(image, model.grid, similar, captions, known, int(start))
    )
  return markup.section(
    'Where a token is alike',
    'Click a patch, or move with the arrow keys: orange are patches of the '
    'image whose targets are alike to that token (by cosine, without the mean '
    'of all tokens), blue those that are unlike. On the left by the true '
    'target of the patch, on the right by what was predicted for it from the '
    'context alone. A good prediction has the same map.',
    markup.row(parts),
  )


def retrieval_section(
  model: Subject, seen: Gallery, hits: dict, count: int
) -> str:
  """How predicted blocks rank, and the nearest real ones.

  Args:
    model: of the predictions.
    seen: images with their vectors.
    hits: from retrieval.all_hits.
    count: images whose first block is shown.
  """
  blocks, pixels = seen.blocks, seen.image
  rows = []
  for name, h in hits.items():
    shares = zip(h[:2], h.chance, strict=True)
    cells = [f'{100 * x:.1f}% ({100 * c:.1f}%)' for x, c in shares]
    rows.append([name, *cells, f'{h.median_rank:.0f} of {h.candidates}'])
  each = len(blocks.image) // len(pixels)
  first = np.arange(min(count, len(pixels))) * each
  neighbors = min(_NEIGHBORS, len(pixels) - 1)

  def strip(title, query):
    nearest = retrieval.nearest_of_others(
      query[first], blocks.image[first], blocks, neighbors
    )
    for own, others in zip(first, nearest, strict=True):
      pictures = [_block(model, blocks, pixels, row) for row in (own, *others)]
      yield markup.figure(
        markup.png(np.hstack(pictures), 96 * len(pictures)),
        f'the block, then those nearest to its {title}',
      )

  strips = zip(
    strip('prediction', blocks.predicted),
    strip('target', blocks.true),
    strict=True,
  )
  return markup.section(
    'Whose block is it',
    'Each predicted block, one vector, is looked for among real blocks by '
    'cosine: how often its own is first, and among the first ten (in brackets: '
    'by chance), and the median rank. Among the same position in all images '
    'the position cannot help: what is above chance is content. The last row '
    'is a control and must not be above chance. Below: the nearest blocks of '
    'other images.',
    markup.table(['', 'first', 'first ten', 'median rank'], rows),
    markup.row(figure for pair in strips for figure in pair),
  )


# Signals of train/health.py, and how they are read.
_SIGNALS = {
  'rankme': 'directions that the features of images span (RankMe)',
  'feature_std': 'how far features of images differ',
  'image_cosine': 'mean cosine between features of two images',
  'token_cosine': 'mean cosine between two tokens of an image',
  'gap_share': "share of the loss by which another image's targets at the same "
  'positions are predicted worse; near zero, position alone is predicted',
}


def health(rows: list[dict], signals: dict[str, float]) -> str:
  """The curves of the run, where there are any, and its signals of health.

  Args:
    rows: of metrics.jsonl.
    signals: see train/health.py, measured on the images of the page.
  """
  parts = []
  if signals:
    cells = [
      [f'{name}: {words}', f'{signals[name]:.3g}']
      for name, words in _SIGNALS.items()
      if name in signals
    ]
    parts.append(markup.table(['', 'here'], cells))
  if rows:
    curves = report.draw_curves(rows)
    parts.append(markup.embedded(curves, 'Curves of the training'))
  return markup.section(
    'Health and curves',
    'Signals of these images, and the course of the training. The loss alone '
    'does not tell a good run: it falls too when the targets collapse.',
    *parts,
  )


def _block(model, blocks, pixels, row) -> np.ndarray:
  return mask_picture.mask_picture(
    pixels[blocks.image[row]],
    blocks.position[row],
    model.method.encoder.patch_size,
  )


def _cosines(query_QD, tokens_ND) -> np.ndarray:
  return np.asarray(token_maps.cosine_maps(query_QD[None], tokens_ND[None]))[0]


def _grey(share_HW) -> np.ndarray:
  """A share in [0, 1] as uint8 [H, W, 1]."""
  return (np.clip(share_HW, 0, 1) * 255).round().astype(np.uint8)[..., None]
