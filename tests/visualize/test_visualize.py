"""What the predictor predicts: against brute force, and as a whole page."""

import base64
import json
import re
import shutil

import jax
import numpy as np
import pytest

from configs import tiny, visualize
from ijepa_jax.convert.export import export
from ijepa_jax.errors import UserError
from ijepa_jax.methods import ijepa, masks
from ijepa_jax.train.pictures import mask_picture, token_maps
from ijepa_jax.visualize import mask_coverage, report, retrieval
from ijepa_jax.visualize.page import markup, verdict
from tests.close import close


def test_coverage_counts_every_draw():
  sampler = masks.make_sampler('uniform', grid=(6, 6), num_targets=2)
  found = mask_coverage.coverage(sampler, (6, 6), draws=50, seed=3)
  target, context = np.zeros(36), np.zeros(36)
  for step in range(50):
    contexts, targets = sampler(3, step, 0)
    for i in range(36):
      context[i] += any(i in c for c in contexts)
      target[i] += any(i in t for t in targets)
  close(found.target.ravel() * 50, target)
  close(found.context.ravel() * 50, context)


def test_mask_picture_keeps_the_patches_of_the_mask():
  image = np.full((8, 12, 3), 7, np.uint8)
  picture = mask_picture.mask_picture(image, np.array([1, 5]), 4)
  assert (picture[:4, 4:8] == 7).all() and (picture[4:, 8:] == 7).all()
  assert (picture == 7).mean() == 2 / 6


def test_principal_colors_follow_the_directions():
  """Two groups of tokens get two colors, wherever they are."""
  r = np.random.default_rng(0)
  group = r.integers(0, 2, (5, 9))
  tokens = group[..., None] * np.ones(8) * 5 + r.normal(size=(5, 9, 8)) * 0.01
  colors = token_maps.principal_colors(tokens)
  red = colors[..., 0].astype(int)
  assert abs(red[group == 1].mean() - red[group == 0].mean()) > 200
  constant = token_maps.principal_colors(np.ones((2, 4, 8)))
  assert (constant == 128).all()


def test_each_image_has_colors_of_its_own():
  """Images that differ much from each other do not take each other's colors."""
  r = np.random.default_rng(0)
  tokens = r.normal(size=(3, 9, 8)) + 100 * np.arange(3)[:, None, None]
  among_all = token_maps.principal_colors(tokens)
  alone = token_maps.own_colors(tokens)
  assert among_all[..., 0].std(1).max() < 2 < alone[..., 0].std(1).min()


