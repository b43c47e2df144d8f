"""Fine-tuning: by how much each layer moves, what is mixed, and a whole run."""

import os
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.evals import finetune_full
from ijepa_jax.data.transforms.mixup import mix
from ijepa_jax.errors import UserError
from ijepa_jax.evals import finetune
from ijepa_jax.methods.optim import adamw
from ijepa_jax.models import vit
from ijepa_jax.probes.labels import soft_labels
from ijepa_jax.runtime import metrics, preemption
from ijepa_jax.runtime.checkpoint import checkpointer
from tests.close import close


def test_layer_decay_by_hand():
  """The first step of AdamW moves by lr * sign(gradient) and by the decay."""
  encoder, _ = vit.make_models(
    size='tiny', width=32, depth=3, heads=2, patch_size=4, predictor_depth=1
  )
  image = jnp.zeros((1, 8, 8, 3))
  params = {
    'encoder': jax.jit(encoder.init)(jax.random.key(0), image)['params'],
    'head': {'kernel': jnp.ones((32, 5)), 'bias': jnp.ones(5)},
  }
  scales = adamw.layer_scales(params, 3, 0.5)
  tx = adamw.adamw_by_layer(lambda step: 0.1, 0.2, scales)
  grad = jax.tree.map(jnp.ones_like, params)

  @jax.jit
  def step(params):
    return tx.update(grad, tx.init(params), params)[0]

  moved = jax.device_get(step(params))
  encoder = moved['encoder']
  # Blocks from the last: 1/2, 1/4, 1/8; the patches' embedding 1/16.
  close(encoder['blocks']['fc1']['bias'][:, 0], [-0.0125, -0.025, -0.05])
  close(encoder['patch_embed']['bias'], -0.1 / 16)
  close(encoder['norm']['scale'], -0.1)
  close(moved['head']['bias'], -0.1)
  close(moved['head']['kernel'], -0.12)
  kernel = np.asarray(params['encoder']['blocks']['fc1']['kernel'])
  factor = np.array([0.125, 0.25, 0.5])[:, None, None]
  close(encoder['blocks']['fc1']['kernel'], -0.1 * factor * (1 + 0.2 * kernel))


def test_drop_path():
  """Of an image a branch is there, scaled up, or not; rising with the depth."""
  encoder, _ = vit.make_models(
    size='tiny', width=32, depth=2, heads=2, patch_size=4, predictor_depth=1
  )
  image = jax.random.normal(jax.random.key(1), (64, 8, 8, 3))
  params = jax.jit(encoder.init)(jax.random.key(0), image[:1])

  @jax.jit
  def layers(key):
    return encoder.apply(
      params, image, layers='tokens', drop_path=0.5, rngs={'drop_path': key}
    )[1]

  plain = jax.jit(lambda: encoder.apply(params, image, layers='tokens')[1])()
  some = layers(jax.random.key(0))
  # The first block has rate 0, the last one loses a branch of half the images.
  close(some[0], plain[0])
  same = np.abs(some[1] - some[0]).max((1, 2)) == 0  # both branches are out
  assert 0.1 < same.mean() < 0.45
  assert (layers(jax.random.key(1)) != some).any()


@pytest.mark.parametrize(('mixup', 'cutmix'), [(0.8, 0), (0, 1.0), (0.8, 1.0)])
def test_labels_are_mixed_as_images_are(mixup, cutmix):
  """Pixels say which image they are from: image i is filled with i / 7."""
  image = jnp.broadcast_to(
    jnp.arange(8.0)[:, None, None, None] / 7, (8, 16, 12, 3)
  )
  target = soft_labels(jnp.arange(8), 8, 0.0)
  run = jax.jit(lambda key: mix(key, image, target, mixup=mixup, cutmix=cutmix))
  cuts = []
  for seed in range(8):
    mixed, labels = jax.device_get(run(jax.random.key(seed)))
    close(labels.sum(1), 1)
    share = labels[0, 0]  # the first image's of itself; the rest is the last's
    close(labels[0, 7], 1 - share, scale=1)
    close(mixed[0].mean(), 1 - share, scale=1)
    cuts.append(set(np.unique(mixed[0])) <= {0.0, 1.0})
  assert any(cuts) == bool(cutmix) and all(cuts) == (not mixup)


