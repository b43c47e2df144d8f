"""Released .pth.tar files, in and out."""

import builtins
import zipfile

import jax
import numpy as np
import pytest

from benchmarks import parity
from ijepa_jax.errors import UserError
from ijepa_jax.methods import ijepa
from ijepa_jax.models import vit
from ijepa_jax.pretrained import load
from ijepa_jax.pretrained.formats import release, release_names, weights
from tests.close import close
from tests.methods.test_parity import GOLDEN

NAMES = 'encoder', 'predictor', 'target_encoder'

CONFIG = dict(
  width=32,
  depth=2,
  heads=4,
  mlp_dim=128,
  patch_size=8,
  image_size=(48, 48),
  channels=3,
  predictor_width=24,
  predictor_depth=2,
  predictor_heads=4,
)


def released(torch, golden, at='final', parts=NAMES):
  """What the release leaves in a file: DDP's names, the optimizer, ..."""
  weight = torch.nn.Parameter(torch.ones(3))
  optimizer = torch.optim.AdamW([weight])
  weight.sum().backward()
  optimizer.step()
  networks = {
    part: {
      f'module.{k}': torch.from_numpy(v)
      for k, v in parity.subtree(golden, f'{at}/{part}').items()
    }
    for part in parts
  }
  beside = {'opt': optimizer.state_dict(), 'scaler': None, 'epoch': 300}
  return networks | beside


@pytest.fixture(scope='module')
def torch():
  return pytest.importorskip('torch')


@pytest.fixture(scope='module')
def golden():
  return dict(np.load(GOLDEN))


@pytest.fixture(scope='module')
def content(torch, golden):
  return released(torch, golden)


@pytest.fixture
def save(torch, tmp_path):
  def write(content, **options):
    torch.save(content, tmp_path / 'other.pth.tar', **options)
    return tmp_path / 'other.pth.tar'

  return write


@pytest.fixture
def path(torch, content, tmp_path):
  torch.save(content, tmp_path / 'given.pth.tar')
  return tmp_path / 'given.pth.tar'


def bits(content):
  return {
    f'{part}/{k}': v.numpy().tobytes()
    for part in NAMES
    for k, v in content[part].items()
  }


def test_golden_there_and_back(torch, golden, content, path, tmp_path):
  loaded = release.read(path, heads=4)
  assert loaded.config == CONFIG
  assert loaded.notes == ['Passed over: epoch, opt, scaler.']
  for name, part in weights.PARTS.items():
    expected = parity.subtree(golden, f'final/{part.release_key}')
    jax.tree.map(
      np.testing.assert_array_equal,
      loaded.params[name],
      release_names.from_release(expected, part.network),
    )
  # The tables as they were found: every bit comes back.
  out = tmp_path / 'back.pth.tar'
  release.write(out, loaded.params, loaded.config, tables=loaded.tables)
  back = torch.load(out, weights_only=True)
  assert bits(back) == bits(content)
  # What the tensors do not say is in files from here.
  again = release.read(out)
  assert again.config == CONFIG
  assert again.notes == []
  stats = dict(mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.1))
  out.unlink()
  release.write(out, loaded.params, CONFIG | stats)
  assert release.read(out).config == CONFIG | stats
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    'back.pth.tar',
    'given.pth.tar',
  ]


def test_notes_are_logged(path, caplog):
  """By whoever reads for a user, once; a reader alone is silent."""
  loaded = load.read_weights(path, heads=4)
  assert not caplog.text
  loaded.log_notes(path)
  assert f'{path}: {loaded.notes[0]}' in caplog.text
  caplog.clear()
  load.load_frozen(path, heads=4)
  assert caplog.text.count(loaded.notes[0]) == 1


def test_outputs(torch, golden, save):
  """Of the released code, by way of a file of its first step."""
  file = released(torch, golden, 'init', ('encoder', 'predictor'))
  loaded = release.read(save(file), heads=4)
  assert 'no target_encoder' in ' '.join(loaded.notes)
  model = ijepa.IJEPA(*weights.models(loaded.config))
  b = parity.batch(golden, 0)
  with jax.default_matmul_precision('highest'):
    tokens = jax.jit(model.encoder.apply)(
      {'params': loaded.params['encoder']}, b['image']
    )
    predictions = jax.jit(model.predict)(
      loaded.params, b['image'], b['context'], b['targets']
    )
  close(tokens, golden['step0/target_encoder_out'])
  predictions = np.reshape(
    predictions.transpose(2, 1, 0, 3, 4), golden['step0/predictor_out'].shape
  )
  close(predictions, golden['step0/predictor_out'])


