"""A model handed on: every bit arrives, everywhere, or nothing does."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import parity
from configs import base, tiny
from ijepa_jax.convert import export, verify
from ijepa_jax.errors import UserError
from ijepa_jax.models import positions, vit
from ijepa_jax.pretrained import anything, image_encoder, load
from ijepa_jax.pretrained.formats import huggingface, orbax, weights
from ijepa_jax.runtime import sharding
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.runtime.config import write_config
from ijepa_jax.train import compile
from ijepa_jax.train.run import make_run
from tests.close import close
from tests.methods.test_parity import GOLDEN
from tests.pretrained.formats.test_huggingface import GIVEN
from tests.pretrained.formats.test_release import NAMES, bits, released

WEIGHTS = 'model.safetensors'


def assert_equal(a, b):
  """Structure, shapes, values."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def random_like(tree, seed=0):
  # Repeated, so that it costs little; nothing has this prime's length.
  some = np.random.default_rng(seed).standard_normal(65_537, np.float32)
  return jax.tree.map(lambda x: np.resize(some, x.shape), tree)


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
      params = load.load(out, mesh=mesh).params
      for x in jax.tree.leaves(params):
        assert len(x.sharding.device_set) == mesh.size
      assert_equal(jax.device_get(params), tree['target'])
  whole = anything.read(tmp_path / 'orbax8')
  assert_equal(orbax.nested(whole.params), tree)
  assert whole.config['heads'] == vit.SIZES[size]['heads']


@pytest.fixture(scope='module')
def trained(tmp_path_factory, cpus):
  """(config, workdir, state): a run of 7 steps, its moments not zero."""
  c = tiny.get_config()
  c.model.depth, c.batch_size = 2, 16
  c.optim.clip_norm = 1.0  # which changes what the optimiser's state is made of
  c.init_from = '/private/of/mine/first'
  c.data.path = '/private/images'
  path = tmp_path_factory.mktemp('trained')
  abstract, _ = compile.abstract_state(make_run(c, open_images=False))

  def value(x):
    if x.dtype == np.int32:
      return np.asarray(7, np.int32)
    return np.abs(random_like(x, sum(x.shape)))

  state = jax.device_put(jax.tree.map(value, abstract), cpus[0])
  write_config(path, c.to_json_best_effort())
  with checkpointer.Checkpointer(path / 'checkpoints') as checkpoints:
    checkpoints.save(7, state)
  return c, path, jax.device_get(state)


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
    found, step = restored(config, out, devices)
    assert step == 7
    assert_equal(found, state)
  before, after = (
    json.loads((p / 'config.json').read_text()) for p in (workdir, out)
  )
  assert before == after
  # Whoever hands it on should know what it tells.
  assert 'kept whole, says path = /private/images.' in caplog.text
  assert 'init_from = /private/of/mine/first.' in caplog.text
  assert '/private' not in (out / 'README.md').read_text()


def test_the_same_by_way_of_torch(trained, cpus, tmp_path):
  pytest.importorskip('torch')
  config, workdir, state = trained
  out = tmp_path / 'a.pth.tar'
  export.export(workdir, out, 'release', optimizer=True)
  export.export(out, tmp_path / 'back', 'orbax', optimizer=True)
  unclipped = config.copy_and_resolve_references()
  unclipped.optim.clip_norm = 0.0  # what a file can't say
  found, step = restored(unclipped, tmp_path / 'back', cpus[:1])
  assert step == 7
  assert_equal(jax.tree.leaves(found), jax.tree.leaves(state))


def test_jobs_take_an_export_for_the_run(trained, tmp_path):
  """Same encoder, same features kept: the same fingerprint."""
  _, workdir, _ = trained
  out = tmp_path / 'out'
  out.mkdir()  # an empty folder may be there
  export.export(workdir, out, 'orbax')
  for which in 'target', 'context':
    ours, theirs = (load.load(p, which=which) for p in (workdir, out))
    assert ours.fingerprint == theirs.fingerprint
  assert not (out / 'position_tables.safetensors').exists()
  assert anything.read(out, optimizer=True).optimizer is None
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
    found = image_encoder.load_encoder(tmp_path / 'ours', which='context')
    tokens = found.features(images, 'tokens', normalized=True)
  close(tokens, golden['step0/target_encoder_out'])


