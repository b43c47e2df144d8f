"""Which tokens an image shows and which are predicted (paper section 3).

Multi-block masking: several target blocks, which may overlap, and a large
context block without any token of the targets. A sampler is a pure function of
(seed, step, row of the global batch): the step draws the sizes of the blocks,
each image their positions.

Static shapes need one decision. Contexts that go with one size of target differ
in length from image to image; the release cuts those of a device's batch to the
shortest. Here they are cut to one fixed length, the EXPECTED shortest of
`group` images, and an image whose context is shorter is drawn again. So a run
has a handful of shapes, no mask is padded, nothing depends on the number of
devices, and no context ever holds a target token.
"""

import collections
import dataclasses
import functools
import itertools
import math

import numpy as np

from ijepa_jax.errors import UserError, one_of

# Table 6's samplers -> number of target blocks.
TABLE_6_TARGETS = {'rasterized': 3, 'block': 1, 'random': 1}
NUM_SIZE_DRAWS = 4096  # values of the draw of a block size: all can be listed
ESTIMATE_CHUNKS, ESTIMATE_CHUNK_SIZE = 20, 8000  # layouts, for a context length
MIN_ACCEPTED = 0.05  # share of layouts; settings that waste more are refused
MAX_DRAWS = 1000  # layouts an image; at that share one in 1e22 needs more


def make_sampler(kind: str, *, grid: tuple[int, int], **settings):
  """Returns the mask sampler named `kind`.

  Args:
    kind: 'release', the released code's blocks: always smaller than the grid,
      never at the last offset, contexts cut to their lowest indices. 'uniform',
      the paper's: up to the whole grid, at every offset, contexts cut at
      random. 'rasterized', 'block', 'random': see `Partition`.
    grid: rows and columns of tokens.
    **settings: other fields of `Sampler`; kinds ignore those they don't need.

  Returns:
    An object with `num_contexts` E, `num_targets` M; `shapes`, every (Kc, Kt)
    that a step may have, sorted; `shape(seed, step)`, the one that this step
    has; and a call (seed, step, row) -> (context int32 [E, Kc], targets int32
    [M, Kt]): row-major indices of tokens, ascending in each mask.

  Raises:
    UserError: an unknown kind, or settings that no image could meet.
  """
  one_of('mask.sampler', kind, ('release', 'uniform', *TABLE_6_TARGETS))
  if min(grid) < 2:
    raise UserError(
      f'A grid of {tuple(grid)} tokens is too small for masks: take larger '
      'images or smaller patches.'
    )
  settings |= {k: tuple(v) for k, v in settings.items() if type(v) is list}
  if kind in TABLE_6_TARGETS:
    settings |= {'num_contexts': 1, 'num_targets': TABLE_6_TARGETS[kind]}
    return Partition(kind, tuple(grid), **settings)
  return MultiBlock(kind, tuple(grid), **settings)


@dataclasses.dataclass(frozen=True)
class Sampler:
  """The settings: scale is a share of the grid's area, aspect is h / w."""

  kind: str
  grid: tuple[int, int]
  num_contexts: int = 1
  num_targets: int = 4
  context_scale: tuple[float, float] = (0.85, 1.0)
  context_aspect: tuple[float, float] = (1.0, 1.0)  # then clipped to the grid
  target_scale: tuple[float, float] = (0.15, 0.2)
  target_aspect: tuple[float, float] = (0.75, 1.5)  # grows with the scale
  min_keep: int = 10  # every context keeps more tokens than this
  allow_overlap: bool = False  # leave target tokens in the context
  group: int = 128  # images; a device's batch in the release
  fraction: float = 0.6  # of the tokens, predicted by 'block' and 'random'

  def shape(self, seed: int, step: int) -> tuple[int, int]:
    return self.shapes[0]


