"""Which real blocks a predicted block is like, and how often it is its own.

A block is one vector: the average of its tokens, predicted ones or the target
encoder's, as the loss sees them.
"""

from typing import NamedTuple

import jax
import numpy as np
import tqdm

from ijepa_jax.models import vit


class Blocks(NamedTuple):
  """Blocks of images, a row each: M target blocks of each of n images.

  Attributes:
    image: int32 [n M], which image it is of.
    position: int32 [n M, K], its tokens.
    predicted: float32 [n M, D], averaged predictions.
    true: float32 [n M, D], averaged targets.
  """

  image: np.ndarray
  position: np.ndarray
  predicted: np.ndarray
  true: np.ndarray

  @classmethod
  def of_images(cls, position, predicted, true) -> 'Blocks':
    """From arrays [n, M, ...]."""
    n, m = position.shape[:2]
    image = np.repeat(np.arange(n, dtype=np.int32), m)
    return cls(
      image, *(x.reshape(n * m, -1) for x in (position, predicted, true))
    )


class Hits(NamedTuple):
  """How a block's own true block ranks among candidates.

  Attributes:
    at_1, at_10: share of queries whose own is first, or among the first ten.
    median_rank: from 1.
    candidates: how many there are for each query.
  """

  at_1: float
  at_10: float
  median_rank: float
  candidates: int

  @property
  def chance(self) -> tuple[float, float]:
    """at_1 and at_10 of a random order."""
    n = self.candidates
    return 1 / n, min(10, n) / n

  def numbers(self) -> dict[str, float]:
    """All of it by name, for JSON."""
    chance = dict(
      zip(('chance_at_1', 'chance_at_10'), self.chance, strict=True)
    )
    return self._asdict() | chance


def ranks(query_QD, candidates_CD, own_Q) -> np.ndarray:
  """Rank by cosine of each query's own candidate, from 1: int32 [Q].

  Ties count against the query: of features that are all alike the own one is
  last, not first.

  Args:
    query_QD, candidates_CD: float32.
    own_Q: row of its own among the candidates.
  """
  cosine_QC = _unit(query_QD) @ _unit(candidates_CD).T
  own = np.take_along_axis(cosine_QC, np.asarray(own_Q)[:, None], 1)
  return (cosine_QC >= own).sum(1).astype(np.int32)


def among_all(blocks: Blocks) -> Hits:
  """Ranks the own true block among the blocks of all images."""
  own = np.arange(len(blocks.image))
  rank = ranks(blocks.predicted, blocks.true, own)
  return hits_of(rank, len(blocks.true))


def among_same_position(
  blocks: Blocks, tokens_nND: np.ndarray, predicted=None
) -> Hits:
  """Ranks the own block among all images' blocks AT THE SAME POSITION.

  Position alone can't tell these apart: what is above chance is content.

  Args:
    blocks: the queries.
    tokens_nND: targets of all images.
    predicted: float32 [n M, D] in place of blocks.predicted; with those of
      other images' contexts the hits are to be at chance.
  """
  predicted = blocks.predicted if predicted is None else predicted
  rank = np.empty(len(blocks.image), np.int32)
  rows = tqdm.trange(len(rank), desc='ranks', unit='block', disable=None)
  for i in rows:
    image, position, query = (
      x[i] for x in (blocks.image, blocks.position, predicted)
    )
    candidates = tokens_nND[:, position].mean(1)
    rank[i] = ranks(query[None], candidates, [image])[0]
  return hits_of(rank, len(tokens_nND))


def all_hits(blocks: Blocks, tokens_nND: np.ndarray) -> dict[str, Hits]:
  """How predictions rank, and a control that must be at chance, by name.

  The control takes each image's predictions for the next image's blocks: a
  prediction of another image, whose own is not to be found.
  """
  blocks_per_image = len(blocks.image) // len(tokens_nND)
  others = np.roll(blocks.predicted, blocks_per_image, axis=0)
  return {
    'among the blocks of all images': among_all(blocks),
    'among the same position in all images': among_same_position(
      blocks, tokens_nND
    ),
    "the same, by another image's prediction": among_same_position(
      blocks, tokens_nND, others
    ),
  }


def nearest_of_others(
  query_QD, image_Q, blocks: Blocks, count: int
) -> np.ndarray:
  """Rows of the nearest true blocks of OTHER images: int32 [Q, count].

  Args:
    query_QD: predicted or true blocks.
    image_Q: the image that each query is of.
    blocks: the candidates; of one image, at most one is taken.
    count: at most as many as there are other images.
  """
  cosine_QC = _unit(query_QD) @ _unit(blocks.true).T
  rows = np.empty((len(query_QD), count), np.int32)
  for i, (cosine, image) in enumerate(zip(cosine_QC, image_Q, strict=True)):
    order = np.argsort(-cosine, kind='stable')
    _, first = np.unique(blocks.image[order], return_index=True)
    order = order[np.sort(first)]  # the nearest block of each image
    order = order[blocks.image[order] != image]
    rows[i] = order[:count]
  return rows


def compiled(method, has_predictor: bool = True):
  """Returns (params, target, batch) -> the vectors of a batch's target blocks.

  Args:
    method: ijepa.IJEPA.
    has_predictor: False: the targets alone.

  Returns:
    A function for batches with image, context [n, E, Kc] and targets
    [n, M, Kt]; of several contexts the first predicts. It gives float32
    'tokens' [n, N, D], the targets of all tokens, and of the blocks 'true'
    [n, M, D], 'predicted' [n, M, D] and 'predicted_tokens' [n, M, Kt, D].
  """

  @jax.jit
  def run(params, target, batch):
    y_BND, _ = method.targets_of_all(target, batch['image'])
    true_BMKD = vit.gather(y_BND, batch['targets'])
    vectors = {'tokens': y_BND, 'true': true_BMKD.mean(2)}
    if has_predictor:
      context = batch['context'][:, :1]
      predictions_BMKD = method.predict(
        params, batch['image'], context, batch['targets']
      )[:, 0]
      vectors['predicted'] = predictions_BMKD.mean(2)
      vectors['predicted_tokens'] = predictions_BMKD
    return vectors

  return run


def hits_of(rank: np.ndarray, candidates: int) -> Hits:
  """What ranks come to.

  Args:
    rank: int32, from 1.
    candidates: how many there are for each query.
  """
  return Hits(
    float((rank <= 1).mean()),
    float((rank <= 10).mean()),
    float(np.median(rank)),
    candidates,
  )


def _unit(x) -> np.ndarray:
  x = np.asarray(x, np.float32)
  length = np.linalg.norm(x, axis=-1, keepdims=True)
  return x / np.maximum(length, 1e-12)
