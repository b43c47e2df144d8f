"""The masks: those of the release, of the paper and of table 6."""

import collections
import pathlib
import pickle

import numpy as np
import pytest

from ijepa_jax.errors import UserError
from ijepa_jax.methods import masks
from tests.close import close

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / 'golden/release_masks.npz')
KINDS = ('release', 'uniform', 'rasterized', 'block', 'random')
SIDES = (14, 16, 28)


def make(kind, grid=(14, 14), **settings):
  return masks.make_sampler(kind, grid=grid, **settings)


def draw(sampler, steps, rows=1, seed=0):
  """(context, targets) of every row of every step, one after another."""
  return [sampler(seed, s, r) for s in steps for r in range(rows)]


def coverage(blocks, grid):
  """How often each token is in one of the index arrays [..., K]."""
  count = sum(
    np.bincount(b.ravel(), minlength=grid[0] * grid[1]) for b in blocks
  )
  return count / sum(b[..., 0].size for b in blocks)


# ---- against the release ----


def steps_like_release(sampler, side):
  """Steps with the target lengths of the golden batches, one for each."""
  steps = collections.defaultdict(list)
  for step in range(4000):
    steps[sampler.shape(0, step)[1]].append(step)
  return [steps[kt].pop() for kt in GOLDEN[f'g{side}/target_lengths']]


@pytest.mark.parametrize('side', SIDES)
def test_lengths_of_release(side):
  sampler = make('release', (side, side), group=16)
  lengths = GOLDEN[f'g{side}/target_lengths']
  assert {kt for _, kt in sampler.shapes} == set(lengths)
  for kc, kt in sampler.shapes:
    shortest = GOLDEN[f'g{side}/context_lengths_batch16'][lengths == kt]
    error = shortest.std(ddof=1) / len(shortest) ** 0.5
    assert abs(kc - shortest.mean()) < 1 + 2.5 * error, (kc, kt)


@pytest.mark.parametrize('side', SIDES)
def test_target_coverage_of_release(side):
  # In so large a group hardly a layout is too short and drawn again, which
  # would favour targets that overlap; the release draws none again.
  sampler = make('release', (side, side), group=4096)
  steps = steps_like_release(sampler, side)
  _, targets = zip(*draw(sampler, steps, rows=8), strict=True)
  p = coverage(targets, (side, side))
  q = GOLDEN[f'g{side}/target_coverage'].ravel()
  np.testing.assert_array_equal(p > 0, q > 0)
  blocks = 4 * 8 * len(steps)  # there are twice as many in the golden data
  error = p * (1 - p) / blocks + q * (1 - q) / (2 * blocks)
  z = (p - q)[error > 0] / error[error > 0] ** 0.5
  # Neighbours in a block are no independent samples, so z^2 may average to more
  # than 1; positions up to the last offset would give 10 and more.
  assert abs(z).max() < 6
  assert (z**2).mean() < 4


@pytest.mark.parametrize('side', SIDES)
def test_context_coverage_of_release(side):
  sampler = make('release', (side, side), group=16)
  steps = steps_like_release(sampler, side)
  contexts, _ = zip(*draw(sampler, steps, rows=8), strict=True)
  p = coverage(contexts, (side, side))
  q = GOLDEN[f'g{side}/context_coverage_truncated'].ravel()
  # One length, instead of each batch's own, moves a little from the last rows,
  # which only the longest contexts reach, to the others.
  assert abs(p - q).max() < 0.1
  assert abs(p - q).mean() < 0.02
  assert abs(p.sum() / q.sum() - 1) < 0.03


