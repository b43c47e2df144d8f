"""An export: every bit arrives, everywhere, or nothing does."""

import json

import jax
import numpy as np
import pytest

from benchmarks import parity
from configs import base
from ijepa_jax.convert import export
from ijepa_jax.errors import UserError
from ijepa_jax.models import vit
from ijepa_jax.pretrained import load
from ijepa_jax.pretrained.formats import huggingface, orbax, weights
from ijepa_jax.runtime import sharding
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.runtime.config import write_config
from ijepa_jax.train import compile
from ijepa_jax.train.run import make_run
from tests.close import close
from tests.convert.trees import assert_equal, random_like
from tests.methods.test_parity import GOLDEN
from tests.pretrained.formats.test_huggingface import CONFIG
from tests.pretrained.formats.test_release import NAMES, bits, released

WEIGHTS = 'model.safetensors'


def write_run(workdir, size, mesh):
  """A checkpoint of the target encoder, one block of true width; its tree."""
  c = base.get_config()
  c.model.size, c.model.depth, c.model.predictor_depth = size, 1, 1
  c.data.image_size, c.model.dtype = (32, 32), 'float32'
  sizes = {**c.model.to_dict(), 'image_size': (32, 32), 'channels': 3}
  tree = random_like({'target': weights.shapes(sizes, 'target')})
  placed = jax.device_put(tree, sharding.state_sharding(tree, mesh))
  write_config(workdir, c.to_json_best_effort())
  with checkpointer.Checkpointer(workdir / 'checkpoints') as checkpoints:
    checkpoints.save(5, placed)
  return tree


@pytest.mark.parametrize('size', vit.SIZES)
def test_every_size(size, cpus, tmp_path):
  """From checkpoints of 1 and 8 devices, onto 1 and 8 devices.

  All ways for the smallest; benchmarks/exports.py does them at full depth.
  """
  meshes = {
    n: sharding.make_mesh(data=1, fsdp=n, devices=cpus[:n]) for n in (1, 8)
  }
  ways = [(1, 'huggingface'), (8, 'orbax')]
  if size == 'tiny':
    ways += [(8, 'huggingface'), (1, 'orbax')]
  for n, to in ways:
    run, out = tmp_path / f'run_{to}{n}', tmp_path / f'{to}{n}'
    tree = write_run(run, size, meshes[n])
    assert 'bit-equal' in export.export(run, out, to)
    for mesh in meshes.values():
      params = load.load_frozen(out, mesh=mesh).params
      for x in jax.tree.leaves(params):
        assert len(x.sharding.device_set) == mesh.size
      assert_equal(jax.device_get(params), tree['target'])
  loaded = load.read_weights(tmp_path / 'orbax8')
  assert_equal(orbax.nested(loaded.params), tree)
  assert loaded.config['heads'] == vit.SIZES[size]['heads']


def restored(config, workdir, devices):
  """As pretrain does."""
  mesh = sharding.make_mesh(data=1, fsdp=len(devices), devices=devices)
  run = make_run(config, open_images=False)
  abstract, _ = compile.abstract_state(run)
  abstract = sharding.with_shardings(abstract, mesh)
  with checkpointer.Checkpointer(workdir / 'checkpoints') as checkpoints:
    state, step = checkpoints.restore(abstract)
  return jax.device_get(state), step


def test_a_run_goes_on_from_an_export(trained, cpus, tmp_path, caplog):
  config, workdir, state = trained
  out = tmp_path / 'whole'
  words = export.export(workdir, out, 'orbax', optimizer=True)
  assert "AdamW's state after step 7" in words
  for devices in cpus[:1], cpus:
    actual, step = restored(config, out, devices)
    assert step == 7
    assert_equal(actual, state)
  before, after = (
    json.loads((p / 'config.json').read_text()) for p in (workdir, out)
  )
  assert before == after
  # Whoever hands it on should know what it tells.
  assert 'kept whole, says path = /private/images.' in caplog.text
  assert 'init_from = /private/of/mine/first.' in caplog.text
  assert '/private' not in (out / 'README.md').read_text()
  for path in out.rglob('*'):
    if path.is_file():
      assert str(tmp_path).encode() not in path.read_bytes(), path