@pytest.fixture
def folder(tmp_path):
  """A Hugging Face folder of a context encoder, as others have them."""
  params = random_like({'encoder': weights.shapes(GIVEN, 'encoder')})
  path = tmp_path / 'given'
  huggingface.write(path, params, GIVEN, which='encoder')
  said = json.loads((path / 'config.json').read_text())
  del said['ijepa_encoder']
  (path / 'config.json').write_text(json.dumps(said))
  return path


def with_table(folder, change):
  """The folder, rewritten with another position table."""
  loaded = huggingface.read(folder)
  table = loaded.tables['encoder'] + np.float32(change)
  out = folder.parent / 'other_table'
  huggingface.write(
    out, loaded.params, loaded.config, which='encoder', table=table
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
    assert load.load(tmp_path / f'ours{i}').name.endswith('context encoder')


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
  said = json.loads((run / 'config.json').read_text())
  if name == 'finetuned':
    said = {'finetune': {}}
  elif name == 'wider':
    said['model']['width'] = 128
  elif name != 'headless':
    return path
  part = {'target': state.target}
  if name == 'headless':
    part = {'params': {'predictor': state.params['predictor']}}
  write_config(path, json.dumps(said))
  with checkpointer.Checkpointer(path / 'checkpoints') as checkpoints:
    checkpoints.save(1, part)
  return path


def test_damage_is_seen(trained, tmp_path, monkeypatch):
  """A bit, a tensor, a size: told by name, and nothing is left."""
  _, run, _ = trained
  write = huggingface.write

  def altered(change):
    def wrong(path, params, config, **options):
      tree = jax.tree.map(np.array, params['target'])
      table = positions.sincos_table((6, 6), 64)
      config = dict(config)
      change(tree, table, config)
      options |= {'table': table}
      write(path, {'target': tree}, config, **options)

    return wrong

  def bit(tree, table, config):
    tree['blocks']['fc1']['kernel'].view(np.uint32)[1, 2, 3] ^= 1

  def zero(tree, table, config):
    table[:] = 0

  def heads(tree, table, config):
    config['heads'] = 4

  def blocks(tree, table, config):
    config['depth'] = 1
    tree['blocks'] = jax.tree.map(lambda x: x[:1], tree['blocks'])

  for change, words in (
    (bit, r'encoder.layer.1.intermediate.dense.weight differ'),
    (zero, 'embeddings.position_embeddings differ'),
    (heads, 'says heads = 4, and what was read 2'),
    (blocks, 'says depth = 1'),
  ):
    monkeypatch.setattr(huggingface, 'write', altered(change))
    with pytest.raises(UserError, match=words):
      export.export(run, tmp_path / 'out', 'huggingface')
    assert not list(tmp_path.iterdir())


def test_a_missing_tensor_is_named(trained, tmp_path, monkeypatch):
  _, run, _ = trained
  write = orbax.write

  def without(path, loaded, config, step):
    params = {k: v for k, v in loaded.params.items() if k != 'predictor'}
    write(path, loaded._replace(params=params), config, step)

  monkeypatch.setattr(orbax, 'write', without)
  with pytest.raises(UserError, match='predictor_width'):
    export.export(run, tmp_path / 'out', 'orbax')
  monkeypatch.setattr(verify, 'verify_sizes', lambda *_: None)
  with pytest.raises(
    UserError, match=r'What was written .* lacks params/predictor/.* more'
  ):
    export.export(run, tmp_path / 'out', 'orbax')
  assert not list(tmp_path.iterdir())


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


def test_command_line(small_run, tmp_path):
  """As a user would: one sentence, and an exit code."""

  def run(*arguments):
    return subprocess.run(
      [sys.executable, '-m', 'ijepa_jax.convert', *map(str, arguments)],
      capture_output=True,
      text=True,
      cwd=pathlib.Path(__file__).parents[2],
    )

  out = tmp_path / 'out'
  found = run(small_run, out, '--to=huggingface')
  assert found.returncode == 0, found.stderr
  assert found.stdout == (
    f'{out} holds the target encoder: 37 tensors, 0.1 million parameters, '
    f'{sum(p.stat().st_size for p in out.iterdir() if p.suffix != ".md"):,} '
    'bytes; all 37 tensors read back bit-equal. Its model card is '
    f'{out / "README.md"}.\n'
  )
  found = run(small_run, out, '--to=orbax')
  assert (found.returncode, found.stdout) == (1, '')
  assert found.stderr == f'{out} is there already: take another name.\n'
  found = run(small_run, '--to=orbax')
  assert found.returncode == 1
  assert found.stderr.startswith('Say what, where and how: python -m')
  found = run(small_run, out, '--to=onnx')
  assert found.returncode == 1
  assert 'onnx' in found.stderr
  assert 'Traceback' not in found.stderr


ODD = [
  '!x] {y}',
  'ünï 日本',
  '50%#1',
  "it's \n two",
  '$HOME ~',
]


@pytest.mark.parametrize('name', ODD)
def test_names_of_folders(small_run, tmp_path, monkeypatch, name):
  """Any name, absolute, from here and below ~, of what is read and written."""
  given = tmp_path / name / 'run'
  given.parent.mkdir()
  given.symlink_to(small_run)
  out = tmp_path / name / 'out'
  assert 'bit-equal' in export.export(given, f'{out}/', 'orbax')
  assert_equal(anything.read(out).params, anything.read(small_run).params)
  assert sorted(p.name for p in (tmp_path / name).iterdir()) == ['out', 'run']
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path / name))
  for path in f'{name}/out', '~/out', '~/run/':
    assert anything.kind(path) is orbax.read
  export.export('~/out', '~/hf', 'huggingface')
  assert (out.parent / 'hf/model.safetensors').exists()
  assert not (tmp_path / '~').exists()


