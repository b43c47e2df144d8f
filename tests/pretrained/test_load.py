"""load: from any path to an encoder on the devices."""

import importlib.util
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import ijepa_jax
from configs.evals import knn as knn_config
from ijepa_jax.convert import export
from ijepa_jax.errors import UserError
from ijepa_jax.evals import classifier, evaluation
from ijepa_jax.models import positions
from ijepa_jax.pretrained import load
from ijepa_jax.pretrained.formats import (
  huggingface,
  orbax,
  release,
  tensors,
  weights,
)
from ijepa_jax.runtime.checkpoint import checkpointer
from tests.close import BFLOAT16, close
from tests.pretrained.small_encoder import (
  CONFIG,
  by_hand,
  normalised,
  pixels,
  random_params,
)


def test_a_workdir_and_what_it_was_exported_to(small_run, one, tmp_path):
  run = load.load_encoder(small_run, mesh=one)
  assert 'step 1, target encoder' in run.name
  assert (run.image_size, run.patch_size) == ((48, 48), 8)
  frozen = load.load_frozen(small_run)
  names = 'image_size', 'channels', 'mean', 'std'
  config = weights.encoder_sizes(frozen.encoder)
  config |= {k: getattr(frozen, k) for k in names}
  target = jax.device_get(frozen.params)
  huggingface.write(tmp_path / 'hf', {'target': target}, config)
  if importlib.util.find_spec('torch'):
    release.write(tmp_path / 'a.pth.tar', {'target': target}, config)
  image = pixels(3)
  for path in tmp_path.iterdir():
    other = load.load_encoder(path, mesh=one)
    assert other.mean == run.mean == (0.5, 0.5, 0.5)
    assert other.image_size == run.image_size
    close(other.features(image), run.features(image))


def test_a_released_file(params, one, tmp_path):
  """Of both encoders, and it doesn't say how many heads they have."""
  torch = pytest.importorskip('torch')
  both = {'encoder': random_params(CONFIG, 7), 'target': params}
  path = tmp_path / 'jepa.pth.tar'
  release.write(path, both, CONFIG)
  file = torch.load(path, weights_only=True)
  del file['ijepa_jax']
  torch.save(file, path)
  with pytest.raises(UserError, match='give heads='):
    load.load_encoder(path)
  image = pixels(2)
  for which, key in (('target', 'target'), ('context', 'encoder')):
    actual = load.load_encoder(path, heads=4, which=which, mesh=one)
    assert actual.name == f'jepa.pth.tar, {which} encoder'
    expected = by_hand(both[key], image)['pooled']
    close(actual.features(image), expected)
  # Nor which grid a table is of, where it is no sin-cos table and no square.
  for name in 'encoder', 'target_encoder':
    file[name]['module.pos_embed'] = torch.ones(1, 35, 32)
  torch.save(file, path)
  with pytest.raises(UserError, match='give image_size='):
    load.load_encoder(path, heads=4)
  actual = load.load_encoder(path, heads=4, image_size=(40, 56))
  assert actual.grid == (5, 7)


def test_a_context_encoder_is_told(params, tmp_path, caplog):
  huggingface.write(
    tmp_path / 'hf', {'encoder': params}, CONFIG, part='encoder'
  )
  assert 'context' in load.load_encoder(tmp_path / 'hf').name
  assert 'CONTEXT encoder' in caplog.text


def test_what_a_file_does_not_hold(folder, tmp_path, caplog):
  """It is said; and what nobody knows any more is not made up."""
  actual = load.load_encoder(folder, which='context')
  assert 'target encoder' in actual.name
  assert 'holds the target encoder alone' in caplog.text
  export.export(folder, tmp_path / 'ours', 'orbax')
  with pytest.raises(UserError, match="'untrained': only a training run"):
    load.load_encoder(tmp_path / 'ours', which='untrained')


