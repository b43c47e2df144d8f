"""load_encoder: features of anybody's I-JEPA, however the images are given."""

import importlib.util
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import PIL.Image
import pytest

import ijepa_jax
from configs.evals import knn as knn_config
from ijepa_jax.convert import export
from ijepa_jax.errors import UserError
from ijepa_jax.evals import evaluation, finetune
from ijepa_jax.models import positions, transformer, vit
from ijepa_jax.pretrained import image_encoder, load
from ijepa_jax.pretrained.formats import (
  huggingface,
  release,
  safetensors,
  weights,
)
from ijepa_jax.runtime import sharding
from ijepa_jax.runtime.checkpoint import checkpointer
from tests.close import BFLOAT16, close

KINDS = 'pooled', 'tokens', 'last4'
# Five layers, so that the last four are not all.
CONFIG = dict(
  width=32,
  depth=5,
  heads=4,
  mlp_dim=64,
  patch_size=8,
  image_size=(48, 48),
  channels=3,
)


def random_params(config, seed=0):
  """Large enough that every layer and the positions matter."""
  r = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: r.normal(0, 0.2, x.shape).astype(np.float32),
    weights.shapes(config, 'encoder'),
  )


@pytest.fixture(scope='module')
def params():
  return random_params(CONFIG)


@pytest.fixture(scope='module')
def folder(params, tmp_path_factory):
  """A Hugging Face folder of the target encoder."""
  path = tmp_path_factory.mktemp('files') / 'hf'
  huggingface.write(path, {'target': params}, CONFIG)
  return path


@pytest.fixture(scope='module')
def encoder(folder):
  return image_encoder.load_encoder(folder, batch_size=16)


@pytest.fixture(scope='module')
def one(cpus):
  """A mesh of one device: what is compiled is compiled sooner."""
  return sharding.make_mesh(devices=cpus[:1])


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """Files: wide, high, grey, and lying on its side says EXIF."""
  path, r = tmp_path_factory.mktemp('photos'), np.random.default_rng(2)
  exif = PIL.Image.Exif()
  exif[0x0112] = 6
  shapes = (60, 80, 3), (90, 50, 3), (64, 64), (50, 70, 3)
  for i, shape in enumerate(shapes):
    coarse = r.integers(0, 256, (5, 5, *shape[2:]), np.uint8)
    image = PIL.Image.fromarray(coarse).resize(shape[1::-1])
    more = {'exif': exif} if i == 3 else {}
    image.save(path / f'{i}.png', **more)
  return sorted(path.iterdir())


def pixels(n, h=48, w=48, c=3):
  return np.random.default_rng(1).integers(0, 256, (n, h, w, c), np.uint8)


def normalised(image):
  mean, std = map(np.float32, (vit.IMAGENET_MEAN, vit.IMAGENET_STD))
  return (image.astype(np.float32) / 255 - mean) / std


def by_hand(params, image, position_ND=None):
  """The three kinds, from the encoder itself."""
  module, _ = weights.models(CONFIG)

  @jax.jit
  def run(params, x):
    tokens, layers = module.apply(
      {'params': params}, x, position_ND=position_ND, layers='tokens'
    )
    norm = transformer.norm('norm', np.float32)
    layers = norm.apply({'params': params['norm']}, layers[-4:])
    return tokens, layers

  tokens, layers = jax.device_get(run(params, normalised(image)))
  last4 = layers.mean(2).swapaxes(0, 1).reshape(len(image), -1)
  return dict(pooled=tokens.mean(1), tokens=tokens, last4=last4)