def test_without_ddp_and_parts(torch, content, save):
  target = {
    k.removeprefix('module.'): v for k, v in content['target_encoder'].items()
  }
  loaded = release.read(save({'target_encoder': target}), heads=4)
  assert loaded.params.keys() == {'target'}
  assert 'no predictor' in loaded.notes[0]
  assert not {k for k in loaded.config if k.startswith('predictor')}


@pytest.mark.parametrize('size', vit.SIZES)
def test_heads_of_the_method(torch, size, tmp_path):
  """Every size of the method, with one block: its heads are known."""
  config = weights.complete_config(
    dict(
      size=size,
      depth=1,
      predictor_depth=1,
      patch_size=16,
      image_size=(32, 48),
      channels=3,
    ),
    ['predictor'],
  )
  r = np.random.default_rng(0)
  params = {
    part: jax.tree.map(
      lambda x: r.normal(size=x.shape).astype(np.float32),
      weights.shapes(config, part),
    )
    for part in weights.PARTS
  }
  path = tmp_path / 'a.pth.tar'
  release.write(path, params, config)
  assert release.read(path).config == config
  file = torch.load(path, weights_only=True)
  del file['ijepa_jax']
  torch.save(file, path)
  loaded = release.read(path)
  assert loaded.config == config  # 2 x 3 patches: from the table alone.
  assert f'{config["heads"]} are taken' in loaded.notes[0]
  jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


def test_other_types(torch, content, save):
  half = {
    part: {k: v.bfloat16() for k, v in content[part].items()} for part in NAMES
  }
  loaded = release.read(save(half), heads=4)
  assert loaded.notes == [
    'The weights are stored as bfloat16 and taken as float32.'
  ]
  assert loaded.params['target']['norm']['scale'].dtype == np.float32


def altered(content, part, **changes):
  network = {**content[part]}
  for name, change in changes.items():
    name = 'module.' + name.replace('__', '.')
    if change is None:
      del network[name]
    else:
      network[name] = change(network.get(name))
  return content | {part: network}


def test_another_table_is_told(content, save):
  def other(x):
    return x + 1

  file = altered(content, 'predictor', predictor_pos_embed=other)
  (note, _) = release.read(save(file), heads=4).notes
  assert 'predictor' in note
  assert 'differs from the sin-cos table by up to 1:' in note
  for part in 'encoder', 'target_encoder':
    file = altered(file, part, pos_embed=other)
  loaded = release.read(save(file), heads=4)
  assert loaded.config['image_size'] == (48, 48)
  assert len(loaded.notes) == 4


def test_writing_refused(torch, path, tmp_path):
  loaded = release.read(path, heads=4)
  out = tmp_path / 'out.pth.tar'
  for params, config, words in (
    ({}, CONFIG, 'at least one'),
    (loaded.params | {'opt': {}}, CONFIG, "'opt'"),
    (loaded.params, CONFIG | {'depth': 3}, 'blocks/'),
    (loaded.params, CONFIG | {'predictor_width': 28}, 'predictor does not'),
    (loaded.params, CONFIG | {'image_size': (48, 50)}, 'whole number'),
  ):
    with pytest.raises(UserError, match=words):
      release.write(out, params, config)
  with pytest.raises(UserError, match='there already'):
    release.write(path, loaded.params, CONFIG)
  assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_without_torch(tmp_path, monkeypatch):
  imported = builtins.__import__

  def missing(name, *args, **kwargs):
    if name == 'torch':
      raise ImportError(name)
    return imported(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', missing)
  path = tmp_path / 'a.pth.tar'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('a/data.pkl', b'')
  with pytest.raises(UserError, match=r'ijepa_jax\[torch\]'):
    release.read(path)