@pytest.mark.parametrize('part', ['target', 'context'])
def test_an_export_of_one_encoder(small_run, one, tmp_path, caplog, part):
  shutil.copy(small_run / 'config.json', tmp_path)
  frozen = load.load_frozen(small_run, mesh=one)
  tree = {'target': frozen.params}
  if part == 'context':
    tree = {'params': {'encoder': frozen.params}}
  with checkpointer.Checkpointer(tmp_path / 'checkpoints') as checkpoints:
    checkpoints.save(3, tree)
  for which in 'target', 'context':
    caplog.clear()
    actual = load.load_frozen(tmp_path, mesh=one, which=which)
    assert actual.name.endswith(f'step 3, {part} encoder')
    assert actual.fingerprint == frozen.fingerprint
    assert actual.table is None
    told = f'holds the {part} encoder alone' in caplog.text
    assert told == (which != part)
  # Its own table, which what it was exported from had.
  table = np.random.default_rng(0).normal(size=(36, 64)).astype(np.float32)
  name = {'target': 'target', 'context': 'encoder'}[part]
  file = tmp_path / orbax.POSITION_TABLES
  tensors.write_safetensors(file, {name: table})
  actual = load.load_frozen(tmp_path, mesh=one, pos_embed='interpolate')
  np.testing.assert_array_equal(actual.position((1, 48, 48, 3)), table)
  tensors.write_safetensors(file, {name: table[:9]})
  with pytest.raises(UserError, match=r'\[9, 64\].*no position table'):
    load.load_frozen(tmp_path, mesh=one)


def test_types_of_computation(small_run, folder, one, tmp_path):
  assert load.load_frozen(folder).encoder.dtype == np.float32
  half = load.load_frozen(folder, dtype='bfloat16').encoder
  assert half.dtype == 'bfloat16' and half.product_dtype == np.float32  # CPU
  # A run of NVIDIA GPUs, looked at without one.
  config = json.loads((small_run / 'config.json').read_text())
  config['model'] |= dict(attention='cudnn', dtype='bfloat16')
  (tmp_path / 'config.json').write_text(json.dumps(config))
  shutil.copytree(small_run / 'checkpoints', tmp_path / 'checkpoints')
  image = pixels(3)
  exact, again, half = (
    load.load_encoder(path, mesh=one, dtype=dtype).features(image)
    for path, dtype in (
      (small_run, None),
      (tmp_path, 'float32'),
      (tmp_path, None),
    )
  )
  close(again, exact)
  assert half.dtype == np.float32
  close(half, exact, BFLOAT16)
  assert np.abs(half - exact).max() > 1e-4 * np.abs(exact).max()


def test_recompute_is_the_model_of_that_size(folder, params, tmp_path, one):
  shape = 24, 72
  config = CONFIG | {'image_size': shape}
  huggingface.write(tmp_path / 'hf', {'target': params}, config)
  image = pixels(2, *shape)
  expected = load.load_encoder(tmp_path / 'hf', mesh=one)
  actual = load.load_encoder(folder, mesh=one, image_size=shape)
  assert actual.grid == expected.grid
  close(actual.features(image, 'tokens'), expected.features(image, 'tokens'))


def test_interpolate_takes_the_stored_table(params, tmp_path, one):
  """At its own grid bit for bit, elsewhere as positions.resize has it."""
  table = np.random.default_rng(3).normal(size=(36, 32)).astype(np.float32)
  huggingface.write(tmp_path / 'hf', {'target': params}, CONFIG, table=table)
  actual = load.load_encoder(tmp_path / 'hf', mesh=one, pos_embed='interpolate')
  for shape in (48, 48), (24, 96):
    image = pixels(2, *shape)
    position = table
    if shape != (48, 48):
      position = positions.resize(table, (6, 6), (3, 12))
    expected = by_hand(params, image, position)
    close(actual.features(image, 'last4'), expected['last4'])


def test_interpolate_changes_nothing_at_home(small_run, one):
  """Of a run the stored table is the computed one."""
  image = pixels(2)
  first, second = (
    load.load_encoder(small_run, mesh=one, pos_embed=p).features(image)
    for p in load.POS_EMBED
  )
  close(first, second)


