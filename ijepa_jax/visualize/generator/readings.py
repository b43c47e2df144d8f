"""What drawn blocks say in numbers: what a vector fixes, what it leaves open.

Blocks are judged at a few places, each the same in many images, so that the
place alone tells nothing: what differs between vectors is content.
"""

import dataclasses

import jax
import numpy as np

from ijepa_jax.models import vit
from ijepa_jax.runtime import sharding
from ijepa_jax.visualize.generator import blocks, sampler
from ijepa_jax.visualize.subject import Subject

PLACES = 4
_NULL_SEEDS = 2  # enough for a control


@dataclasses.dataclass(frozen=True)
class Judged:
  """n images, each with one hidden block, at one of P places.

  Attributes:
    images: uint8 [n, H, W, C].
    label: int32 [n, L].
    place: int32 [n], in turn.
    context: int32 [P, K], the tokens that are seen at each place.
    target: int32 [P, K], the tokens of the block.
    boxes: of the blocks, see blocks.box_of.
    vectors: float32 [P, n, D], of all images at all places.
  """

  images: np.ndarray
  label: np.ndarray
  place: np.ndarray
  context: np.ndarray
  target: np.ndarray
  boxes: list[tuple[int, ...]]
  vectors: np.ndarray

  def __len__(self) -> int:
    return len(self.images)

  @property
  def vector(self) -> np.ndarray:
    """float32 [n, D], of each image at its own place."""
    return self.vectors[self.place, np.arange(len(self))]

  def box(self, i: int) -> tuple[int, ...]:
    return self.boxes[self.place[i]]

  def real(self, size: int) -> np.ndarray:
    """The true blocks: uint8 [n, size, size, C]."""
    cuts = [blocks.cut(x, self.box(i), size) for i, x in enumerate(self.images)]
    return np.stack(cuts)


