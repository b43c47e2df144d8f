"""Folders of Hugging Face, without its libraries."""

import json
import struct

import jax
import numpy as np
import pytest

from benchmarks import parity
from ijepa_jax.errors import UserError
from ijepa_jax.pretrained.formats import (
  huggingface,
  huggingface_names,
  release_names,
  tensors,
  weights,
)
from tests.close import close
from tests.methods.test_parity import GOLDEN

WEIGHTS = 'model.safetensors'

CONFIG = dict(
  width=32,
  depth=2,
  heads=4,
  mlp_dim=128,
  patch_size=8,
  image_size=(48, 48),
  channels=3,
)


@pytest.fixture(scope='module')
def golden():
  return dict(np.load(GOLDEN))


@pytest.fixture(scope='module')
def params(golden):
  target = parity.subtree(golden, 'final/target_encoder')
  return {'target': release_names.from_release(target, 'encoder')}


@pytest.fixture
def folder(params, tmp_path):
  huggingface.write(tmp_path / 'given', params, CONFIG)
  return tmp_path / 'given'


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def outputs(loaded, image_BHWC):
  encoder, _ = weights.models(loaded.config)
  (params,) = loaded.params.values()
  with jax.default_matmul_precision('highest'):
    return np.asarray(jax.jit(encoder.apply)({'params': params}, image_BHWC))


def stored(folder):
  return tensors.read_safetensors(folder / WEIGHTS)


def store(folder, arrays):
  tensors.write_safetensors(folder / WEIGHTS, arrays, {'format': 'pt'})


def edit(folder, **changes):
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_golden_there_and_back(golden, params, folder, tmp_path):
  loaded = huggingface.read(folder)
  assert loaded.config == CONFIG
  assert loaded.notes == []
  assert_equal(loaded.params, params)
  image = golden['step0/images_nchw'].transpose(0, 2, 3, 1)
  huggingface.write(
    tmp_path / 'again', loaded.params, CONFIG, table=loaded.tables['target']
  )
  for name in 'config.json', WEIGHTS:
    again = (tmp_path / 'again' / name).read_bytes()
    assert again == (folder / name).read_bytes()
  context = release_names.from_release(
    parity.subtree(golden, 'init/encoder'), 'encoder'
  )
  huggingface.write(
    tmp_path / 'init', {'encoder': context}, CONFIG, part='encoder'
  )
  initial = huggingface.read(tmp_path / 'init')
  close(outputs(initial, image), golden['step0/target_encoder_out'])


def test_context_encoder_is_told(folder):
  edit(folder, ijepa_encoder='encoder')
  assert huggingface.read(folder).params.keys() == {'encoder'}
  config = json.loads((folder / 'config.json').read_text())
  del config['ijepa_encoder']  # As in the converted files.
  (folder / 'config.json').write_text(json.dumps(config))
  loaded = huggingface.read(folder)
  assert loaded.params.keys() == {'encoder'}
  assert 'CONTEXT encoder' in loaded.notes[0]


def test_normalisation(params, tmp_path):
  stats = dict(mean=(0.5, 0.25, 0.125), std=(1.0, 0.5, 0.25))
  huggingface.write(tmp_path / 'a', params, CONFIG | stats)
  assert huggingface.read(tmp_path / 'a').config == CONFIG | stats
  path = tmp_path / 'a/preprocessor_config.json'
  path.write_text(path.read_text().replace('0.25', '0.0'))
  with pytest.raises(UserError, match='std is'):
    huggingface.read(tmp_path / 'a')


def test_another_table_is_told(params, folder, tmp_path):
  table = np.zeros((36, 32))
  huggingface.write(tmp_path / 'a', params, CONFIG, table=table)
  loaded = huggingface.read(tmp_path / 'a')
  assert 'position table differs' in loaded.notes[0]
  np.testing.assert_array_equal(loaded.tables['target'], table)


def test_another_epsilon_is_told(folder):
  edit(folder, layer_norm_eps=1e-12)
  assert '1e-12' in huggingface.read(folder).notes[0]
  edit(folder, layer_norm_eps=0.1)
  with pytest.raises(UserError, match='layer_norm_eps'):
    huggingface.read(folder)


@pytest.mark.parametrize(
  ('code', 'dtype'), [('BF16', 'bfloat16'), ('F16', '<f2'), ('F64', '<f8')]
)
def test_other_types(params, folder, code, dtype):
  dtype = np.dtype(dtype)
  header, data = {}, b''
  for name, x in stored(folder).items():
    begin, data = len(data), data + x.astype(dtype).tobytes()
    header[name] = dict(
      dtype=code, shape=x.shape, data_offsets=(begin, len(data))
    )
  text = json.dumps(header).encode()
  (folder / WEIGHTS).write_bytes(struct.pack('<Q', len(text)) + text + data)
  loaded = huggingface.read(folder)
  assert [dtype.name in note for note in loaded.notes] == [True]
  assert_equal(
    loaded.params,
    jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params),
  )


@pytest.mark.parametrize(
  'changes, words',
  [
    (dict(model_type='vit'), "'vit'"),
    (dict(hidden_size=64), 'hidden_size = 64'),
    (dict(num_hidden_layers=10**9), 'num_hidden_layers'),
    (dict(num_attention_heads=5), '5 heads'),
    (dict(num_attention_heads=-4), 'heads'),
    (dict(num_attention_heads='4'), 'num_attention_heads'),
    (dict(intermediate_size=True), 'intermediate_size'),
    (dict(patch_size=[8, 4]), 'patch_size'),
    (dict(image_size=64), 'position_embeddings'),
    (dict(image_size=[8 * 10**20, 8]), 'position_embeddings'),
    (dict(image_size=[-48, -48]), '-48'),
    (dict(image_size='48'), 'image_size|48'),
    (dict(hidden_act='relu'), 'relu'),
    (dict(qkv_bias=False), 'qkv_bias'),
    (dict(ijepa_encoder='both'), 'both'),
  ],
)
def test_config_that_does_not_fit(folder, changes, words):
  edit(folder, **changes)
  with pytest.raises(UserError, match=words):
    huggingface.read(folder)


