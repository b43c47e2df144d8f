"""The attentive probe as a job: from a config to a table, and gone on with."""

import json
import re
import shutil
import types

import jax
import numpy as np
import pytest

from configs.evals import attentive as attentive_config
from ijepa_jax.errors import UserError
from ijepa_jax.evals import attentive, linear, tasks
from ijepa_jax.models import vit
from ijepa_jax.pretrained import load
from ijepa_jax.runtime.checkpoint import checkpointer
from tests.close import close


def make_config(small_run, images, **changes):
  c = attentive_config.get_config()
  c.init_from, c.task, c.data.path = str(small_run), 'folder', str(images)
  c.data.test = 'test'
  c.data.workers, c.batch_size = 0, 16
  c.attentive.batch_size, c.attentive.epochs = 16, 3
  c.attentive.lrs, c.attentive.weight_decays = (3e-2, 1e-2), (0.01,)
  c.update_from_flattened_dict(changes)
  return c


@pytest.mark.usefixtures('one_device')
@pytest.mark.parametrize(
  'augment', [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_it_goes_on_where_it_was(
  augment, small_run, images, tmp_path, monkeypatch, capsys
):
  """Interrupted in the third of three epochs, it ends as if it had not been."""
  config = make_config(small_run, images, **{'attentive.augment': augment})
  save, saved, states = checkpointer.Checkpointer.save, [], {}
  monkeypatch.setattr(linear, '_SAVE_SECONDS', 0.0)

  def dying(self, step, state):
    if step == 3 and saved == [1, 2]:
      raise KeyboardInterrupt
    saved.append(step)
    states[step] = jax.device_get(state)
    save(self, step, state)

  monkeypatch.setattr(checkpointer.Checkpointer, 'save', dying)
  with pytest.raises(KeyboardInterrupt):
    attentive.run(config, tmp_path / 'broken')
  saved.append('again')
  result = attentive.run(config, tmp_path / 'broken')
  assert saved == [1, 2, 'again', 3]
  last = states[3]
  assert attentive.run(config, tmp_path / 'straight') == result
  jax.tree.map(np.testing.assert_array_equal, states[3], last)
  assert result['accuracy'] == {'attentive': 1.0}
  assert list(result['heads']) == [
    'attentive lr=0.03 wd=0.01',
    'attentive lr=0.01 wd=0.01',
  ]
  shown = capsys.readouterr().out
  assert re.search(r'attentive +100\.0 +-', shown)
  assert 'attentive is the best of 2 heads: chosen on the test images.' in shown
  path = tmp_path / 'broken' / 'folder-attentive.json'
  assert json.loads(path.read_text()) == json.loads(json.dumps(result))
  assert bool(list(tmp_path.rglob('tokens.npy'))) is not augment


def test_one_device_says_the_same(
  small_run, images, tmp_path, on_one_device, monkeypatch
):
  """And a batch that the encoder takes in pieces says what a whole one does."""
  losses = []
  train = linear.train_heads.run_epochs

  def watched(*args, on_epoch, **kwargs):
    def both(epoch, state, means):
      losses.append(means['loss'])
      on_epoch(epoch, state, means)

    return train(*args, on_epoch=both, **kwargs)

  monkeypatch.setattr(linear.train_heads, 'run_epochs', watched)
  config = make_config(small_run, images, **{'attentive.epochs': 1})
  eight = attentive.run(config, tmp_path / '8')
  config.batch_size = 8
  with on_one_device():
    alone = attentive.run(config, tmp_path / '1')
  close(losses[1], losses[0], 1e-4)
  assert alone['heads'] == eight['heads']


@pytest.mark.usefixtures('one_device')
@pytest.mark.parametrize('which', ['untrained', 'pixels'])
def test_what_to_compare_with(which, small_run, images, tmp_path):
  config = make_config(small_run, images, which=which)
  config.attentive.augment, config.attentive.epochs = False, 1
  attentive.run(config, tmp_path)
  assert (tmp_path / f'folder-attentive-{which}.json').exists()
  (tokens,) = tmp_path.rglob('tokens.npy')
  width = 8 * 8 * 3 if which == 'pixels' else 64
  assert np.load(tokens).shape == (40, 36, width)


def test_tokens_of_raw_pixels(small_run):
  frozen = load.load_frozen(small_run, which='pixels')
  image = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), np.uint8)
  tokens = frozen.encode(frozen.params, image)
  np.testing.assert_array_equal(
    tokens, vit.patchify(image.astype(np.float32) / 255, 8)
  )
  first = image[0, :8, 8:16].reshape(-1) / 255
  close(tokens[0, 1], first)


@pytest.mark.usefixtures('one_device')
def test_labels_share_tokens_and_no_heads(small_run, tmp_path, monkeypatch):
  """The tokens of one set of images are computed once for all its labels."""
  made = {'kind': 'scenes', 'flavour': 'scenes'}
  for label in 'class', 'hue':
    task = tasks.Task(
      train=made | {'seed': 0, 'count': 48},
      test=made | {'seed': 1, 'count': 16},
      label=label,
      stretch=True,
      flip=False,
    )
    monkeypatch.setitem(tasks.TASKS, f'small_{label}', task)
    config = make_config(small_run, '', **{'data.test': ''})
    config.task = f'small_{label}'
    config.attentive.augment, config.attentive.epochs = False, 1
    attentive.run(config, tmp_path)
  assert len(list((tmp_path / 'heads').iterdir())) == 2
  assert len(list(tmp_path.rglob('tokens.npy'))) == 1


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'attentive.heads': 3}, 'heads is 3: take a divisor of the 64 features'),
    ({'attentive.batch_size': 64}, 'is 64: take one from 2 to the 40 training'),
    ({'attentive.batch_size': 12}, 'is 12: take a multiple of the 8 devices'),
    ({'attentive.epochs': 0}, 'attentive.epochs is 0: take 1 or more'),
    ({'attentive.lrs': ()}, r'lrs are \(\): take one or more'),
    ({'attentive.lrs': (0.0,)}, 'lrs is .*: take 1e-30 or more'),
    ({'which': 'pixels', 'image_size': (44, 48)}, 'not a whole number of 8'),
    ({'data.test': 'val'}, "'val'"),
    ({'attentive.augment': False}, 'need 0.0 GiB of disk and .* set attentive'),
  ],
)
def test_mistakes_are_told_first(
  changes, words, small_run, images, tmp_path, monkeypatch
):
  """Before an image has gone through the encoder."""
  full = types.SimpleNamespace(free=0)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: full)
  config = make_config(small_run, images, **changes)
  with pytest.raises(UserError, match=words):
    attentive.run(config, tmp_path)
  assert not list(tmp_path.iterdir())


def test_attention_heads_by_default(small_run, images, tmp_path):
  """As many as V-JEPA's twelve, or the most below that divide the width."""
  for which, heads in (('target', 8), ('pixels', 12)):
    config = make_config(small_run, images, which=which)
    evaluation = attentive.Evaluation.from_config(config, tmp_path)
    sweep = attentive.make_sweep(config, evaluation)
    assert sweep.attention_heads == heads
