"""Which patches are seen and which are predicted (paper section 3 and table 6).

A sampler gives, for (seed, step, row of the global batch), the token indices of
the context and target blocks of one image. The size of the blocks is drawn once
a step, their positions for each image. Shapes are static: for each size of the
target blocks there is ONE context length, so a run compiles a handful of steps
and no mask is padded.

`release` follows the released code: sizes and clamping, positions that never
reach the last row and column, and a cut of every context to the shortest of a
group of images, keeping the lowest indices. The cut here is to the EXPECTED
shortest, and an image whose context would be shorter is drawn again.
"""

import dataclasses
import difflib
import functools
import math

import numpy as np

KINDS = ('release', 'uniform', 'rasterized', 'block', 'random')
LEVELS = 4096  # values of the number drawn for a size, so that all are known
SAMPLES = 20_000  # images from which a context length is estimated
LEAST_ACCEPTED = 0.05  # share of layouts, below which settings are refused


def make_sampler(
  kind: str,
  *,
  grid: tuple[int, int],
  num_contexts: int = 1,
  num_targets: int = 4,
  context_scale: tuple[float, float] = (0.85, 1.0),
  context_aspect: tuple[float, float] = (1.0, 1.0),
  target_scale: tuple[float, float] = (0.15, 0.2),
  target_aspect: tuple[float, float] = (0.75, 1.5),
  min_keep: int = 10,
  allow_overlap: bool = False,
  group: int = 128,
  fraction: float = 0.6,
):
  """A sampler by name.

  Args:
    kind: 'release', 'uniform' (all positions, full-size contexts, surplus tokens
      dropped at random), or of table 6 'rasterized' (a quadrant predicts the
      other three), 'block' and 'random' (a block, or random patches, of
      `fraction` of the grid are predicted from the rest). Those of table 6 know
      no other setting than `grid` and `fraction`.
    grid: rows and columns of patches.
    num_contexts, num_targets: blocks of each image.
    context_scale, target_scale: smallest and largest share of the grid.
    context_aspect, target_aspect: smallest and largest height over width.
    min_keep: a context keeps more tokens than this.
    allow_overlap: leave the targets in the context.
    group: images over whose shortest context all are cut.
    fraction: of the grid, predicted by 'block' and 'random'.

  Returns:
    An object with `num_contexts` E, `num_targets` M, `shapes`, the sorted
    (Kc, Kt) that a step can have, `shape(seed, step)`, and a call
    (seed, step, row) -> (context int32 [E, Kc], targets int32 [M, Kt]) of token
    indices, ascending in each mask.

  Raises:
    ValueError: an unknown kind, or settings that no image could meet.
  """
  if kind not in KINDS:
    near = difflib.get_close_matches(kind, KINDS, 1)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    raise ValueError(
      f'mask.sampler is {kind!r}: take one of {", ".join(KINDS)}.{hint}'
    )
  if min(grid) < 2:
    raise ValueError(
      f'A grid of {grid[0]} x {grid[1]} patches is too small for masks: take '
      'larger images or smaller patches.'
    )
  if kind == 'rasterized':
    return Rasterized(grid)
  if kind in ('block', 'random'):
    return Complement(grid, fraction, kind == 'block')
  return Blocks(
    grid=grid,
    reach_all=kind == 'uniform',
    num_contexts=num_contexts,
    num_targets=num_targets,
    context_scale=tuple(context_scale),
    context_aspect=tuple(context_aspect),
    target_scale=tuple(target_scale),
    target_aspect=tuple(target_aspect),
    min_keep=min_keep,
    allow_overlap=allow_overlap,
    group=group,
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
  """Multi-block masks: `num_targets` small blocks, contexts without them."""

  grid: tuple[int, int]
  reach_all: bool
  num_contexts: int
  num_targets: int
  context_scale: tuple[float, float]
  context_aspect: tuple[float, float]
  target_scale: tuple[float, float]
  target_aspect: tuple[float, float]
  min_keep: int
  allow_overlap: bool
  group: int

  def __post_init__(self):
    for name in ('num_contexts', 'num_targets', 'group'):
      if getattr(self, name) < 1:
        raise ValueError(
          f'mask.{name} is {getattr(self, name)}: take 1 or more.'
        )
    if self.min_keep < 0:
      raise ValueError(f'mask.min_keep is {self.min_keep}: take 0 or more.')
    for name in ('context_scale', 'target_scale'):
      low, high = getattr(self, name)
      if not 0 < low <= high <= 1:
        raise ValueError(
          f'mask.{name} is {(low, high)}: take two ascending shares of the '
          'grid, above 0 and up to 1.'
        )
    for name in ('context_aspect', 'target_aspect'):
      low, high = getattr(self, name)
      if not 0 < low <= high:
        raise ValueError(
          f'mask.{name} is {(low, high)}: take two ascending ratios above 0.'
        )
    for size in (*self._context_sizes, *self._target_sizes):
      if min(size) < 1:
        raise ValueError(
          f'mask.target_scale {self.target_scale} makes blocks of '
          f'{size[0]} x {size[1]} on a grid of {self.grid[0]} x '
          f'{self.grid[1]}: take a larger one.'
        )
    _ = self.shapes  # refuses what no image can meet

  @functools.cached_property
  def _target_sizes(self) -> dict[tuple[int, int], float]:
    return self._sizes(self.target_scale, self.target_aspect)

  @functools.cached_property
  def _context_sizes(self) -> dict[tuple[int, int], float]:
    return self._sizes(self.context_scale, self.context_aspect)

  def _sizes(self, scale, aspect) -> dict[tuple[int, int], float]:
    """Every size that can be drawn, with its probability."""
    sizes = [
      self._size((i + 0.5) / LEVELS, scale, aspect) for i in range(LEVELS)
    ]
    return {s: sizes.count(s) / LEVELS for s in dict.fromkeys(sizes)}

  def _size(self, r, scale, aspect) -> tuple[int, int]:
    """Height and width for r in [0, 1), which sets area AND aspect (release)."""
    rows, columns = self.grid
    area = int(rows * columns * (scale[0] + r * (scale[1] - scale[0])))
    ratio = aspect[0] + r * (aspect[1] - aspect[0])
    spare = 0 if self.reach_all else 1  # release: always less than the grid
    return (
      min(round(math.sqrt(area * ratio)), rows - spare),
      min(round(math.sqrt(area / ratio)), columns - spare),
    )

  def _places(self, size) -> tuple[int, int]:
    """How many rows and columns a block can start at."""
    spare = 1 if self.reach_all else 0  # release: the last offset never is
    return self.grid[0] - size[0] + spare, self.grid[1] - size[1] + spare

  @functools.cached_property
  def _lengths(self) -> dict[tuple[int, int], int]:
    """Context length for each target size: the group's expected shortest."""
    rng = np.random.default_rng(0)
    lengths = {}
    for size in self._target_sizes:
      # On a square grid with square contexts a size and its transpose have one
      # answer; asking once makes them share a compiled step.
      same = tuple(sorted(size)), self.grid[0] == self.grid[1]
      if all(same) and size[::-1] in lengths and self.context_aspect == (1, 1):
        lengths[size] = lengths[size[::-1]]
      else:
        lengths[size] = self._length(rng, size)
    return lengths

  def _length(self, rng, size) -> int:
    expected, accepted = 0.0, []
    counts = []
    for context_size, chance in self._context_sizes.items():
      n = self._count(rng, size, context_size)
      counts.append((chance, n))
      n = np.sort(n[n > self.min_keep])
      accepted.append(chance * len(n) / SAMPLES)
      if len(n):
        # E[min] of a group = sum over k of P(length >= k) ** group.
        k = np.arange(1, n[-1] + 1)
        least = 1 - np.searchsorted(n, k) / len(n)
        expected += chance * (least**self.group).sum()
    length = round(expected)
    kept = sum(chance * (n >= length).mean() for chance, n in counts)
    if min(sum(accepted), kept) < LEAST_ACCEPTED or length < 1:
      raise ValueError(
        f'With {self.num_targets} targets of {size[0]} x {size[1]} patches on '
        f'a grid of {self.grid[0]} x {self.grid[1]}, {sum(accepted):.1%} of '
        f'the layouts leave a context of more than {self.min_keep} patches: '
        'take a smaller mask.min_keep, fewer or smaller targets, or a larger '
        'mask.context_scale.'
      )
    return length

  def _count(self, rng, size, context_size) -> np.ndarray:
    """Tokens of the shortest context of each of SAMPLES random layouts."""

    def block(s):
      covered = []
      for length, places, total in zip(s, self._places(s), self.grid, strict=True):
        start = rng.integers(places, size=(SAMPLES, 1))
        at = np.arange(total)
        covered.append((at >= start) & (at < start + length))
      return covered[0][:, :, None] & covered[1][:, None, :]

    free = np.ones((SAMPLES, *self.grid), bool)
    if not self.allow_overlap:
      for _ in range(self.num_targets):
        free &= ~block(size)
    counts = [
      (block(context_size) & free).sum((1, 2)) for _ in range(self.num_contexts)
    ]
    return np.min(counts, axis=0)

  @functools.cached_property
  def shapes(self) -> tuple[tuple[int, int], ...]:
    return tuple(
      sorted({(k, h * w) for (h, w), k in self._lengths.items()})
    )

  def shape(self, seed: int, step: int) -> tuple[int, int]:
    (h, w), _ = _draw_sizes(self, seed, step)
    return self._lengths[h, w], h * w

  def __call__(self, seed: int, step: int, row: int):
    size, context_size = _draw_sizes(self, seed, step)
    length = self._lengths[size]
    rng = np.random.default_rng((seed, step, 1 + row))
    for _ in range(10_000):
      targets = self._draw(rng, size, self.num_targets)
      contexts = self._draw(rng, context_size, self.num_contexts)
      if not self.allow_overlap:
        seen = np.ones(self.grid[0] * self.grid[1], bool)
        seen[targets] = False
        contexts = [c[seen[c]] for c in contexts]
      shortest = min(map(len, contexts))
      if shortest >= length and shortest > self.min_keep:
        cut = [self._cut(rng, c, length) for c in contexts]
        return np.stack(cut).astype(np.int32), targets.astype(np.int32)
    raise RuntimeError(
      f'No layout of {size} targets in 10,000 left a context of {length} '
      'patches: relax the mask settings.'
    )

  def _draw(self, rng, size, count) -> np.ndarray:
    """Token indices [count, height * width] of blocks at random positions."""
    top, left = rng.integers(self._places(size), size=(count, 2)).T
    columns = self.grid[1]
    block = np.arange(size[0])[:, None] * columns + np.arange(size[1])
    return block.ravel() + (top * columns + left)[:, None]

  def _cut(self, rng, context, length) -> np.ndarray:
    if not self.reach_all:
      return context[:length]  # release: the bottom rows go first
    return np.sort(rng.permutation(context)[:length])


@functools.lru_cache(maxsize=64)  # every row of a step asks the same
def _draw_sizes(sampler: Blocks, seed: int, step: int):
  """Target and context size of a step, the same on every host."""
  r = (np.random.default_rng((seed, step, 0)).integers(LEVELS, size=2) + 0.5) / (
    LEVELS
  )
  return (
    sampler._size(r[0], sampler.target_scale, sampler.target_aspect),
    sampler._size(r[1], sampler.context_scale, sampler.context_aspect),
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Rasterized:
  """Table 6: one random quadrant predicts the other three."""

  grid: tuple[int, int]
  num_contexts: int = 1
  num_targets: int = 3

  def __post_init__(self):
    if self.grid[0] % 2 or self.grid[1] % 2:
      raise ValueError(
        f"mask.sampler = 'rasterized' cuts the grid into four alike, and "
        f'{self.grid[0]} x {self.grid[1]} is odd: change data.image_size.'
      )

  @functools.cached_property
  def shapes(self):
    quarter = self.grid[0] * self.grid[1] // 4
    return ((quarter, quarter),)

  def shape(self, seed, step):
    return self.shapes[0]

  def __call__(self, seed, step, row):
    rng = np.random.default_rng((seed, step, 1 + row))
    rows, columns = self.grid
    tokens = np.arange(rows * columns, dtype=np.int32)
    quadrants = (
      tokens.reshape(2, rows // 2, 2, columns // 2)
      .swapaxes(1, 2)
      .reshape(4, -1)
    )
    context = rng.integers(4)
    return quadrants[context][None], np.delete(quadrants, context, axis=0)


@dataclasses.dataclass(frozen=True, eq=False)
class Complement:
  """Table 6: one block, or random patches, predicted from all the rest."""

  grid: tuple[int, int]
  fraction: float
  block: bool
  num_contexts: int = 1
  num_targets: int = 1

  def __post_init__(self):
    n, k = self.grid[0] * self.grid[1], self.shapes[0][1]
    if not 0 < self.fraction < 1 or not 0 < k < n:
      raise ValueError(
        f'mask.fraction is {self.fraction}: take a share of the {n} patches '
        'that leaves some on both sides, such as 0.6.'
      )

  @property
  def _side(self) -> tuple[int, int]:
    side = round(math.sqrt(self.grid[0] * self.grid[1] * self.fraction))
    return min(side, self.grid[0]), min(side, self.grid[1])

  @functools.cached_property
  def shapes(self):
    n = self.grid[0] * self.grid[1]
    share = max(0.0, min(1.0, self.fraction))
    k = math.prod(self._side) if self.block and share else round(n * share)
    return ((n - k, k),)

  def shape(self, seed, step):
    return self.shapes[0]

  def __call__(self, seed, step, row):
    rng = np.random.default_rng((seed, step, 1 + row))
    rows, columns = self.grid
    target = np.zeros(rows * columns, bool)
    if self.block:
      h, w = self._side
      top, left = rng.integers((rows - h + 1, columns - w + 1))
      target.reshape(rows, columns)[top : top + h, left : left + w] = True
    else:
      target[rng.permutation(rows * columns)[: self.shapes[0][1]]] = True
    context, target = np.flatnonzero(~target), np.flatnonzero(target)
    return context[None].astype(np.int32), target[None].astype(np.int32)