def test_the_same_by_way_of_torch(trained, cpus, tmp_path):
  pytest.importorskip('torch')
  config, workdir, state = trained
  out = tmp_path / 'a.pth.tar'
  export.export(workdir, out, 'release', optimizer=True)
  export.export(out, tmp_path / 'back', 'orbax', optimizer=True)
  unclipped = config.copy_and_resolve_references()
  unclipped.optim.clip_norm = 0.0  # what a file can't say
  actual, step = restored(unclipped, tmp_path / 'back', cpus[:1])
  assert step == 7
  assert_equal(jax.tree.leaves(actual), jax.tree.leaves(state))


def test_jobs_take_an_export_for_the_run(trained, tmp_path):
  """Same encoder, same features kept: the same fingerprint."""
  _, workdir, _ = trained
  out = tmp_path / 'out'
  out.mkdir()  # an empty folder may be there
  export.export(workdir, out, 'orbax')
  for which in 'target', 'context':
    run_encoder, export_encoder = (
      load.load_frozen(p, which=which) for p in (workdir, out)
    )
    assert run_encoder.fingerprint == export_encoder.fingerprint
  assert not (out / 'position_tables.safetensors').exists()
  assert load.read_weights(out, optimizer=True).optimizer is None
  assert sorted(p.name for p in out.iterdir()) == [
    'README.md',
    'checkpoints',
    'config.json',
  ]


@pytest.fixture(scope='module')
def golden():
  return dict(np.load(GOLDEN))


def test_golden_there_and_back(golden, tmp_path):
  torch = pytest.importorskip('torch')
  content = released(torch, golden)
  given = tmp_path / 'given.pth.tar'
  torch.save(content, given)
  export.export(given, tmp_path / 'ours', 'orbax', heads=4)
  export.export(tmp_path / 'ours', tmp_path / 'back.pth.tar', 'release')
  back = torch.load(tmp_path / 'back.pth.tar', weights_only=True)
  assert bits(back) == bits(content)  # the tables too
  assert set(back) == {*NAMES, 'ijepa_jax'}


def test_golden_outputs(golden, tmp_path):
  torch = pytest.importorskip('torch')
  given = tmp_path / 'given.pth.tar'
  torch.save(released(torch, golden, 'init', ('encoder', 'predictor')), given)
  export.export(given, tmp_path / 'ours', 'orbax', heads=4)
  images = parity.batch(golden, 0)['image']
  with jax.default_matmul_precision('highest'):
    actual = load.load_encoder(tmp_path / 'ours', which='context')
    tokens = actual.features(images, 'tokens', normalized=True)
  close(tokens, golden['step0/target_encoder_out'])


@pytest.fixture
def folder(tmp_path):
  """A Hugging Face folder of a context encoder, as others have them."""
  params = random_like({'encoder': weights.shapes(CONFIG, 'encoder')})
  path = tmp_path / 'given'
  huggingface.write(path, params, CONFIG, part='encoder')
  config = json.loads((path / 'config.json').read_text())
  del config['ijepa_encoder']
  (path / 'config.json').write_text(json.dumps(config))
  return path


def with_table(folder, change):
  """The folder, rewritten with another position table."""
  loaded = huggingface.read(folder)
  table = loaded.tables['encoder'] + np.float32(change)
  out = folder.parent / 'other_table'
  huggingface.write(
    out, loaded.params, loaded.config, part='encoder', table=table
  )
  return out


def test_hugging_face_there_and_back(folder, tmp_path):
  for i, path in enumerate([folder, with_table(folder, 1e-6)]):
    words = export.export(path, tmp_path / f'ours{i}', 'orbax')
    assert 'holds the context encoder: ' in words
    back = tmp_path / f'back{i}'
    words = export.export(tmp_path / f'ours{i}', back, 'huggingface')
    assert 'all 37 tensors' in words
    assert (back / WEIGHTS).read_bytes() == (path / WEIGHTS).read_bytes()
    # The encoder that there is, whichever is asked for.
    assert load.load_frozen(tmp_path / f'ours{i}').name.endswith(
      'context encoder'
    )


def test_a_trained_table(folder, tmp_path):
  """What computes the table can't have another; the others keep it."""
  path = with_table(folder, 0.1)
  with pytest.raises(UserError, match='position table is not the sin-cos'):
    export.export(path, tmp_path / 'ours', 'orbax')
  export.export(path, tmp_path / 'back', 'huggingface')
  assert (tmp_path / 'back' / WEIGHTS).read_bytes() == (
    path / WEIGHTS
  ).read_bytes()


