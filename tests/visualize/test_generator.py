"""The generator: what reaches it, what it draws, and how that is read."""

import dataclasses
import io
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from configs import visualize
from ijepa_jax.data import sources
from ijepa_jax.errors import UserError
from ijepa_jax.models import vit
from ijepa_jax.models.dit import DiT
from ijepa_jax.runtime import sharding
from ijepa_jax.visualize import gallery
from ijepa_jax.visualize.generator import (
  blocks,
  figure,
  method,
  readings,
  sampler,
  train,
)
from ijepa_jax.visualize.generator.block_classifier import BlockClassifier
from tests.close import close

# ---- The sampler ----


def test_the_exact_velocity_gives_the_distribution():
  """Two Gaussians: weights, means and spreads come out."""
  mean, std, weight = jnp.array([-0.8, 0.5]), jnp.array([0.1, 0.2]), 0.3
  prior = jnp.log(jnp.array([weight, 1 - weight]))

  def clean(z_B1, t_B):
    """E[x | t x + (1 - t) e = z]."""
    t = t_B[:, None]
    variance = t**2 * std**2 + (1 - t) ** 2
    error = z_B1 - t * mean
    log_p = prior - error**2 / 2 / variance - jnp.log(variance) / 2
    expected = mean + t * std**2 / variance * error
    return (jax.nn.softmax(log_p) * expected).sum(-1, keepdims=True)

  noise = jax.random.normal(jax.random.key(0), (20_000, 1))
  x = np.asarray(sampler.sample(clean, noise, 64))[:, 0]
  low = x < -0.3
  assert abs(low.mean() - weight) < 0.015
  for rows, m, s in ((low, -0.8, 0.1), (~low, 0.5, 0.2)):
    assert abs(x[rows].mean() - m) < 0.02
    assert abs(x[rows].std() / s - 1) < 0.1


def make_run(mesh, vector_width=8):
  c = visualize.get_config().generator
  c.update(width=16, depth=2, heads=2, batch_size=16, total_steps=4)
  data = blocks.BlockData(
    np.zeros((4, 1, vector_width), np.float32),
    np.zeros((4, 1, 16, 16, 3), np.uint8),
    np.zeros((4, 1), np.int32),
    '',
  )
  return train.make_run(c, data, mesh, seed=0)


def random_params(run):
  """Without zeros, at which nothing of a vector would be seen."""
  shapes = jax.eval_shape(
    lambda: run.method.init_params(jax.random.key(0), run.image_shape)
  )
  r = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: jnp.asarray(r.normal(size=x.shape) * 0.1, jnp.float32), shapes
  )


def test_same_seed_same_samples_on_one_and_eight_devices(cpus):
  vectors = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
  drawn = []
  for devices in cpus, cpus[:1]:
    run = make_run(sharding.make_mesh(devices=devices))
    pen = sampler.Pen(run, random_params(run), steps=3)
    drawn.append(pen.draw(vectors, np.arange(5)))
  assert drawn[0].std() > 5
  assert np.abs(np.subtract(*drawn, dtype=np.int32)).max() <= 1
  again = pen.draw(vectors[::-1], np.arange(5)[::-1])[::-1]
  assert (again == drawn[1]).all()  # wherever in the batch


def test_without_a_vector_none_is_looked_at(mesh):
  run = make_run(mesh)
  pen = sampler.Pen(run, random_params(run), steps=2)
  r = np.random.default_rng(1)
  a, b = r.normal(size=(2, 3, 8)).astype(np.float32)
  numbers = np.arange(3)
  assert (pen.draw(a, numbers) != pen.draw(b, numbers)).any()
  null = [pen.draw(x, numbers, known=False) for x in (a, b)]
  assert (null[0] == null[1]).all()


# ---- What reaches the generator ----


def test_only_the_vector_reaches_the_generator(model, mesh):
  """With all else perturbed, the samples are the same."""
  r = np.random.default_rng(0)
  images = r.integers(0, 256, (8, 48, 48, 3), np.uint8)
  label = np.zeros((8, 2), np.int32)
  judged = readings.judged_blocks(
    model, images, label, mesh, seed=0, batch_size=8
  )
  run = make_run(mesh, vector_width=64)
  pen = sampler.Pen(run, random_params(run), steps=2)
  drawn = readings.drawn_blocks(pen, judged, 2)
  perturbed = dataclasses.replace(
    judged,
    images=255 - images,
    label=label + 1,
    context=judged.context[::-1],
    target=judged.target[::-1],
    boxes=judged.boxes[::-1],
  )
  other = readings.drawn_blocks(pen, perturbed, 2)
  assert (other.samples == drawn.samples).all()
  assert (other.mean == drawn.mean).all()
  assert (other.real != drawn.real).any()