@pytest.mark.parametrize('side', [14, 16])
def test_release_never_reaches_the_last_row_and_column(side):
  sampler = make('release', (side, side))
  for context, targets in draw(sampler, range(300)):
    for tokens in (context, targets):
      assert (tokens // side).max() < side - 1
      assert (tokens % side).max() < side - 1


def test_release_keeps_the_lowest_indices():
  sampler = make('release')
  for context, targets in draw(sampler, range(100)):
    block = np.arange(196).reshape(14, 14)[:13, :13]  # the only one there is
    free = np.setdiff1d(block, targets)
    np.testing.assert_array_equal(context[0], free[: context.shape[1]])


def test_shapes_of_the_published_recipe():
  """Transposed blocks share a shape: four compiled steps, not five."""
  sampler = make('release')
  assert [kt for _, kt in sampler.shapes] == [40, 36, 35, 30]
  mean = np.mean([sampler.shape(0, s)[0] for s in range(2000)])
  assert 49 < mean < 53  # 50 in the release at 128 images a device


def test_context_length_is_the_expected_shortest_of_a_group():
  """Against the plainest simulation of groups, with two contexts an image."""
  grid, group, groups = (10, 12), 16, 400
  sampler = make(
    'uniform',
    grid,
    num_contexts=2,
    context_scale=(0.5, 0.5),
    target_scale=(0.15, 0.15),
    target_aspect=(1.0, 1.0),
    min_keep=0,
    group=group,
  )
  ((kc, kt),) = sampler.shapes
  assert kt == 4 * 4
  rng = np.random.default_rng(1)

  def block(side):
    top, left = rng.integers(11 - side), rng.integers(13 - side)
    inside = np.zeros(grid, bool)
    inside[top : top + side, left : left + side] = True
    return inside

  def shortest_context():
    free = ~np.any([block(4) for _ in range(4)], axis=0)
    return min((block(8) & free).sum() for _ in range(2))

  shortest = [
    min(shortest_context() for _ in range(group)) for _ in range(groups)
  ]
  error = np.std(shortest) / groups**0.5
  assert abs(kc - np.mean(shortest)) < 0.5 + 3 * error


def test_the_group_sets_the_length():
  lengths = [make('release', group=g).shapes[0][0] for g in (1, 16, 128, 2048)]
  assert lengths == sorted(lengths, reverse=True)
  assert len(set(lengths)) == 4


# ---- what every sampler promises ----


@pytest.mark.parametrize(
  'kind, num_contexts',
  [(kind, 1) for kind in KINDS] + [('release', 2), ('uniform', 2)],
)
@pytest.mark.parametrize('grid', [(14, 14), (8, 12), (12, 6)])
def test_masks_are_what_they_promise(kind, num_contexts, grid):
  sampler = make(
    kind, grid, min_keep=5, num_contexts=num_contexts, fraction=0.4
  )
  for step in range(50):
    kc, kt = sampler.shape(3, step)
    assert (kc, kt) in sampler.shapes
    for row in range(4):
      context, targets = sampler(3, step, row)
      assert context.dtype == targets.dtype == np.int32
      assert context.shape == (sampler.num_contexts, kc)
      assert targets.shape == (sampler.num_targets, kt)
      for tokens in (context, targets):
        assert tokens.min() >= 0 and tokens.max() < grid[0] * grid[1]
        assert (np.diff(tokens) > 0).all()  # ascending, so unique
      assert not np.intersect1d(context, targets).size
      assert sampler.num_contexts == num_contexts


@pytest.mark.parametrize('kind', ['release', 'uniform'])
def test_targets_are_blocks_and_contexts_keep_enough(kind):
  sampler = make(kind, (8, 12), min_keep=20, num_targets=3)
  for context, targets in draw(sampler, range(100), rows=2):
    assert context.shape[1] > 20
    sizes = set()
    for target in targets:
      rows, columns = target // 12, target % 12
      sizes.add((np.ptp(rows) + 1, np.ptp(columns) + 1))
    ((h, w),) = sizes  # all blocks of a step have one size
    assert h * w == targets.shape[1]


@pytest.mark.parametrize('kind', KINDS)
def test_masks_are_a_function_of_seed_step_and_row(kind):
  sampler = make(kind)

  def same(a, b):
    shapes = [x.shape == y.shape for x, y in zip(a, b, strict=True)]
    return all(shapes) and all(map(np.array_equal, a, b))

  asked_before = dict.fromkeys([(7, 3, 5), (7, 3, 4), (6, 3, 5), (7, 2, 5)])
  for key in asked_before:
    asked_before[key] = sampler(*key)
  # Another sampler, other questions, another order, NumPy's integers.
  copy = pickle.loads(pickle.dumps(make(kind)))
  for key in reversed(asked_before):
    copy(1, 2, 3)
    assert same(copy(*map(np.int64, key)), asked_before[key])
  assert copy == sampler and copy.shapes == sampler.shapes

  # Any one of the three changes the masks.
  for change in np.eye(3, dtype=int):
    keys = np.random.default_rng(0).integers(100, size=(20, 3))
    equal = [same(sampler(*k), sampler(*(k + change))) for k in keys]
    assert sum(equal) < (15 if kind == 'rasterized' else 3)


@pytest.mark.parametrize('kind', ['release', 'uniform'])
@pytest.mark.parametrize('grid', [(14, 14), (16, 16), (8, 8), (12, 16)])
def test_shapes_are_all_the_shapes(kind, grid):
  sampler = make(kind, grid)
  drawn = {sampler.shape(0, step) for step in range(5000)}
  assert drawn == set(sampler.shapes)
  assert list(sampler.shapes) == sorted(drawn)


def test_uniform_reaches_every_token():
  for grid in ((14, 14), (8, 12)):
    sampler = make('uniform', grid)
    contexts, targets = zip(*draw(sampler, range(600), rows=4), strict=True)
    assert coverage(targets, grid).min() > 0
    by_row = coverage(contexts, grid).reshape(grid).mean(1)
    assert by_row.min() > 0
    # The surplus goes at random: what is low in the image is not left out.
    close(by_row, by_row[::-1], within=0.03)


def test_overlap_leaves_the_targets_in_the_context():
  sampler = make('release', allow_overlap=True, context_scale=(0.5, 1.0))
  # The smallest of the contexts fits the length that all have.
  assert {kc for kc, _ in sampler.shapes} == {100}
  shared = [
    np.intersect1d(context, targets).size
    for context, targets in draw(sampler, range(50))
  ]
  assert np.mean(shared) > 30


@pytest.mark.parametrize(
  'settings',
  [{'context_scale': (s, 1.0)} for s in (0.4, 0.65, 0.75)]
  + [{'target_scale': s} for s in ((0.075, 0.2), (0.1, 0.2), (0.2, 0.3))]
  + [{'num_targets': m} for m in (1, 2, 3)],
  ids=str,
)
def test_scales_and_counts_worth_ablating(settings):
  """All can be drawn, and compile a handful of steps."""
  for kind in ('release', 'uniform'):
    sampler = make(kind, **settings)
    draw(sampler, range(100))
    assert len(sampler.shapes) < 10


# ---- table 6 ----


def test_rasterized_is_a_quadrant_against_three():
  quadrants = (
    np.arange(8 * 12).reshape(2, 4, 2, 6).swapaxes(1, 2).reshape(4, -1)
  )
  contexts = set()
  for context, targets in draw(make('rasterized', (8, 12)), range(40)):
    parts = {tuple(p) for p in (*context, *targets)}
    assert parts == {tuple(q) for q in quadrants}
    contexts.add(context[0, 0])
  assert contexts == set(quadrants[:, 0])


@pytest.mark.parametrize('kind', ['block', 'random'])
def test_block_and_random_predict_a_share_from_the_rest(kind):
  sampler = make(kind, fraction=0.4)
  ((kc, kt),) = sampler.shapes
  assert (kc, kt) == ((115, 81) if kind == 'block' else (118, 78))
  drawn = draw(sampler, range(300))
  for context, targets in drawn:
    everything = np.union1d(context, targets)
    np.testing.assert_array_equal(everything, np.arange(196))
    rows, columns = targets[0] // 14, targets[0] % 14
    if kind == 'block':
      assert np.ptp(rows) == np.ptp(columns) == 8
  contexts, targets = zip(*drawn, strict=True)
  assert coverage(targets, (14, 14)).min() > 0
  assert coverage(contexts, (14, 14)).min() > 0 or kind == 'block'


# ---- refusals ----


@pytest.mark.parametrize(
  'kind, grid, settings, pattern',
  [
    ('relaese', (14, 14), {}, "'relaese': .*mean 'release'"),
    ('x', (14, 14), {}, 'rasterized, block, random.$'),
    ('uniform', (1, 14), {}, 'too small for masks'),
    ('release', (2, 2), {}, 'cannot hold'),
    ('release', (4, 6), {}, 'mask.min_keep = 10 tokens'),
    ('release', (14, 14), {'num_targets': 0}, 'mask.num_targets is 0'),
    ('release', (14, 14), {'num_contexts': 0}, 'mask.num_contexts is 0'),
    ('release', (14, 14), {'group': 0}, 'mask.group is 0'),
    ('release', (14, 14), {'min_keep': -1}, 'mask.min_keep is -1'),
    ('release', (14, 14), {'min_keep': 120}, 'mask.min_keep = 120 tokens'),
    ('uniform', (14, 14), {'min_keep': 500}, 'mask.min_keep = 500 tokens'),
    (
      'uniform',
      (14, 14),
      {'min_keep': 169, 'allow_overlap': True},
      'mask.min_keep = 169 tokens',
    ),
    ('release', (14, 14), {'target_scale': (0.2, 0.1)}, 'mask.target_scale is'),
    ('release', (14, 14), {'context_scale': (0.5, 1.5)}, 'up to 1'),
    ('release', (14, 14), {'context_scale': (0.0, 1.0)}, 'above 0'),
    ('release', (14, 14), {'target_aspect': (-1.0, 1.0)}, 'above 0'),
    ('release', (14, 14), {'target_scale': (0.9, 1.0)}, r'\(11, 15\), which a'),
    ('release', (14, 14), {'target_scale': (1e-4, 1e-3)}, r'\(0, 0\), which a'),
    ('uniform', (4, 32), {}, 'cannot hold'),
    ('rasterized', (7, 8), {}, 'is odd'),
    ('random', (14, 14), {'fraction': 0.0}, 'mask.fraction is 0.0'),
    ('random', (14, 14), {'fraction': 1.0}, 'mask.fraction is 1.0'),
    ('random', (14, 14), {'fraction': -0.5}, 'mask.fraction is -0.5'),
    ('block', (14, 14), {'fraction': 1.5}, 'mask.fraction is 1.5'),
    ('block', (4, 32), {'fraction': 0.6}, 'as a square fits'),
  ],
)
def test_refusals(kind, grid, settings, pattern):
  with pytest.raises(UserError, match=pattern) as error:
    make(kind, grid, **settings)
  message = str(error.value)
  assert '\n' not in message and len(message) < 300


def test_a_setting_nobody_knows_is_refused():
  for kind in KINDS:
    with pytest.raises(TypeError, match='num_target'):
      make(kind, num_target=3)
