"""Names before a network's own, and heads beside it: said, and left."""

import jax
import numpy as np
import pytest

from benchmarks import parity
from ijepa_jax.errors import UserError
from ijepa_jax.pretrained.formats import (
  huggingface,
  release,
  release_names,
)
from tests.methods.test_parity import GOLDEN
from tests.pretrained.formats.test_huggingface import (
  CONFIG,
  assert_equal,
  store,
  stored,
)
from tests.pretrained.formats.test_release import NAMES, released


def saved(torch, tmp_path, content):
  torch.save(content, tmp_path / 'other.pth.tar')
  return tmp_path / 'other.pth.tar'


@pytest.fixture(scope='module')
def torch():
  return pytest.importorskip('torch')


@pytest.fixture(scope='module')
def content(torch):
  return released(torch, dict(np.load(GOLDEN)))


@pytest.fixture(scope='module')
def params():
  golden = dict(np.load(GOLDEN))
  target = parity.subtree(golden, 'final/target_encoder')
  return {'target': release_names.from_release(target, 'encoder')}


@pytest.fixture
def folder(params, tmp_path):
  huggingface.write(tmp_path / 'hf', params, CONFIG)
  return tmp_path / 'hf'


def kept_as(folder, name='{}', **more):
  """The tensors under other names, and others beside them."""
  arrays = {name.format(k): x for k, x in stored(folder).items()}
  store(folder, arrays | more)


@pytest.mark.parametrize(
  'name',
  [
    'ijepa.{}',
    'model.{}',
    'backbone.{}',
    'encoder.{}',
    'module.{}',
    '_orig_mod.{}',
    'module._orig_mod.model.ijepa.{}',
    '{}',
  ],
)
def test_wrapped(params, folder, name):
  """Names before the encoder's own and heads beside it: said, and left."""
  ones = np.ones((7, 32), np.float32)
  more = {'classifier.weight': ones, 'classifier.bias': ones[:, 0]}
  kept_as(folder, name, **more)
  loaded = huggingface.read(folder)
  assert_equal(loaded.params, params)
  assert loaded.notes == ['Passed over: classifier.bias, classifier.weight.']


def test_compiled_inside(params, folder):
  arrays = {
    k.replace('encoder.layer', 'encoder._orig_mod.layer'): x
    for k, x in stored(folder).items()
  }
  store(folder, arrays)
  assert_equal(huggingface.read(folder).params, params)


def test_two_encoders_are_refused(folder):
  both = {
    f'{word}.{k}': x
    for k, x in stored(folder).items()
    for word in ('student', 'teacher')
  }
  store(folder, both)
  with pytest.raises(UserError, match=r"2 encoders.*'student\.', 'teacher\.'"):
    huggingface.read(folder)


@pytest.mark.parametrize(
  'word', ['', 'module._orig_mod.', 'module.backbone.', '_orig_mod.']
)
def test_wrapped_in_a_release(torch, content, tmp_path, word):
  """Whatever stands before the names, and heads beside them."""
  plain = release.read(saved(torch, tmp_path, content), heads=4)
  other = {
    part: {
      word + k.removeprefix('module.'): x for k, x in content[part].items()
    }
    for part in NAMES
  }
  other['target_encoder'][f'{word}head.weight'] = torch.ones(3, 32)
  loaded = release.read(saved(torch, tmp_path, other), heads=4)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, plain.params)
  assert f'Passed over: {word}head.weight.' in loaded.notes


@pytest.mark.parametrize('table', ['state_dict', 'model', None])
def test_one_table_of_everything(torch, content, tmp_path, table):
  """As Lightning keeps it: the attributes' names before those of the layers."""
  plain = release.read(saved(torch, tmp_path, content), heads=4)
  flat = {
    f'{name}.{k.removeprefix("module.")}': x
    for name in NAMES
    for k, x in content[name].items()
  }
  flat['probe.weight'] = torch.ones(3, 32)
  file = {table: flat, 'epoch': 3} if table else flat
  loaded = release.read(saved(torch, tmp_path, file), heads=4)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, plain.params)
  assert 'Passed over: probe.weight.' in loaded.notes
  assert ('Passed over: epoch.' in loaded.notes) == bool(table)


def test_which_encoder_is_not_said(torch, content, tmp_path):
  encoder = {
    k.removeprefix('module.'): x for k, x in content['encoder'].items()
  }
  loaded = release.read(saved(torch, tmp_path, encoder), heads=4)
  assert loaded.params.keys() == {'encoder'}
  assert 'does not say which of the two' in loaded.notes[0]
  both = {f'{w}.{k}': x for w in ('a', 'b') for k, x in encoder.items()}
  with pytest.raises(UserError, match=r"begin with 'a\.', 'b\.'"):
    release.read(saved(torch, tmp_path, {'state_dict': both}), heads=4)
