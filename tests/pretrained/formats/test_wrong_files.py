"""Files that are no I-JEPA, or damaged, or meant to harm: each a sentence."""

import os
import pickle
import zipfile

import numpy as np
import pytest

from ijepa_jax.errors import UserError
from ijepa_jax.pretrained.formats import pytorch, release
from tests.methods.test_parity import GOLDEN
from tests.pretrained.formats.test_release import altered, released


@pytest.fixture(scope='module')
def torch():
  return pytest.importorskip('torch')


@pytest.fixture(scope='module')
def content(torch):
  return released(torch, dict(np.load(GOLDEN)))


@pytest.fixture
def save(torch, tmp_path):
  def write(content):
    torch.save(content, tmp_path / 'other.pth.tar')
    return tmp_path / 'other.pth.tar'

  return write


@pytest.fixture
def path(content, save):
  return save(content)


def repack(path, out, change):
  """The archive with `change(name, data)` -> [(name, data)] applied."""
  with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, 'w') as new:
    for name in old.namelist():
      for entry in change(name, old.read(name)):
        new.writestr(*entry)
  return out


MISFITS = {
  'missing': (dict(norm__bias=None), r'target_encoder does.*lacks norm\.bias'),
  'left over': (dict(cls_token=lambda _: 0), r'cls_token is no plain tensor'),
  'block': (dict(blocks__1__attn__qkv__bias=None), r'blocks\.1\.attn\.qkv'),
  'no patches': (dict(patch_embed__proj__weight=None), r'patch_embed'),
  'no table': (dict(pos_embed=None), 'no pos_embed'),
  'shape': (dict(norm__bias=lambda x: x[:5].clone()), r'\[5\] instead of'),
  'extra': (dict(cls_token=lambda _: _zeros()), r'no place for: cls_token'),
  'integers': (dict(norm__bias=lambda x: x.int()), 'int32'),
  'nan': (dict(norm__bias=lambda x: x / 0), r'norm\.bias.*not finite'),
  'expanded': (
    dict(norm__bias=lambda x: x[:1].clone().expand(32)),
    'larger than what is stored',
  ),
}


def _zeros():
  import torch

  return torch.zeros(1, 1, 32)


@pytest.mark.parametrize('case', MISFITS)
def test_tensors_that_do_not_fit(content, save, case):
  changes, words = MISFITS[case]
  with pytest.raises(UserError, match=words):
    release.read(save(altered(content, 'target_encoder', **changes)), heads=4)


def test_other_models(torch, content, save):
  resnet = {'conv1.weight': torch.zeros(64, 3, 7, 7), 'fc.bias': torch.zeros(9)}
  for file, words in (
    (resnet, 'neither an encoder.*conv1.weight, fc.bias'),
    ({'encoder': resnet}, 'no I-JEPA encoder'),
    ({'target_encoder': torch.zeros(3)}, 'not a table of tensors'),
    ({'encoder': {1: torch.zeros(3)}}, 'not a table of tensors'),
    ({}, 'nothing'),
    ([1, 2], 'not a table of networks'),
    (torch.zeros(3), 'not a table of networks'),
    (content | {'predictor': {}, 'ijepa_jax': {'heads': 4}}, 'none of I-JEPA'),
    (content | {'ijepa_jax': 3}, 'not a table of networks'),
    (content | {'ijepa_jax': {'heads': 'four'}}, 'does not fit'),
    ({'encoder': {'x': torch.zeros(3).to_sparse()}}, 'x is no plain tensor'),
    (content | {'ijepa_jax': {'heads': -4}}, 'heads is -4'),
    (content | {'ijepa_jax': {'heads': 4, 'depth': 3}}, 'says of itself'),
    (
      content | {'ijepa_jax': {'heads': 4, 'image_size': [-48, -48]}},
      'image_size is -48',
    ),
    (
      content | {'ijepa_jax': {'heads': 4, 'image_size': [8, 8 * 10**9]}},
      'pos_embed',
    ),
  ):
    with pytest.raises(UserError, match=words):
      release.read(save(file))
  with pytest.raises(UserError, match='give heads='):
    release.read(save(content))
  with pytest.raises(UserError, match='5 heads'):
    release.read(save(content), heads=5)
  # Where the table, of no grid's sin-cos and of no square, does not tell.
  for part in 'encoder', 'target_encoder':
    content = altered(content, part, pos_embed=lambda x: x[:, :35] + 1)
  with pytest.raises(UserError, match='give image_size='):
    release.read(save(content), heads=4)
  with pytest.raises(UserError, match='pos_embed'):
    release.read(save(content), heads=4, image_size=(48, 56))


