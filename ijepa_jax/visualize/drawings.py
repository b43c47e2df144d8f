"""The sections of the page that need no training."""

import numpy as np

from ijepa_jax.visualize import mask_coverage, page, retrieval, token_maps
from ijepa_jax.visualize.subject import Subject

_NEIGHBORS = 4  # nearest real blocks that are shown of a vector


def masks(model: Subject, coverage: mask_coverage.Coverage, shown: dict) -> str:
  """How often a patch is hidden and seen, and some masks on images.

  Args:
    model: whose masks they are.
    coverage: of its sampler.
    shown: a batch, with image, context and targets.
  """
  p = model.method.encoder.patch_size
  figures = []
  for name, share in zip(coverage._fields, coverage[:2], strict=False):
    low, high = 100 * share.min(), 100 * share.max()
    words = f'as {name}: {low:.0f} to {high:.0f}%'
    figures.append(page.figure(page.png(_grey(share)), words))
  for image, context, targets in zip(
    *(shown[k] for k in ('image', 'context', 'targets')), strict=True
  ):
    pair = [
      mask_coverage.mask_picture(image, mask[0], p)
      for mask in (context, targets)
    ]
    figures.append(page.figure(page.png(np.hstack(pair), 208)))
  return page.section(
    'What is hidden, what is seen',
    'How often each patch is in a target and in a context, over '
    f"{coverage.draws} draws of this model's masks (bright is often); then "
    'images as the context encoder sees them, each beside one of its target '
    'blocks. What is never in a target is never learned to be predicted.',
    page.row(figures),
  )


def colors(model: Subject, shown: dict, tokens_nND: np.ndarray) -> str:
  """Tokens as colors, of the images that are shown among all."""
  of_tokens = token_maps.principal_colors(tokens_nND)
  figures = []
  for image, color in zip(shown['image'], of_tokens, strict=False):
    pictures = page.png(image), page.png(color.reshape(*model.grid, 3))
    figures += [page.figure(picture) for picture in pictures]
  return page.section(
    'Tokens as colors',
    "The three directions in which the target encoder's tokens differ most "
    'over all images (PCA), as red, green and blue: patches of one color are '
    'alike to the encoder, in whatever image. Colors that follow objects speak '
    'of content; colors that follow the place in every image, of position.',
    page.row(figures),
  )


def maps(model: Subject, shown: dict, vectors: dict) -> str:
  """Images to explore: where a true and a predicted token are alike.

  Args:
    model: without a predictor the true tokens alone are shown.
    shown: a batch.
    vectors: see retrieval.compiled, of all images.
  """
  n = model.grid[0] * model.grid[1]
  # Tokens share a large part, which makes all of them alike: without it.
  mean_D = vectors['tokens'].mean((0, 1))
  parts = []
  for i, image in enumerate(shown['image']):
    y_ND = vectors['tokens'][i] - mean_D
    similar, captions = [_cosines(y_ND, y_ND)], ['true token']
    known, start = [None], n // 2
    if model.has_predictor:
      position = vectors['position'][i].reshape(-1)
      predicted = vectors['predicted_tokens'][i].reshape(len(position), -1)
      similar.append(np.zeros((n, n), np.float32))
      similar[1][position] = _cosines(predicted - mean_D, y_ND)
      captions.append('predicted token')
      known.append(np.isin(np.arange(n), position))
      start = position[0]
    parts.append(
      page.explorer(image, model.grid, similar, captions, known, int(start))
    )
  return page.section(
    'Where a token is alike',
    'Click a patch, or move with the arrow keys: orange are patches of the '
    'image whose targets are alike to that token (by cosine, without the mean '
    'of all tokens), blue those that are unlike. On the left by the true '
    'target of the patch, on the right by what was predicted for it from the '
    'context alone. A good prediction has the same map.',
    *parts,
  )


def retrieval_section(
  model: Subject, blocks: retrieval.Blocks, hits: dict, pixels, count: int
) -> str:
  """How predicted blocks rank, and the nearest real ones.

  Args:
    model: of the predictions.
    blocks: of all images.
    hits: from retrieval.all_hits.
    pixels: uint8 [n, H, W, C], all images.
    count: images whose first block is shown.
  """
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
      yield page.figure(
        page.png(np.hstack(pictures), 96 * len(pictures)),
        f'the block, then those nearest to its {title}',
      )

  strips = zip(
    strip('prediction', blocks.predicted),
    strip('target', blocks.true),
    strict=True,
  )
  return page.section(
    'Whose block is it',
    'Each predicted block, one vector, is looked for among real blocks by '
    'cosine: how often its own is first, and among the first ten (in brackets: '
    'by chance), and the median rank. Among the same position in all images '
    'the position can not help: what is above chance is content. The last row '
    'is a control and must not be above chance. Below: the nearest blocks of '
    'other images.',
    page.table(['', 'first', 'first ten', 'median rank'], rows),
    page.row(figure for pair in strips for figure in pair),
  )


def _block(model, blocks, pixels, row) -> np.ndarray:
  return mask_coverage.mask_picture(
    pixels[blocks.image[row]],
    blocks.position[row],
    model.method.encoder.patch_size,
  )


def _cosines(query_QD, tokens_ND) -> np.ndarray:
  return np.asarray(token_maps.cosine_maps(query_QD[None], tokens_ND[None]))[0]


def _grey(share_HW) -> np.ndarray:
  """A share in [0, 1] as uint8 [H, W, 1]."""
  return (np.clip(share_HW, 0, 1) * 255).round().astype(np.uint8)[..., None]