@pytest.mark.parametrize('name', ['lr[1e-3]', 'a*b?', 'back\\slash', b'\xff'])
def test_names_that_checkpoints_can_not_have(small_run, tmp_path, name):
  name = os.fsdecode(name)
  with pytest.raises(UserError, match='checkpoints can not be saved'):
    export.export(small_run, tmp_path / name, 'orbax')
  assert not list(tmp_path.iterdir())
  export.export(small_run, tmp_path / name, 'huggingface')
  assert (tmp_path / name / WEIGHTS).exists()


def test_into_a_link(small_run, tmp_path):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'link').symlink_to('empty')
  export.export(small_run, tmp_path / 'link', 'huggingface')
  assert (tmp_path / 'link').is_symlink()
  assert (tmp_path / 'empty' / WEIGHTS).exists()


def test_two_at_once(small_run, tmp_path, monkeypatch):
  """The second says that the first is at it; what the first left is whole."""
  out, write = tmp_path / 'out', export._write

  def both(*args):
    with pytest.raises(UserError, match='writes to'):
      export.export(small_run, out, 'huggingface')
    write(*args)

  monkeypatch.setattr(export, '_write', both)
  export.export(small_run, out, 'huggingface')
  assert_equal(
    anything.read(out).params['target'],
    anything.read(small_run).params['target'],
  )
  assert [p.name for p in tmp_path.iterdir()] == ['out']
  # What a killed process leaves holds nobody up.
  (tmp_path / '.again.lock').touch()
  monkeypatch.setattr(export, '_write', write)
  export.export(small_run, tmp_path / 'again', 'huggingface')


def test_a_run_that_trains_meanwhile(small_run, tmp_path, monkeypatch):
  """Its checkpoint goes while it is read: the newer one is taken."""
  run = tmp_path / 'run'
  shutil.copytree(small_run, run)
  read = checkpointer.Checkpointer.read

  def trained(self, part, step=None):
    old = run / 'checkpoints/1'
    if old.exists():
      shutil.copytree(old, run / 'checkpoints/2')
      shutil.rmtree(old)
    return read(self, part, step)

  monkeypatch.setattr(checkpointer.Checkpointer, 'read', trained)

  def gone(self, step=None, names=checkpointer.Checkpointer._select_steps):
    if (run / 'checkpoints/1').exists():
      return names(self, step)
    found = names(self, None)
    if not seen:  # as it was listed before it went
      seen.append(1)
      return [1]
    return found if step is None else [step]

  seen = []
  monkeypatch.setattr(checkpointer.Checkpointer, '_select_steps', gone)
  loaded, step = orbax.read(run)
  assert step == 2
  assert_equal(loaded.params, anything.read(small_run).params)