@pytest.mark.parametrize('shape', [(48, 48), (24, 64)])
def test_the_three_kinds(encoder, params, shape):
  image = pixels(3, *shape)
  expected = by_hand(params, image)
  for kind in KINDS:
    found = encoder.features(image, kind)
    assert found.dtype == np.float32 and type(found) is np.ndarray
    close(found, expected[kind])
  tokens = encoder.features(image, 'tokens')
  assert tokens.shape == (3, shape[0] * shape[1] // 64, 32)


def test_kinds_of_arrays(encoder):
  image = pixels(3)
  wanted = encoder.features(image)
  for same in (
    image / 255,
    (image / 255).astype(np.float32),
    jax.numpy.asarray(image),
    jax.numpy.asarray(image / np.float32(255)),
  ):
    close(encoder.features(same), wanted)
  found = encoder.features(normalised(image), normalized=True)
  close(found, wanted)
  half = jax.numpy.asarray(image / 255, 'bfloat16')
  close(encoder.features(half), wanted, BFLOAT16)


def test_neither_batches_nor_devices_matter(encoder, folder, cpus):
  image = pixels(21)
  wanted = encoder.features(image, 'last4')
  assert wanted.shape == (21, 4 * 32)
  for devices, size in ((1, 4), (3, 1)):
    mesh = sharding.make_mesh(devices=cpus[:devices])
    other = image_encoder.load_encoder(folder, mesh=mesh, batch_size=size)
    found = other.features(image, 'last4')
    close(found, wanted)
  split = sharding.make_mesh(fsdp=4, devices=cpus)
  other = image_encoder.load_encoder(folder, mesh=split)
  close(other.features(image, 'last4'), wanted)


def test_ways_to_give_pictures(encoder, photos):
  seen = encoder.crop(photos)
  assert seen.shape == (4, 48, 48, 3) and seen.dtype == np.uint8
  upright = [PIL.ImageOps.exif_transpose(PIL.Image.open(p)) for p in photos]
  for same in (
    list(map(str, photos)),
    map(PIL.Image.open, photos),
    upright,
    [np.asarray(image) for image in upright],
    [photos[0], upright[1], np.asarray(upright[2])[..., None], upright[3]],
  ):
    np.testing.assert_array_equal(encoder.crop(same), seen)
  # An array is taken as it is.
  np.testing.assert_array_equal(
    encoder.features(photos), encoder.features(seen)
  )
  # The crop of the evaluations: 55 pixels of the shorter side, 48 of them.
  wide = PIL.Image.open(photos[0]).resize((73, 55), PIL.Image.BICUBIC)
  expected = np.asarray(wide)[3:51, 12:60]
  np.testing.assert_array_equal(seen[0], expected)
  # Lazily opened, and twice in the list.
  lazy = PIL.Image.open(photos[1])
  again = encoder.crop([lazy] * 20)
  np.testing.assert_array_equal(again, seen[1:2].repeat(20, 0))


def test_odd_modes(encoder, tmp_path):
  """Opened by the user or here, they are the same; and stay what they are."""
  ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
  colour = PIL.Image.fromarray(pixels(1)[0])
  colour.convert('P').save(tmp_path / '1.png', transparency=3)
  PIL.Image.fromarray(ramp).save(tmp_path / '2.png')
  colour.convert('RGBA').save(tmp_path / '3.png')
  colour.convert('CMYK').save(tmp_path / '4.tif')
  paths = sorted(tmp_path.iterdir())
  opened = [PIL.Image.open(p) for p in paths]
  seen = encoder.crop(paths)
  assert seen[1].std() > 50
  np.testing.assert_array_equal(encoder.crop(opened), seen)
  assert opened[0].info['transparency'] == 3 and opened[0].mode == 'P'


def test_more_pictures_than_a_batch_read_as_needed(encoder):
  images, ahead, computed = pixels(40), [], []
  run = encoder._run['pooled']

  def give():
    for i, image in enumerate(images):
      ahead.append(i // 16 - len(computed))
      yield image

  def counting(*args):
    computed.append(1)
    return run(*args)

  encoder._run['pooled'] = counting
  try:
    found = encoder.features(give())
  finally:
    encoder._run['pooled'] = run
  assert set(ahead) == {0}  # none is read before the batch before it runs
  wanted = encoder.features(encoder.crop(images))
  close(found, wanted)


def test_compilations(folder, caplog):
  encoder = image_encoder.load_encoder(folder, batch_size=32)

  def compiled(n, kind='pooled', **kwargs):
    caplog.clear()
    with jax.log_compiles():
      assert len(encoder.features(pixels(n, **kwargs), kind)) == n
    return sum('Finished XLA comp' in r.getMessage() for r in caplog.records)

  assert compiled(5) == 1
  assert compiled(5) == 0
  # Alike: what few images are padded to, and the last of many batches.
  assert [compiled(n) for n in (1, 2, 8)] == [0, 0, 0]
  assert [compiled(n) for n in (9, 16, 20, 32, 33, 70)] == [1, 0, 1, 0, 0, 0]
  assert [compiled(70, 'tokens'), compiled(33, 'tokens')] == [1, 0]
  assert [compiled(3, h=24), compiled(3, h=24)] == [1, 0]


def test_what_it_says_of_itself(encoder, folder):
  assert encoder.name == 'hf, target encoder'
  assert encoder.image_size == (48, 48) and encoder.grid == (6, 6)
  assert (encoder.width, encoder.patch_size, encoder.channels) == (32, 8, 3)
  assert encoder.mean == vit.IMAGENET_MEAN
  assert encoder.std == vit.IMAGENET_STD
  assert repr(encoder) == (
    '<hf, target encoder: 48 x 48, patches of 8, width 32>'
  )
  other = image_encoder.load_encoder(
    folder, image_size=64, pos_embed='interpolate'
  )
  assert other.grid == (8, 8)
  assert other.name.endswith('encoder, at 64 x 64, positions interpolated')


def test_a_workdir_and_what_it_was_exported_to(small_run, one, tmp_path):
  run = image_encoder.load_encoder(small_run, mesh=one)
  assert 'step 1, target encoder' in run.name
  assert (run.image_size, run.patch_size) == ((48, 48), 8)
  frozen = load.load(small_run)
  config = frozen.model | {
    k: getattr(frozen, k) for k in ('image_size', 'channels', 'mean', 'std')
  }
  target = jax.device_get(frozen.params)
  huggingface.write(tmp_path / 'hf', {'target': target}, config)
  if importlib.util.find_spec('torch'):
    release.write(tmp_path / 'a.pth.tar', {'target': target}, config)
  image = pixels(3)
  for path in tmp_path.iterdir():
    other = image_encoder.load_encoder(path, mesh=one)
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
    image_encoder.load_encoder(path)
  image = pixels(2)
  for which, key in (('target', 'target'), ('context', 'encoder')):
    found = image_encoder.load_encoder(path, heads=4, which=which, mesh=one)
    assert found.name == f'jepa.pth.tar, {which} encoder'
    wanted = by_hand(both[key], image)['pooled']
    close(found.features(image), wanted)
  # Nor which grid a table is of, where it is no sin-cos table and no square.
  for name in 'encoder', 'target_encoder':
    file[name]['module.pos_embed'] = torch.ones(1, 35, 32)
  torch.save(file, path)
  with pytest.raises(UserError, match='give image_size='):
    image_encoder.load_encoder(path, heads=4)
  found = image_encoder.load_encoder(path, heads=4, image_size=(40, 56))
  assert found.grid == (5, 7)


def test_a_context_encoder_is_told(params, tmp_path, caplog):
  huggingface.write(
    tmp_path / 'hf', {'encoder': params}, CONFIG, which='encoder'
  )
  assert 'context' in image_encoder.load_encoder(tmp_path / 'hf').name
  assert 'CONTEXT encoder' in caplog.text


def test_what_a_file_does_not_hold(folder, tmp_path, caplog):
  """It is said; and what nobody knows any more is not made up."""
  found = image_encoder.load_encoder(folder, which='context')
  assert 'target encoder' in found.name
  assert 'holds the target encoder alone' in caplog.text
  export.export(folder, tmp_path / 'ours', 'orbax')
  with pytest.raises(UserError, match="'untrained': only a training run"):
    image_encoder.load_encoder(tmp_path / 'ours', which='untrained')


@pytest.mark.parametrize('part', ['target', 'context'])
def test_an_export_of_one_encoder(small_run, one, tmp_path, caplog, part):
  shutil.copy(small_run / 'config.json', tmp_path)
  frozen = load.load(small_run, mesh=one)
  tree = {'target': frozen.params}
  if part == 'context':
    tree = {'params': {'encoder': frozen.params}}
  with checkpointer.Checkpointer(tmp_path / 'checkpoints') as checkpoints:
    checkpoints.save(3, tree)
  for which in 'target', 'context':
    caplog.clear()
    found = load.load(tmp_path, mesh=one, which=which)
    assert found.name.endswith(f'step 3, {part} encoder')
    assert found.fingerprint == frozen.fingerprint
    assert found.table is None
    told = f'holds the {part} encoder alone' in caplog.text
    assert told == (which != part)
  # Its own table, which what it was exported from had.
  table = np.random.default_rng(0).normal(size=(36, 64)).astype(np.float32)
  name = {'target': 'target', 'context': 'encoder'}[part]
  file = tmp_path / positions.FILE
  safetensors.write(file, {name: table}, {})
  found = load.load(tmp_path, mesh=one, pos_embed='interpolate')
  np.testing.assert_array_equal(found.position((1, 48, 48, 3)), table)
  safetensors.write(file, {name: table[:9]}, {})
  with pytest.raises(UserError, match=r'\[9, 64\].*no position table'):
    load.load(tmp_path, mesh=one)


def test_types_of_computation(small_run, folder, one, tmp_path):
  assert load.load(folder).encoder.dtype == np.float32
  assert load.load(folder, dtype='bfloat16').encoder.dtype == 'bfloat16'
  # A run of NVIDIA GPUs, looked at without one.
  config = json.loads((small_run / 'config.json').read_text())
  config['model'] |= dict(attention='cudnn', dtype='bfloat16')
  (tmp_path / 'config.json').write_text(json.dumps(config))
  shutil.copytree(small_run / 'checkpoints', tmp_path / 'checkpoints')
  image = pixels(3)
  exact, again, half = (
    image_encoder.load_encoder(path, mesh=one, dtype=dtype).features(image)
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
  there = CONFIG | {'image_size': shape}
  huggingface.write(tmp_path / 'hf', {'target': params}, there)
  image = pixels(2, *shape)
  wanted = image_encoder.load_encoder(tmp_path / 'hf', mesh=one)
  found = image_encoder.load_encoder(folder, mesh=one, image_size=shape)
  assert found.grid == wanted.grid
  close(found.features(image, 'tokens'), wanted.features(image, 'tokens'))


def test_interpolate_takes_the_stored_table(params, tmp_path, one):
  """At its own grid bit for bit, elsewhere as positions.resize has it."""
  table = np.random.default_rng(3).normal(size=(36, 32)).astype(np.float32)
  huggingface.write(tmp_path / 'hf', {'target': params}, CONFIG, table=table)
  found = image_encoder.load_encoder(
    tmp_path / 'hf', mesh=one, pos_embed='interpolate'
  )
  for shape in (48, 48), (24, 96):
    image = pixels(2, *shape)
    position = table
    if shape != (48, 48):
      position = positions.resize(table, (6, 6), (3, 12))
    wanted = by_hand(params, image, position)
    close(found.features(image, 'last4'), wanted['last4'])


def test_interpolate_changes_nothing_at_home(small_run, one):
  """Of a run the stored table is the computed one."""
  image = pixels(2)
  first, second = (
    image_encoder.load_encoder(small_run, mesh=one, pos_embed=p).features(image)
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
    wanted = model(x, interpolate_pos_encoding=True).last_hidden_state.numpy()
  ours = image_encoder.load_encoder(
    tmp_path / 'hf', mesh=one, pos_embed='interpolate'
  )
  close(ours.features(image, 'tokens'), wanted)


def test_evaluations_at_another_resolution(small_run, images, one):
  frozen = {
    (size, kind): load.load(
      small_run, mesh=one, image_size=size, pos_embed=kind
    )
    for size in (None, (24, 64))
    for kind in load.POS_EMBED
  }
  assert len({f.fingerprint for f in frozen.values()}) == 4
  # What is fine-tuned is what is looked at.
  last = frozen[(24, 64), 'interpolate']
  model = finetune.Classifier(last, last.encoder.width, 0, 0, 0, 0)
  head = {'kernel': np.eye(last.encoder.width), 'bias': 0}
  image = pixels(2, 24, 64)
  logits = jax.jit(model.logits)(
    {'encoder': last.params, 'head': head}, last.normalize(image)
  )
  wanted = image_encoder.load_encoder(
    small_run, mesh=one, pos_embed='interpolate'
  )
  close(logits, wanted.features(image))

  c = knn_config.get_config()
  c.init_from, c.task, c.data.path = str(small_run), 'folder', str(images)
  c.data.test = 'test'
  c.image_size, c.pos_embed = (24, 64), 'interpolate'
  bench = evaluation.Evaluation.from_config(c, '')
  assert bench.frozen.fingerprint == last.fingerprint
  assert bench.frozen.name.endswith('at 24 x 64, positions interpolated')


def test_nothing_is_imported_before_it_is_needed():
  code = 'import ijepa_jax, sys; print("jax" in sys.modules)'
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, check=True, text=True
  )
  assert out.stdout == 'False\n'
  assert 'load_encoder' in dir(ijepa_jax)
  with pytest.raises(AttributeError, match='encode_all'):
    ijepa_jax.encode_all  # noqa: B018


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
    image_encoder.load_encoder(**{'path': folder} | kwargs)
  assert '\n' not in str(told.value)


@pytest.mark.parametrize(
  ('images', 'kwargs', 'words'),
  [
    (pixels(2), {'kind': 'mean'}, "'mean': take pooled, tokens, last4"),
    ('a.jpg', {}, r'give a list of it, \[picture\]'),
    (PIL.Image.new('RGB', (9, 9)), {}, 'give a list of it'),
    ([], {}, 'no images'),
    (pixels(0), {}, 'no images'),
    (pixels(2)[0], {}, r'\(48, 48, 3\): take \[n, H, W, 3\]'),
    (pixels(2).transpose(0, 3, 1, 2), {}, r'\(2, 3, 48, 48\).*channels last'),
    (pixels(2, c=1), {}, r'take \[n, H, W, 3\]'),
    (pixels(2, 50), {}, r'50 x 48.*patches of 8.*list\(images\).*48 x 48'),
    (pixels(2).astype(int), {}, 'int64: take uint8'),
    (pixels(2) / 1.0, {}, r'from 0 to 255.*\[0, 1\].*normalized=True'),
    (pixels(2) * np.nan, {}, 'nan'),
    (pixels(2), {'normalized': True}, 'uint8: take floats'),
    (list(pixels(2)), {'normalized': True}, 'normalized is for arrays'),
    (['/nowhere.png'], {}, r'/nowhere\.png can not be read'),
    ([__file__], {}, r'test_image_encoder\.py can not be read'),
    ([*pixels(2), 5], {}, 'Picture 2 can not be read: it is int; take a path'),
    (list(pixels(2) / 255), {}, r'Picture 0 .*float64 \(48, 48, 3\)'),
    ([pixels(1, c=5)[0]], {}, 'Picture 0.*5 channels'),
    ([np.zeros((0, 3), np.uint8)], {}, 'Picture 0'),
  ],
)
def test_mistakes_in_images_are_told(encoder, images, kwargs, words):
  with pytest.raises(UserError, match=words) as told:
    encoder.features(images, **kwargs)
  assert '\n' not in str(told.value)


def test_a_picture_cut_short_is_told(encoder, photos, tmp_path):
  path = tmp_path / 'half.png'
  path.write_bytes(photos[0].read_bytes()[:90])
  for picture, name in ((path, 'half.png'), (PIL.Image.open(path), '2')):
    with pytest.raises(UserError, match=f'{name} can not be read'):
      encoder.features([*photos[:2], picture])


def test_other_channels(tmp_path, photos, one):
  config = CONFIG | {'channels': 5, 'mean': [0.5] * 5, 'std': [0.5] * 5}
  huggingface.write(tmp_path / 'hf', {'target': random_params(config)}, config)
  encoder = image_encoder.load_encoder(tmp_path / 'hf', mesh=one)
  image = pixels(2, c=5)
  features = encoder.features(list(image))
  assert features.shape == (2, 32)
  paths = [tmp_path / '0.npy', tmp_path / '1.npy']
  for path, pixels_HWC in zip(paths, image, strict=True):
    np.save(path, pixels_HWC)
  np.testing.assert_array_equal(encoder.features(paths), features)
  with pytest.raises(UserError, match=r'0\.png.*takes 5 channels'):
    encoder.features(photos)