def test_nothing_to_mix():
  image, target = (
    jnp.ones((2, 4, 4, 3)),
    soft_labels(jnp.ones(2, int), 4, 0.1),
  )
  close(target[0], [0.025, 0.925, 0.025, 0.025])
  found = mix(jax.random.key(0), image, target, mixup=0, cutmix=0)
  assert found == (image, target)


def make_config(small_run, images, **changes):
  c = finetune_full.get_config()
  c.init_from, c.task, c.data.path = str(small_run), 'folder', str(images)
  c.data.test = 'test'
  c.data.workers, c.batch_size = 0, 16
  c.finetune.update(
    dict(epochs=4, warmup_epochs=1, batch_size=8, lr=3e-3, checkpoint_steps=4)
  )
  c.update_from_flattened_dict(changes)
  return c


def test_a_run_stopped_and_gone_on(small_run, images, tmp_path, monkeypatch):
  """Red from blue is learned; to be stopped at steps 9 and 20, the last one,
  changes nothing: only what is judged is complete.
  """
  config = make_config(small_run, images)
  straight = finetune.run(config, tmp_path / 'straight')
  assert straight['accuracy']['finetune'] == 1.0
  assert straight['steps'] == 20
  save = checkpointer.Checkpointer.save

  def stopping(self, step, state, values):
    save(self, step, state, values)
    for at, number in ((8, signal.SIGINT), (20, signal.SIGTERM)):
      if step == at:
        os.kill(os.getpid(), number)

  monkeypatch.setattr(checkpointer.Checkpointer, 'save', stopping)
  for status in 130, 143:
    with pytest.raises(preemption.Stopped) as stopped:
      finetune.run(config, tmp_path / 'broken')
    assert stopped.value.code == status
  monkeypatch.undo()
  assert finetune.run(config, tmp_path / 'broken') == straight

  def losses(name):
    (folder,) = (tmp_path / name).glob('folder-finetune-*')
    return [row['loss'] for row in metrics.read(folder)]

  assert losses('broken') == losses('straight')
  assert len(losses('straight')) == 20


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'finetune.batch_size': 9}, 'batch_size is 9: take a multiple of the 8'),
    ({'finetune.batch_size': 48}, 'up to the 40 training images'),
    ({'finetune.randaugment': 12.0}, 'randaugment is 12.0: take 0 .* up to 10'),
    ({'which': 'pixels'}, 'needs an encoder'),
    ({'finetune.lr': float('nan')}, 'finetune.lr is nan: take a finite'),
    ({'finetune.warmup_epochs': 5}, 'warmup_epochs is 5: take .* up to 4'),
  ],
)
def test_mistakes_are_told(changes, words, small_run, images, tmp_path):
  with pytest.raises(UserError, match=words):
    finetune.run(make_config(small_run, images, **changes), tmp_path)
  assert not list(tmp_path.iterdir())


def test_another_run_has_another_folder():
  """Or a sweep would report its first run for every learning rate."""

  def name(encoder='a', images='b', label='c', **changes):
    c = finetune_full.get_config()
    c.update_from_flattened_dict(changes)
    depends_on = {'encoder': encoder, 'images': images, 'label': label}
    return finetune.run_name(c, depends_on)

  assert name() == name() == name(**{'finetune.checkpoint_steps': 7})
  others = [
    name(encoder='c'),
    name(images='d'),
    name(label='d'),
    name(seed=1),
    name(task='cifar10'),
    *(
      name(**{f'finetune.{k}': v})
      for k, v in (('lr', 0.5), ('epochs', 2), ('crop_scale', (0.5, 1.0)))
    ),
  ]
  assert len({name(), *others}) == 1 + len(others)


def test_grey_images_are_told():
  bench = types.SimpleNamespace(
    frozen=types.SimpleNamespace(image_size=(48, 48), channels=1, mean=(0.5,))
  )
  with pytest.raises(UserError, match=r'1 channels.*finetune.randaugment=0'):
    finetune._dataset(finetune_full.get_config(), bench)