def judged_blocks(
  model: Subject, images, label, mesh, *, seed: int, batch_size: int
) -> Judged:
  """Predicts the block at each place in each image.

  Args:
    model: whose predictions they are.
    images: uint8 [n, H, W, C], that it was not trained on.
    label: int32 [n, L].
    mesh: devices that share the work.
    seed: of the masks.
    batch_size: images at a time.
  """
  places = min(PLACES, len(images) // 2)
  # The last images have no fellow at their place.
  images = images[: len(images) // places * places]
  masks = [model.method.sampler(seed, 0, row) for row in range(places)]
  context = np.stack([context_EK[0] for context_EK, _ in masks])
  target = np.stack([target_MK[0] for _, target_MK in masks])
  run = jax.jit(
    lambda params, b: blocks.condition(model.method, params, b)[:, 0]
  )

  def at(place):
    masks = {'context': context[place], 'targets': target[place]}
    return _in_batches(run, model.params, images, masks, mesh, batch_size)

  columns, p = model.grid[1], model.method.encoder.patch_size
  return Judged(
    images,
    label[: len(images)],
    np.arange(len(images), dtype=np.int32) % places,
    context,
    target,
    [blocks.box_of(block, columns, p) for block in target],
    np.stack([at(place) for place in range(places)]),
  )


@dataclasses.dataclass(frozen=True)
class Drawn:
  """What was drawn for n judged blocks; uint8, s x s pixels each.

  Attributes:
    samples: [n, k, s, s, C], k seeds of each vector.
    null: [n, 2, s, s, C], two of these noises without a vector.
    mean: [n, s, s, C], by the regressor.
    real: [n, s, s, C], the true blocks.
    places: blocks of one place follow each other by so many.
  """

  samples: np.ndarray
  null: np.ndarray
  mean: np.ndarray
  real: np.ndarray
  places: int

  @property
  def other(self) -> np.ndarray:
    """[n, k, ...] samples of the next image's vector at the same place."""
    return np.roll(self.samples, self.places, axis=0)


def drawn_blocks(pen: sampler.Pen, judged: Judged, seeds: int) -> Drawn:
  """Draws each judged block `seeds` times; the noise is of each by itself."""
  real = judged.real(pen.size)
  vectors = np.repeat(judged.vector, seeds, axis=0)
  numbers = np.arange(len(vectors))
  samples = pen.draw(vectors, numbers)
  few = numbers % seeds < _NULL_SEEDS
  null = pen.draw(vectors[few], numbers[few], known=False)
  return Drawn(
    samples.reshape(len(judged), seeds, *real.shape[1:]),
    null.reshape(len(judged), _NULL_SEEDS, *real.shape[1:]),
    pen.mean(judged.vector),
    real,
    len(judged.context),
  )


# ---- How much the vector fixes ----


def spread(samples_nkHWC, place_n) -> dict:
  """Variance between vectors and, of one vector, over seeds.

  Args:
    samples_nkHWC: uint8, k seeds of n vectors.
    place_n: vectors of one place are compared.

  Returns:
    'between', 'within' and 'ratio' of pixels in [0, 1], of all pixels together;
    the ratio by 'brightness', 'color' (what is left without it), 'coarse' (4 x
    4 parts of the block) and 'fine' (the rest); 'between_map' and 'within_map':
    lists [H][W].
  """
  x = np.asarray(samples_nkHWC, np.float32) / 255
  grey = x.mean(-1, keepdims=True)
  coarse = _coarse(x)
  between, within = _variances(x, place_n)
  parts = {
    'brightness': grey,
    'color': x - grey,
    'coarse': coarse,
    'fine': x - coarse,
  }
  ratios = {}
  for name, part in parts.items():
    b, w = (v.mean() for v in _variances(part, place_n))
    if w + b > 1e-9:  # grey images have no color
      ratios[name] = float(b / max(w, 1e-9))
  return {
    'between': float(between.mean()),
    'within': float(within.mean()),
    'ratio': float(between.mean() / max(within.mean(), 1e-9)),
    'ratios': ratios,
    'between_map': between.mean(-1).tolist(),
    'within_map': within.mean(-1).tolist(),
  }


def _variances(x_nkHWC, place_n):
  """Of each pixel, between vectors of one place and over seeds: [H, W, C]."""
  k = x_nkHWC.shape[1]
  within = x_nkHWC.var(1, ddof=1).mean(0) if k > 1 else 0 * x_nkHWC[0, 0]
  mean = x_nkHWC.mean(1)
  groups = [mean[place_n == place] for place in np.unique(place_n)]
  between = np.mean([m.var(0, ddof=1) for m in groups], axis=0)
  # The mean over k seeds varies by itself.
  return np.maximum(between - within / k, 0), within


def _coarse(x, parts: int = 4):
  """Each image averaged over parts x parts of it, at its own size."""
  for axis in (-3, -2):
    for piece in np.array_split(np.arange(x.shape[axis]), parts):
      index = [slice(None)] * x.ndim
      index[axis] = piece
      mean = x[tuple(index)].mean(axis, keepdims=True)
      if piece[0] == 0:
        out = np.empty_like(x)
      out[tuple(index)] = mean
    x = out
  return x


# ---- Whether the vector is found again ----


def reencoded_ranks(
  model: Subject, judged: Judged, drawn_nHWC, mesh, batch_size: int
) -> np.ndarray:
  """Ranks the own vector when a drawn block is encoded in ANOTHER image.

  The block is pasted into the next image, the target encoder sees that, and the
  average of the block's tokens is compared, by cosine and without the mean of
  all, with the vectors of all images at that place (but the one that it was
  pasted into, which the context may betray).

  Args:
    model: that encodes.
    judged: whose vectors are ranked.
    drawn_nHWC: uint8, a block for each.
    mesh: devices that share the work.
    batch_size: images at a time.

  Returns:
    int32 [n] from 1; ties count against the own one.
  """
  n = len(judged)
  host = np.roll(np.arange(n), -1)
  pasted = np.stack(
    [
      blocks.paste(judged.images[host[i]], judged.box(i), drawn_nHWC[i])
      for i in range(n)
    ]
  )

  def encode(target, batch):
    y_BND, _ = model.method.targets_of_all(target, batch['image'])
    return vit.gather(y_BND, batch['targets'])[:, 0].mean(1)

  target = judged.target[judged.place][:, None]
  query = _in_batches(
    jax.jit(encode),
    *(model.target, pasted, {'targets': target}, mesh, batch_size),
  )
  ranks = np.empty(n, np.int32)
  for place in np.unique(judged.place):
    rows = np.flatnonzero(judged.place == place)
    candidates = _unit(_centered(judged.vectors[place]))
    cosine = _unit(_centered(query[rows])) @ candidates.T
    own = cosine[np.arange(len(rows)), rows][:, None]
    others = cosine >= own
    others[np.arange(len(rows)), host[rows]] = False
    ranks[rows] = others.sum(1)
  return ranks


def _in_batches(run, params, images, masks, mesh, batch_size):
  """run(params, batch) of all images; masks of one for all, or of each."""
  size = -(-min(batch_size, len(images)) // mesh.size) * mesh.size
  out = []
  for i in range(0, len(images), size):
    rows = np.minimum(np.arange(i, i + size), len(images) - 1)
    batch = {'image': images[rows]}
    for name, mask in masks.items():
      if mask.ndim == 1:
        batch[name] = np.broadcast_to(mask, (size, 1, len(mask)))
      else:
        batch[name] = mask[rows]
    part = run(params, sharding.to_global(batch, mesh))
    out.append(np.asarray(part, np.float32))
  return np.concatenate(out)[: len(images)]


def _centered(x_ND):
  return x_ND - x_ND.mean(0)


def _unit(x_ND):
  return x_ND / np.maximum(np.linalg.norm(x_ND, axis=-1, keepdims=True), 1e-12)


def explained(predicted_nHWC, real_nHWC, place_n) -> float:
  """Share of the true pixels' variance, at each place, that is predicted."""
  predicted = np.asarray(predicted_nHWC, np.float32)
  real = np.asarray(real_nHWC, np.float32)
  mean = np.zeros_like(real)
  for place in np.unique(place_n):
    mean[place_n == place] = real[place_n == place].mean(0)
  error = ((predicted - real) ** 2).mean()
  return float(1 - error / max(((real - mean) ** 2).mean(), 1e-9))