def test_overlapping_patches_are_a_finer_grid():
  """Of an encoder whose token is the mean of its patch, on a ramp."""

  def encode(image):
    b, h, w, c = image.shape
    patches = image.reshape(b, h // 8, 8, w // 8, 8, c)
    return patches.mean((2, 4)).reshape(b, -1, c)

  ramp = np.arange(48, dtype=np.float32)
  image = np.stack([*np.broadcast_arrays(ramp[:, None], 2 * ramp)], -1)[None]
  coarse = token_maps.overlapping_tokens(encode, image, 8, 1)
  close(coarse, encode(image).reshape(1, 6, 6, 2))
  fine = token_maps.overlapping_tokens(encode, image, 8, 4)
  assert fine.shape == (1, 24, 24, 2)
  middle = 2 * np.arange(24) + 0.5  # of each cell, in pixels
  close(fine[0, 2:-2, 0, 0], middle[2:-2])
  close(fine[0, 0, 2:-2, 1], 2 * middle[2:-2])


def test_windows_are_averaged_over_a_patch():
  impulse = np.zeros((1, 9, 9, 1))
  impulse[0, 4, 4] = 1.0
  smooth = token_maps.average_windows(impulse, 4)
  kernel = np.array([1, 2, 2, 2, 1]) / 8
  close(smooth[0, 2:7, 2:7, 0], np.outer(kernel, kernel))
  close(token_maps.average_windows(np.ones((1, 6, 6, 2)), 2), 1.0)


def make_blocks(n=7, m=2, k=3, d=5):
  r = np.random.default_rng(1)
  tokens = r.normal(size=(n, 8, d)).astype(np.float32)
  position = np.stack(
    [[r.permutation(8)[:k] for _ in range(m)] for _ in range(n)]
  )
  true = np.stack(
    [[tokens[i, p].mean(0) for p in position[i]] for i in range(n)]
  )
  predicted = true + r.normal(size=true.shape).astype(np.float32)
  return retrieval.Blocks.of_images(position, predicted, true), tokens


def cosine(a, b):
  return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_ranks_by_brute_force():
  blocks, tokens = make_blocks()
  ranks, same = [], []
  for i, query in enumerate(blocks.predicted):
    own = cosine(query, blocks.true[i])
    ranks.append(sum(cosine(query, x) >= own - 1e-7 for x in blocks.true))
    place = blocks.position[i]
    candidates = [cosine(query, t[place].mean(0)) for t in tokens]
    own = candidates[blocks.image[i]]
    same.append(sum(c >= own - 1e-7 for c in candidates))
  for hits, expected, count in (
    (retrieval.among_all(blocks), np.array(ranks), 14),
    (retrieval.among_same_position(blocks, tokens), np.array(same), 7),
  ):
    assert hits.candidates == count
    close(hits.at_1, (expected == 1).mean())
    close(hits.at_10, (expected <= 10).mean())
    close(hits.median_rank, np.median(expected))


def test_features_that_are_all_alike_find_nothing():
  """A collapsed encoder ranks last, not first."""
  blocks = make_blocks()[0]
  same = np.ones_like(blocks.true)
  hits = retrieval.among_all(blocks._replace(predicted=same, true=same))
  assert hits.at_1 == 0 and hits.median_rank == 14


def test_nearest_of_others_by_brute_force():
  """The nearest of each other image, nearest first, and none of its own."""
  blocks = make_blocks()[0]
  rows = retrieval.nearest_of_others(blocks.predicted, blocks.image, blocks, 4)
  for query, image, nearest in zip(
    blocks.predicted, blocks.image, rows, strict=True
  ):
    best = {}
    for row, (other, vector) in enumerate(
      zip(blocks.image, blocks.true, strict=True)
    ):
      if other != image:
        best[other] = max(best.get(other, (-2,)), (cosine(query, vector), row))
    expected = [row for _, row in sorted(best.values(), reverse=True)[:4]]
    assert list(nearest) == expected


def make_config(path, **changes):
  c = visualize.get_config()
  c.init_from = str(path)
  c.visualize.update(images=24, shown=2, draws=20)
  c.generator.total_steps = 0
  c.batch_size = 16
  c.update_from_flattened_dict(changes)
  return c


@pytest.fixture(scope='module')
def workdir(untrained_run, tmp_path_factory):
  c = tiny.get_config()
  c.model.depth = 1
  path = tmp_path_factory.mktemp('run')
  untrained_run(c, path)
  return path


@pytest.mark.usefixtures('one_device')
def test_one_page_from_a_run(workdir):
  numbers = report.run(make_config(workdir), '')
  out = workdir / 'visualize'
  assert json.loads((out / 'report.json').read_text()) == numbers
  hits = numbers['retrieval']['among the same position in all images']
  assert hits['candidates'] == 24 and hits['chance_at_1'] == 1 / 24
  text = (out / 'index.html').read_text()
  for title in ('What is hidden', 'Tokens as colors', 'alike', 'Whose block'):
    assert title in text
  # Nothing is asked of a network; every picture is inside.
  assert not re.findall(r'(?:src|href)="(?!data:)', text)
  explored = re.findall(r'application/json">(.*?)</script>', text)
  assert len(explored) == 2
  data = json.loads(explored[0])
  assert [len(base64.b64decode(m)) for m in data['maps']] == [36 * 36] * 2
  assert sum(data['has'][1]) == 16 and data['has'][1][data['start']]


def test_the_same_on_eight_devices_and_one(workdir, tmp_path, on_one_device):
  eight = report.run(make_config(workdir), tmp_path / 'eight')
  with on_one_device():
    one = report.run(make_config(workdir), tmp_path / 'one')
  for signal, value in one.pop('health').items():
    close(eight['health'][signal], value, 1e-3, scale=1, name=signal)
  eight.pop('health')
  assert one == eight


@pytest.mark.usefixtures('one_device')
def test_a_model_without_a_predictor(workdir, tmp_path, caplog):
  """What needs only the encoder is drawn, and a sentence says so."""
  pytest.importorskip('transformers')
  export(workdir, tmp_path / 'hf', 'huggingface')
  config = make_config(tmp_path / 'hf', **{'data.source': 'scenes'})
  numbers = report.run(config, tmp_path / 'out')
  assert 'retrieval' not in numbers
  assert 'There is no predictor of features' in caplog.text
  assert 'Tokens as colors' in (tmp_path / 'out/index.html').read_text()
  shutil.rmtree(tmp_path / 'hf')


@pytest.mark.usefixtures('one_device')
@pytest.mark.parametrize(
  # MAE is of pixels, with other masks.
  'method',
  ['pixels', 'vicreg', pytest.param('mae', marks=pytest.mark.slow)],
)
def test_the_encoder_of_another_method(untrained_run, tmp_path, caplog, method):
  c = tiny.get_config()
  c.method, c.model.depth = method, 1
  untrained_run(c, tmp_path / 'run')
  numbers = report.run(make_config(tmp_path / 'run'), '')
  assert 'retrieval' not in numbers
  assert 'There is no predictor of features' in caplog.text


@pytest.mark.usefixtures('one_device')
def test_grey_images_that_are_not_square(untrained_run, images, tmp_path):
  c = tiny.get_config()
  c.data.source, c.data.path = 'folder', str(images)
  c.data.image_size, c.data.channels = (48, 32), 1
  c.data.mean, c.data.std, c.model.depth = (0.5,), (0.25,), 1
  c.mask.sampler = 'rasterized'
  untrained_run(c, tmp_path / 'run')
  numbers = report.run(make_config(tmp_path / 'run'), '')
  assert numbers['retrieval']['among the blocks of all images']


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'init_from': ''}, 'init_from is empty'),
    ({'init_from': '/nowhere'}, 'There is nothing at'),
    ({'visualize.images': 1}, 'visualize.images is 1: take 2 or more'),
    ({'data.source': 'folder', 'data.path': '/nowhere'}, '/nowhere'),
    ({'data.path': 'photos'}, "'photos', and nothing without data.source"),
  ],
)
def test_mistakes(workdir, changes, words, tmp_path):
  with pytest.raises(UserError, match=words):
    report.run(make_config(workdir, **changes), tmp_path)