@pytest.mark.parametrize(
  ('given', 'out', 'to', 'options', 'words'),
  [
    ('nothing', 'out', 'orbax', {}, 'There is nothing at .*nothing'),
    ('run', 'out', 'onnx', {}, "to is 'onnx': take one of orbax"),
    ('run', 'full', 'orbax', {}, 'full is there already'),
    ('run', 'file', 'huggingface', {}, 'file is there already'),
    ('run', 'empty', 'release', {}, 'empty is there already'),
    ('run', 'carded', 'release', {}, 'carded.md is there already'),
    ('run', 'gs://b/out', 'orbax', {}, 'no place on this machine'),
    ('run', 'out', 'orbax', {'which': 'target'}, 'for huggingface'),
    ('run', 'out', 'huggingface', {'which': 'best'}, "which is 'best'"),
    ('run', 'out', 'huggingface', {'optimizer': True}, 'has no place for'),
    ('run', 'out', 'orbax', {'step': 8}, 'no checkpoint 8.*there are: 7'),
    ('hf', 'out', 'orbax', {'step': 8}, 'only a training run has steps'),
    ('hf', 'out', 'orbax', {'optimizer': True}, 'no state of AdamW'),
    ('hf', 'out', 'huggingface', {'which': 'target'}, 'no target encoder'),
    ('full', 'out', 'orbax', {}, 'no training workdir'),
    ('finetuned', 'out', 'orbax', {}, 'not of a run of pre-training'),
    ('headless', 'out', 'orbax', {}, 'holds no encoder'),
    ('wider', 'out', 'orbax', {}, 'of another model.*target/.*float32'),
  ],
)
def test_refusals(given, out, to, options, words, trained, folder, tmp_path):
  _, run, state = trained
  for name in 'full/x', 'file', 'carded.md', 'empty/':
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if name[-1] == '/' else path.write_text('x')
  given = {'run': run, 'hf': folder}.get(given) or broken(
    given, run, state, tmp_path
  )
  before = sorted(tmp_path.rglob('*'))
  target = out if '://' in out else tmp_path / out
  with pytest.raises(UserError, match=words):
    export.export(given, target, to, **options)
  assert sorted(tmp_path.rglob('*')) == before


def broken(name, run, state, tmp_path):
  """Folders that are no run, or not all of one."""
  path = tmp_path / name
  config = json.loads((run / 'config.json').read_text())
  if name == 'finetuned':
    config = {'finetune': {}}
  elif name == 'wider':
    config['model']['width'] = 128
  elif name != 'headless':
    return path
  part = {'target': state.target}
  if name == 'headless':
    part = {'params': {'predictor': state.params['predictor']}}
  write_config(path, json.dumps(config))
  with checkpointer.Checkpointer(path / 'checkpoints') as checkpoints:
    checkpoints.save(1, part)
  return path


def test_context_encoder(trained, tmp_path):
  _, run, state = trained
  export.export(run, tmp_path / 'out', 'huggingface', which='context')
  loaded = huggingface.read(tmp_path / 'out')
  assert_equal(loaded.params, {'encoder': state.params['encoder']})


def test_newest_is_damaged(trained, tmp_path):
  """The step is that of what was read."""
  config, _, state = trained
  write_config(tmp_path / 'run', config.to_json_best_effort())
  with checkpointer.Checkpointer(tmp_path / 'run/checkpoints') as checkpoints:
    for step in 7, 9:
      checkpoints.save(step, state)
  (tmp_path / 'run/checkpoints/9/state/_METADATA').unlink()
  export.export(tmp_path / 'run', tmp_path / 'out', 'orbax', optimizer=True)
  assert [p.name for p in (tmp_path / 'out/checkpoints').iterdir()] == ['7']
  (tmp_path / 'run/checkpoints/7/state/_METADATA').unlink()
  with pytest.raises(
    checkpointer.CheckpointError, match=r'checkpoints \[7, 9\]'
  ):
    export.export(tmp_path / 'run', tmp_path / 'again', 'orbax')
  assert not (tmp_path / 'again').exists()