@pytest.mark.parametrize('shape', [(64, 64), (32, 80)])
def test_interpolate_is_hugging_faces(
  params, shape, tmp_path, monkeypatch, one
):
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  table = np.random.default_rng(3).normal(size=(36, 32)).astype(np.float32)
  huggingface.write(tmp_path / 'hf', {'target': params}, CONFIG, table=table)
  model = transformers.IJepaModel.from_pretrained(tmp_path / 'hf').eval()
  image = pixels(2, *shape)
  with torch.no_grad():
    x = torch.from_numpy(normalised(image).transpose(0, 3, 1, 2).copy())
    expected = model(x, interpolate_pos_encoding=True).last_hidden_state.numpy()
  ours = load.load_encoder(tmp_path / 'hf', mesh=one, pos_embed='interpolate')
  close(ours.features(image, 'tokens'), expected)


def test_evaluations_at_another_resolution(small_run, images, one):
  frozen = {
    (size, kind): load.load_frozen(
      small_run, mesh=one, image_size=size, pos_embed=kind
    )
    for size in (None, (24, 64))
    for kind in load.POS_EMBED
  }
  assert len({f.fingerprint for f in frozen.values()}) == 4
  # What is fine-tuned is what is looked at.
  last = frozen[(24, 64), 'interpolate']
  width = last.encoder.width
  model = classifier.Classifier(last, 1, 0, width, 0, 0, 0, 0)
  head = {'kernel': np.eye(width), 'bias': 0}
  image = pixels(2, 24, 64)
  logits = jax.jit(model.logits)(
    {'encoder': last.params, 'head': head}, last.normalize(image)
  )
  expected = load.load_encoder(small_run, mesh=one, pos_embed='interpolate')
  close(logits, expected.features(image))

  c = knn_config.get_config()
  c.init_from, c.task, c.data.path = str(small_run), 'folder', str(images)
  c.data.test = 'test'
  c.image_size, c.pos_embed = (24, 64), 'interpolate'
  frozen = evaluation.Evaluation.from_config(c, '').frozen
  assert frozen.fingerprint == last.fingerprint
  assert frozen.name.endswith('at 24 x 64, positions interpolated')


def test_nothing_is_imported_before_it_is_needed():
  code = 'import ijepa_jax, sys; print("jax" in sys.modules)'
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, check=True, text=True
  )
  assert out.stdout == 'False\n'
  assert 'load_encoder' in dir(ijepa_jax)
  with pytest.raises(AttributeError, match='encode_all'):
    ijepa_jax.encode_all  # noqa: B018


@pytest.mark.parametrize('text', ['', '3', '[' * 10**5, '{"model": {}}'])
def test_a_folder_of_something_else(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(UserError, match='no training workdir'):
    load.load_encoder(tmp_path)


@pytest.mark.parametrize(
  ('kwargs', 'words'),
  [
    ({'which': 'teacher'}, "'teacher': take one of target"),
    ({'which': 'untrained'}, 'only a training run'),
    ({'which': 'pixels'}, 'no encoder'),
    ({'step': 3}, 'step is 3: only a training run'),
    ({'image_size': (48, 52)}, r'image_size is \(48, 52\).*patches of 8'),
    ({'image_size': (48,)}, r'image_size is \(48,\): take a height'),
    ({'image_size': 0}, 'image_size is 0: take a height'),
    ({'pos_embed': 'bilinear'}, "pos_embed is 'bilinear'.*interpolate"),
    ({'dtype': 'float16'}, "dtype is 'float16'.*bfloat16"),
    ({'batch_size': 0}, 'batch_size is 0'),
    ({'path': '/nowhere'}, '/nowhere'),
  ],
)
def test_mistakes_in_loading_are_told(folder, kwargs, words):
  with pytest.raises(UserError, match=words) as told:
    load.load_encoder(**{'path': folder} | kwargs)
  assert '\n' not in str(told.value)