def test_tensors_that_do_not_fit(folder):
  arrays = stored(folder)
  norm = 'layernorm.bias'
  for change, words in (
    ({norm: None}, 'lacks layernorm.bias'),
    ({norm: None, 'cls_token': arrays[norm]}, r'lacks.*place for: cls'),
    ({norm: np.zeros((4, 8))}, r'\[4, 8\] instead of \[32\]'),
    ({'embeddings.position_embeddings': None}, 'position_embeddings'),
    ({'embeddings.patch_embeddings.projection.weight': None}, 'no I-JEPA'),
    ({'layers.0.mlp.fc1.bias': np.zeros(128)}, 'twice'),
    ({norm: arrays[norm] * np.float32('nan')}, 'layernorm.bias.*not finite'),
  ):
    wrong = {k: v for k, v in (arrays | change).items() if v is not None}
    store(folder, wrong)
    with pytest.raises(UserError, match=words):
      huggingface.read(folder)
  resnet = {'conv1.weight': np.zeros((64, 3, 7, 7)), 'fc.bias': np.zeros(9)}
  store(folder, resnet)
  with pytest.raises(UserError, match=r'no I-JEPA.*conv1\.weight, fc\.bias'):
    huggingface.read(folder)


def test_wrong_folders(folder, tmp_path):
  for text in '', '[]', 'no json', '[' * 10**5, '{"model_type": {}}':
    (folder / 'config.json').write_text(text)
    with pytest.raises(UserError, match=r'config\.json'):
      huggingface.read(folder)
  with pytest.raises(UserError, match=r'config\.json'):
    huggingface.read(tmp_path / 'nowhere')
  edit_ = folder / 'config.json'
  edit_.write_text('{"model_type": "ijepa"}')
  (folder / WEIGHTS).unlink()
  with pytest.raises(UserError, match=r'neither model\.safetensors'):
    huggingface.read(folder)


def test_writing_refused(params, folder, tmp_path):
  with pytest.raises(UserError, match='there already'):
    huggingface.write(folder, params, CONFIG)
  out = tmp_path / 'out'
  with pytest.raises(UserError, match='part is'):
    huggingface.write(out, params, CONFIG, part='encoder')
  with pytest.raises(UserError, match='blocks/fc1'):
    huggingface.write(out, params, CONFIG | {'mlp_dim': 64})
  with pytest.raises(UserError, match='whole number'):
    huggingface.write(out, params, CONFIG | {'image_size': (48, 50)})
  with pytest.raises(UserError, match='pos_embed'):
    huggingface.write(out, params, CONFIG, table=np.zeros((4, 32)))
  assert [p.name for p in tmp_path.iterdir()] == ['given']


def test_in_several_files(params, folder):
  arrays = {f'ijepa.{k}': x for k, x in stored(folder).items()}
  places = {}
  for i, name in enumerate(arrays):
    places[name] = f'model-{i % 2}.safetensors'
  for file in set(places.values()):
    of_file = {k: x for k, x in arrays.items() if places[k] == file}
    tensors.write_safetensors(folder / file, of_file)
  (folder / WEIGHTS).unlink()
  index = folder / f'{WEIGHTS}.index.json'
  index.write_text(json.dumps({'weight_map': places}))
  assert_equal(huggingface.read(folder).params, params)
  for wrong, words in (
    (places | {'ijepa.layernorm.more': 'model-0.safetensors'}, 'does not list'),
    (dict.fromkeys(places, '../model.safetensors'), 'no file beside it'),
    (dict.fromkeys(places, 'gone.safetensors'), 'gone'),
    ([], 'weight_map'),
  ):
    index.write_text(json.dumps({'weight_map': wrong}))
    with pytest.raises(UserError, match=words):
      huggingface.read(folder)


def test_pytorch_model_bin(params, folder):
  torch = pytest.importorskip('torch')
  content = {
    f'ijepa.{k}': torch.from_numpy(np.array(x))
    for k, x in stored(folder).items()
  }
  content['classifier.0.num_batches_tracked'] = torch.tensor(3)
  torch.save(content, folder / 'pytorch_model.bin')
  (folder / WEIGHTS).unlink()
  loaded = huggingface.read(folder)
  assert_equal(loaded.params, params)
  assert loaded.notes == ['Passed over: classifier.0.num_batches_tracked.']


def test_what_a_processor_says(params, folder):
  """Normalization is followed or refused; another way to cut is said."""
  stats = dict(mean=(0.5, 0.25, 0.125), std=(1.0, 0.5, 0.25))
  path = folder / 'preprocessor_config.json'
  ours = huggingface_names.preprocessor(CONFIG | stats)

  def read(**changes):
    path.write_text(json.dumps(ours | changes))
    return huggingface.read(folder)

  assert read().notes == []
  assert read(do_normalize=False).config['mean'] == (0, 0, 0)
  assert read(do_normalize=False).config['std'] == (1, 1, 1)
  (note,) = read(size={'height': 48, 'width': 48}, do_center_crop=False).notes
  assert '"height": 48' in note and 'shorter side' in note
  for changes in dict(do_rescale=False), dict(rescale_factor=1 / 127.5):
    with pytest.raises(UserError, match='divided by 255'):
      read(**changes)