@dataclasses.dataclass(frozen=True)
class MultiBlock(Sampler):
  """Section 3's blocks ('uniform') and the release's."""

  def __post_init__(self):
    for name in ('num_contexts', 'num_targets', 'group', 'min_keep'):
      value, minimum = getattr(self, name), int(name != 'min_keep')
      if value < minimum:
        raise UserError(f'mask.{name} is {value}: take {minimum} or more.')
    for name in itertools.product(('context', 'target'), ('scale', 'aspect')):
      bounds = getattr(self, '_'.join(name))
      maximum = 1 if name[1] == 'scale' else max(self.grid)
      if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= maximum:
        raise UserError(
          f'mask.{"_".join(name)} is {bounds}: take two ascending numbers '
          f'above 0 and up to {maximum}.'
        )
    _ = self._context_lengths  # refuses settings that no image can meet

  @functools.cached_property
  def _sizes(self) -> dict[str, list[tuple[int, int]]]:
    """(h, w) by the draw, which sets area AND aspect, as in the release."""
    sizes, (rows, columns) = {'context': [], 'target': []}, self.grid
    for block, i in itertools.product(sizes, range(NUM_SIZE_DRAWS)):
      scale = getattr(self, block + '_scale')
      aspect = getattr(self, block + '_aspect')
      r = (i + 0.5) / NUM_SIZE_DRAWS
      area = int(rows * columns * (scale[0] + r * (scale[1] - scale[0])))
      ratio = aspect[0] + r * (aspect[1] - aspect[0])
      h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
      if block == 'target' and not (1 <= h <= rows and 1 <= w <= columns):
        raise UserError(
          f'mask.target_scale {scale} and mask.target_aspect {aspect} make '
          f'blocks of {(h, w)}, which a grid of {self.grid} cannot hold: '
          'change one of the two.'
        )
      margin = int(self.kind == 'release')  # blocks are less than the grid
      sizes[block].append((min(h, rows - margin), min(w, columns - margin)))
    return sizes

  @functools.cached_property
  def _context_lengths(self) -> dict[tuple[int, int], int]:
    """Size (h, w) of the target blocks -> number of context tokens."""
    frequencies = collections.Counter(self._sizes['context'])
    contexts = tuple(sorted(frequencies.items()))
    flipped = tuple(sorted((s[::-1], n) for s, n in contexts))
    # Transposing a layout changes no count, so on a square grid 5 x 6 and 6 x 5
    # have one length; one estimate for both gives one shape, compiled once.
    symmetric = self.grid == self.grid[::-1] and contexts == flipped
    return {
      s: context_length(self, tuple(sorted(s)) if symmetric else s, contexts)
      for s in sorted(set(self._sizes['target']))
    }

  @functools.cached_property
  def shapes(self) -> tuple[tuple[int, int], ...]:
    return tuple(
      sorted({(k, h * w) for (h, w), k in self._context_lengths.items()})
    )

  def shape(self, seed: int, step: int) -> tuple[int, int]:
    h, w = self._sizes['target'][_size_draws(seed, step)[0]]
    return self._context_lengths[h, w], h * w

  def __call__(self, seed: int, step: int, row: int):
    target_draw, context_draw = _size_draws(seed, step)
    target_size = self._sizes['target'][target_draw]
    context_size = self._sizes['context'][context_draw]
    length = self._context_lengths[target_size]
    rng = _rng(seed, step, 1 + row)
    for _ in range(MAX_DRAWS):
      targets = self._place(rng, target_size, self.num_targets)
      contexts = self._place(rng, context_size, self.num_contexts)
      if not self.allow_overlap:
        free = np.ones(math.prod(self.grid), bool)
        free[targets] = False
        contexts = [c[free[c]] for c in contexts]
      if min(map(len, contexts)) < length:  # which is above min_keep
        continue
      if self.kind == 'uniform':
        contexts = [np.sort(rng.permutation(c)[:length]) for c in contexts]
      # The release keeps the lowest indices, and so drops the bottom rows.
      return np.stack([c[:length] for c in contexts]), targets
    raise UserError(
      f'No layout of {MAX_DRAWS} left {length} tokens of context (seed {seed}, '
      f'step {step}, row {row}): relax the mask settings.'
    )

  def _places(self, size) -> tuple[int, int]:
    """Returns in how many rows and columns a block of `size` can start."""
    last = int(self.kind != 'release')  # the release leaves out the last one
    return self.grid[0] - size[0] + last, self.grid[1] - size[1] + last

  def _blocks(self, size, top, left) -> np.ndarray:
    """The tokens int32 [n, h * w] of n blocks that start at top, left [n]."""
    h, w = (np.arange(n, dtype=np.int32) for n in size)
    block = (h[:, None] * self.grid[1] + w).ravel()
    return block + (top * self.grid[1] + left)[:, None]

  def _place(self, rng, size, count) -> np.ndarray:
    """The tokens int32 [count, h * w] of blocks at random places."""
    # Much quicker than rng.integers with an array of bounds.
    starts = rng.random((count, 2)) * self._places(size)
    return self._blocks(size, *starts.astype(np.int32).T)

  def packed_places(self, size) -> np.ndarray:
    """Every place of a block, one bit a token: uint64 [places, words]."""
    blocks = self._blocks(size, *np.indices(self._places(size)).reshape(2, -1))
    bits = np.zeros((len(blocks), 64 * -(-math.prod(self.grid) // 64)), bool)
    np.put_along_axis(bits, blocks, True, axis=1)
    return np.packbits(bits, axis=1).view(np.uint64)


@functools.lru_cache(maxsize=1024)
def context_length(s: MultiBlock, size, contexts) -> int:
  """Estimates the context length that goes with target blocks of `size`.

  It is the expected shortest context of a group of images: E[min] = sum over
  k >= 1 of P(length >= k)^group, among layouts that keep more than `min_keep`
  tokens. If one context size rarely reaches this length, it is lowered until
  every size reaches it in at least a quarter of those layouts. `contexts` are
  pairs of a context size (h, w) and its frequency.
  """
  rng, num_tokens = np.random.default_rng(0), math.prod(s.grid)
  target_places, chunk = s.packed_places(size), ESTIMATE_CHUNK_SIZE
  context_places = [s.packed_places(c) for c, _ in contexts]
  counts = np.zeros((len(contexts), num_tokens + 1), np.int64)
  for _ in range(ESTIMATE_CHUNKS):
    taken = np.zeros((chunk, target_places.shape[1]), np.uint64)
    for _ in range(0 if s.allow_overlap else s.num_targets):
      taken |= target_places[rng.integers(len(target_places), size=chunk)]
    for places, count in zip(context_places, counts, strict=True):
      blocks = places[rng.integers(len(places), size=(s.num_contexts, chunk))]
      kept = np.bitwise_count(blocks & ~taken).sum(-1, dtype=np.int64)
      count += np.bincount(kept.min(0), minlength=num_tokens + 1)
  # [context size, k]: share of the layouts whose contexts keep k or more.
  at_least = counts[:, ::-1].cumsum(1)[:, ::-1] / (ESTIMATE_CHUNKS * chunk)
  accepted = at_least[:, [min(s.min_keep + 1, num_tokens)]]
  of_accepted = np.minimum(at_least / np.maximum(accepted, 1e-9), 1)
  shortest = (of_accepted[:, 1:] ** s.group).sum(1)
  length = round(np.average(shortest, weights=[n for _, n in contexts]))
  length = min(length, *((of_accepted >= 0.25).sum(1) - 1))
  if length <= s.min_keep or at_least[:, length].min() < MIN_ACCEPTED:
    raise UserError(
      f'On a grid of {s.grid} fewer than {MIN_ACCEPTED:.0%} of the layouts '
      f'with {s.num_targets} targets of {size} tokens leave enough context, '
      f'more than mask.min_keep = {s.min_keep} tokens: lower it, or take fewer '
      'or smaller targets or larger contexts.'
    )
  return int(length)


@dataclasses.dataclass(frozen=True)
class Partition(Sampler):
  """Table 6: the context and the targets together cover the grid.

  'rasterized': a random quadrant predicts the other three; an odd grid, which
  has no four quadrants of one size, is refused. 'block' predicts a square,
  'random' tokens anywhere: `fraction` of the grid, from all other tokens.
  """

  def __post_init__(self):
    (rows, columns), (kc, kt) = self.grid, self.shapes[0]
    if self.kind == 'rasterized' and (rows % 2 or columns % 2):
      raise UserError(
        "mask.sampler 'rasterized' needs quadrants of one size, and a grid of "
        f'{self.grid} tokens is odd: change data.image_size.'
      )
    limit = min(rows, columns) ** 2 if self.kind == 'block' else rows * columns
    if not 0 < kt <= limit or kc < 1:
      raise UserError(
        f'mask.fraction is {self.fraction}: take a share that leaves some of a '
        f'grid of {self.grid} on both sides, and as a square fits it.'
      )

  @functools.cached_property
  def shapes(self) -> tuple[tuple[int, int], ...]:
    n = math.prod(self.grid)
    if self.kind == 'rasterized':
      return ((n // 4, n // 4),)
    k = n * min(max(self.fraction, 0), 1)
    k = round(math.sqrt(k)) ** 2 if self.kind == 'block' else round(k)
    return ((n - k, k),)

  def __call__(self, seed: int, step: int, row: int):
    rng = _rng(seed, step, 1 + row)
    (rows, columns), (_, length) = self.grid, self.shapes[0]
    parts = np.zeros(self.grid, int)  # 0: context, m: m-th target
    if self.kind == 'rasterized':
      parts[rows // 2 :] += 2
      parts[:, columns // 2 :] += 1
      parts = (parts + rng.integers(4)) % 4
    elif self.kind == 'block':
      side = math.isqrt(length)
      top, left = rng.integers((rows - side + 1, columns - side + 1))
      parts[top : top + side, left : left + side] = 1
    else:
      parts.flat[rng.permutation(parts.size)[:length]] = 1
    masks = [np.flatnonzero(parts == i) for i in range(self.num_targets + 1)]
    return np.array(masks[:1], np.int32), np.array(masks[1:], np.int32)


def _rng(seed: int, step: int, stream: int) -> np.random.Generator:
  """Counter-based, so quick to make; streams are 2^64 draws apart."""
  counter = (0, stream, step, 0)
  return np.random.Generator(np.random.Philox(key=seed, counter=counter))


@functools.lru_cache(maxsize=64)  # every row of a step asks the same
def _size_draws(seed: int, step: int) -> tuple[int, int]:
  """Returns the step's draws of the target's and of the context's size."""
  return tuple(_rng(seed, step, 0).integers(NUM_SIZE_DRAWS, size=2).tolist())