def test_pictures_of_any_channels():
  for channels in 1, 2, 3, 13:
    picture = markup.png(np.zeros((4, 6, channels), np.uint8), 60)
    assert 'width="60" height="40"' in picture


def test_maps_are_cosines():
  r = np.random.default_rng(0)
  a, b = r.normal(size=(2, 3, 4)), r.normal(size=(2, 5, 4))
  found = jax.device_get(token_maps.cosine_maps(a, b))
  close(found[1, 2, 4], cosine(a[1, 2], b[1, 4]), scale=1)


def hits(rank, candidates=100):
  return retrieval.Hits(0.0, 0.0, rank, candidates).numbers()


@pytest.mark.parametrize(
  ('rank', 'gap_share', 'expected', 'words'),
  [
    (2, 0.7, 'good', 'hold what is in a hidden block'),
    (25, 0.7, 'poor', 'hold little'),
    (49, 0.7, 'bad', 'hold nothing'),
    (100, 0.7, 'bad', 'hold nothing'),  # all features alike
    (2, 0.01, 'bad', 'Not healthy: gap_share'),
  ],
)
def test_the_verdict_is_of_the_predictions(rank, gap_share, expected, words):
  same = {'among the same position in all images': hits(rank)}
  generated = {'rank': {'sample': hits(99)}, 'steps': 20}
  numbers = {'retrieval': same, 'health': {'gap_share': gap_share}}
  grade, sentences = verdict.verdict(numbers, ijepa.IJEPA)
  assert grade == expected and words in ' '.join(sentences)
  # A generator may show less than there is: it changes no grade.
  numbers['generator'] = generated
  grade, sentences = verdict.verdict(numbers, ijepa.IJEPA)
  assert grade == expected and 'trained too little' in ' '.join(sentences)
  assert verdict.verdict({}, ijepa.IJEPA) == ('good', [])