class Payload:
  """Unpickled, it would write a file."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return os.mkdir, (self.path,)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_payloads_are_not_executed(torch, content, path, save, tmp_path):
  harm = tmp_path / 'harm'
  swapped = repack(
    path,
    tmp_path / 'swapped.pth.tar',
    lambda name, data: [
      (name, pickle.dumps(Payload(harm)) if name.endswith('.pkl') else data)
    ],
  )
  files = [save(content | {'epoch': Payload(harm)})]
  plain = tmp_path / 'plain.pkl'
  plain.write_bytes(pickle.dumps(Payload(harm)))
  legacy = tmp_path / 'legacy.pth.tar'
  torch.save(
    {'encoder': Payload(harm)}, legacy, _use_new_zipfile_serialization=False
  )
  for file in *files, plain, swapped, legacy:
    with pytest.raises(UserError, match=file.name):
      release.read(file, heads=4)
    assert not harm.exists()
  with pytest.raises(UserError, match='executed, and never is'):
    release.read(files[0], heads=4)
  # It would have: the test can fail.
  torch.load(files[0], weights_only=False)
  assert harm.exists()


def test_damaged(path, tmp_path):
  data = path.read_bytes()
  bad = tmp_path / 'bad.pth.tar'
  middle = bytearray(data)
  middle[len(data) // 2] ^= 1
  for wrong in (
    b'',
    b'words in a row',
    data[:100],
    data[: len(data) // 2],
    data[:-1],
    data[len(data) // 2 :],
    bytes(middle),
  ):
    bad.write_bytes(wrong)
    with pytest.raises(UserError, match=r'bad\.pth\.tar'):
      release.read(bad, heads=4)
  with pytest.raises(UserError, match='no file'):
    release.read(tmp_path / 'nowhere', heads=4)
  with pytest.raises(UserError, match='no file'):
    release.read(tmp_path, heads=4)


def test_lost_and_short_members(path, tmp_path):
  """Archives in order, whose tensors are not all there."""
  for i, change in enumerate(
    (
      lambda name, data: [] if name.endswith('data/5') else [(name, data)],
      lambda name, data: [(name, data[:4] if '/data/' in name else data)],
      lambda name, data: [] if name.endswith('.pkl') else [(name, data)],
    )
  ):
    bad = repack(path, tmp_path / f'bad{i}.pth.tar', change)
    with pytest.raises(UserError, match='bad'):
      release.read(bad, heads=4)


@pytest.mark.parametrize(
  'name', ['../escaped', '/escaped', 'a/../../escaped', 'a\\..\\escaped']
)
def test_names_that_climb(tmp_path, name):
  """Without PyTorch: it is not even asked."""
  path = tmp_path / 'in/a.pth.tar'
  path.parent.mkdir()
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('a/data.pkl', b'')
    file.writestr(name, b'x')
  with pytest.raises(UserError, match='leads out of it'):
    pytorch.check(path)
  assert [p.name for p in tmp_path.rglob('*')] == ['in', 'a.pth.tar']


def test_odd_archives(tmp_path):
  path = tmp_path / 'a.pth.tar'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
    file.writestr('a/data.pkl', bytes(10**6))
  with pytest.raises(UserError, match='compressed'):
    pytorch.check(path)
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('a/b', b'x')
    with pytest.warns(UserWarning, match='Duplicate'):
      file.writestr('a/b', b'y')
  with pytest.raises(UserError, match='twice'):
    pytorch.check(path)