def test_the_vector_is_of_the_context_alone(model):
  """Pixels that the context does not show change nothing of it."""
  sample = model.method.sampler(0, 0, 0)
  context, targets = sample[0][None], sample[1][None]
  r = np.random.default_rng(0)
  image = r.integers(0, 256, (1, 48, 48, 3), np.uint8)
  hidden = np.ones(36, bool)
  hidden[context[0, 0]] = False
  mask = hidden.reshape(6, 6).repeat(8, 0).repeat(8, 1)[..., None]
  changed = np.where(mask, 255 - image, image)
  run = jax.jit(lambda b: blocks.condition(model.method, model.params, b))
  vectors = [
    np.asarray(run({'image': x, 'context': context, 'targets': targets}))
    for x in (image, changed)
  ]
  assert (vectors[0] == vectors[1]).all()
  close(vectors[0].mean(-1), 0, scale=1)
  close(vectors[0].std(-1), 1, 1e-3)


def test_stored_blocks_are_those_of_the_images(model, cache, mesh):
  """Their pixels, their order, and a name that changes with the model."""
  r = np.random.default_rng(0)
  images = r.integers(0, 256, (5, 48, 48, 3), np.uint8)

  class Source:
    labels, identity, listing = {'class': 5}, 'five', 'five'

    def __len__(self):
      return 5

    def __getitem__(self, i):
      return {'image': images[i], 'label': np.int32([i]), 'key': str(i)}

  def stored(model, **changes):
    arguments = {'count': 12, 'size': 16, 'seed': 3} | changes
    options = {'batch_size': 4, 'workers': 0, 'cache_dir': cache}
    return blocks.stored_blocks(model, Source(), mesh, **arguments, **options)

  data = stored(model)
  assert len(data) == 12  # each image two or three times
  assert data.label[:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
  for row in 0, 7:
    _, targets = model.method.sampler(3, 0, row)
    box = blocks.box_of(targets[0], 6, 8)
    block = blocks.cut(images[row % 5], box, 16)
    assert (data.pixels[row, 0] == block).all()
  assert (data.block_pixels([7])[0] == data.pixels[7, 0]).all()
  assert stored(model).key == data.key
  other = jax.tree.map(lambda x: x + 1, model.params)
  assert stored(dataclasses.replace(model, params=other)).key != data.key
  assert stored(model, seed=4).key != data.key


# ---- How it is read ----


def test_spread_of_known_variances():
  r = np.random.default_rng(0)
  n, k = 400, 8
  place = np.arange(n) % 4
  # The place's own level counts for nothing.
  level = 40 * place[:, None] + r.normal(size=(n, 1)) * 12
  x = 60 + level + r.normal(size=(n, k)) * 6
  samples = np.broadcast_to(x[..., None, None, None], (n, k, 4, 4, 3))
  spread = readings.spread(samples, place)
  assert abs(spread['ratio'] / 4 - 1) < 0.15
  assert abs(spread['within'] * 255**2 / 36 - 1) < 0.1
  assert np.shape(spread['between_map']) == (4, 4)
  assert 'color' not in spread['ratios']  # of grey there is none


def fake_subject():
  """Tokens are the mean colors of patches; predictions are true blocks."""

  def targets_of_all(params, image):
    patches = vit.patchify(jnp.asarray(image, jnp.float32), 8)
    return patches.reshape(*patches.shape[:2], -1, 3).mean(2), None

  method = types.SimpleNamespace(targets_of_all=targets_of_all)
  return types.SimpleNamespace(method=method, target={})


def test_a_block_is_found_again_in_another_image(mesh):
  r = np.random.default_rng(0)
  images = r.integers(0, 256, (160, 1, 1, 3), np.uint8).repeat(24, 1)
  images = images.repeat(24, 2)
  place = np.arange(160) % 2
  target = np.array([[0, 1, 3, 4], [4, 5, 7, 8]])
  colors = images[:, 0, 0].astype(np.float32)
  judged = readings.Judged(
    images,
    np.zeros((160, 1), np.int32),
    place,
    target,
    target,
    [blocks.box_of(t, 3, 8) for t in target],
    np.stack([colors, colors]),
  )

  def rank(drawn):
    return readings.reencoded_ranks(fake_subject(), judged, drawn, mesh, 64)

  real = judged.real(16)
  assert np.median(rank(real)) <= 3
  # All alike: ties count against the own one.
  assert (rank(np.full_like(real, 99)) == 159).all()
  # Another one's block at the same place: by chance.
  assert 50 < np.median(rank(np.roll(real, 2, axis=0))) < 110


def test_explained_variance():
  r = np.random.default_rng(0)
  real = r.integers(0, 256, (40, 4, 4, 3)).astype(np.float32)
  place = np.arange(40) % 2
  mean = np.stack([real[place == p].mean(0) for p in (0, 1)])[place]
  close(readings.explained(real, real, place), 1)
  close(readings.explained(mean, real, place), 0, scale=1)
  close(readings.explained((mean + real) / 2, real, place), 0.75)


def test_the_classifier_learns_from_pixels():
  r = np.random.default_rng(0)
  y = r.integers(0, 3, 600).astype(np.int32)
  x = r.integers(0, 120, (600, 40, 40, 3), np.uint8)
  x[np.arange(600), :, :, y] += 90
  classifier = BlockClassifier(x[:500], y[:500], 3, epochs=4)
  assert classifier.accuracy(x[500:], y[500:]) > 0.9
  assert classifier.accuracy(x[500:], (y[500:] + 1) % 3) < 0.1


def test_the_loss_is_the_velocitys():
  """Against a plain statement, of a network that gives a known image."""

  class Half:
    def apply(self, variables, z, t, vector, known):
      return jnp.where(known[:, None, None, None], z / 2, z)

  generator = method.Generator(Half(), Half(), 4)
  r = np.random.default_rng(0)
  image = r.integers(0, 256, (64, 4, 4, 3), np.uint8)
  batch = {'image': image, 'vector': np.zeros((64, 4), np.float32)}
  key = jax.random.key(3)
  params = {'generator': {}, 'regressor': {}}
  loss, metrics = generator.loss(params, None, batch, key)
  keys = jax.random.split(key, 3)
  x = image / 127.5 - 1
  t = 1 / (
    1 + np.exp(0.8 - 0.8 * np.asarray(jax.random.normal(keys[0], (64,))))
  )
  e = np.asarray(jax.random.normal(keys[1], x.shape))
  known = np.asarray(jax.random.bernoulli(keys[2], 0.9, (64,)))
  assert 0 < (~known).sum() < 20
  t, known = t[:, None, None, None], known[:, None, None, None]
  z = t * x + (1 - t) * e
  predicted = np.where(known, z / 2, z)
  true_velocity = (x - z) / np.maximum(1 - t, 0.05)
  velocity = (predicted - z) / np.maximum(1 - t, 0.05)
  close(metrics['velocity_loss'], ((velocity - true_velocity) ** 2).mean())
  close(metrics['regressor_loss'], (x[:16] ** 2).mean())
  close(loss, metrics['velocity_loss'] + metrics['regressor_loss'])


def test_a_fresh_network_sees_patches_in_their_place():
  """Zero at first; patches of the output lie where those of the input do."""
  net = DiT(4, 16, 1, 2)
  z = jnp.zeros((2, 8, 12, 3))
  arguments = z, jnp.zeros(2), jnp.zeros((2, 5)), jnp.ones(2, bool)
  params = net.init(jax.random.key(0), *arguments)['params']
  assert (net.apply({'params': params}, *arguments) == 0).all()
  bias = np.arange(48, dtype=np.float32)
  params['last']['bias'] = jnp.asarray(bias)
  out = net.apply({'params': params}, *arguments)
  close(vit.patchify(out, 4)[1, 5], bias)


def test_a_disk_that_is_full(model, cache, mesh, monkeypatch):
  """Said before a block is written: a map of a full disk ends the process."""
  full = types.SimpleNamespace(free=0)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: full)
  source = sources.make_source('scenes', count=24, seed=1)
  options = {'batch_size': 8, 'workers': 0, 'cache_dir': cache / 'full'}
  with pytest.raises(UserError, match=r'blocks of 12 images need .* cache_dir'):
    blocks.stored_blocks(
      model, source, mesh, count=12, size=16, seed=0, **options
    )
  assert not (cache / 'full').exists()


def test_the_gallery_is_read_alike_in_any_batches(model, mesh):
  """Masks of one size, though the sampler draws one for each step."""
  source = sources.make_source('scenes', count=24, seed=1)
  seen = [
    gallery.read_gallery(model, source, mesh, count=24, batch_size=size, seed=0)
    for size in (8, 24)
  ]
  assert (seen[0].targets == seen[1].targets).all()
  assert (seen[0].image == seen[1].image).all()
  close(seen[0].vectors['predicted'], seen[1].vectors['predicted'])


def test_figure_of_fewer_images_than_are_shown():
  judged = readings.Judged(
    np.zeros((2, 8, 8, 1), np.uint8),
    np.zeros((2, 0), np.int32),
    np.zeros(2, np.int32),
    np.array([[3]]),
    np.array([[0]]),
    [(0, 0, 4, 4)],
    np.zeros((1, 2, 5), np.float32),
  )
  block = np.zeros((2, 2, 4, 4, 1), np.uint8)
  drawn = readings.Drawn(block, block, block[:, 0], block[:, 0], 1)
  pictures = figure.draw_figure(judged, drawn, block[:, 0], 4, 6)
  assert PIL.Image.open(io.BytesIO(pictures['png'])).width > 1000
