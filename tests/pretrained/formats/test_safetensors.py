"""The safetensors format: what a file says of itself is not believed."""

import json
import struct

import numpy as np
import pytest

from ijepa_jax.errors import UserError
from ijepa_jax.pretrained.formats import safetensors

TENSORS = {
  'bias': np.arange(4, dtype=np.float32),
  'scalar': np.float32(3).reshape(()),
  'weight': np.arange(12, dtype=np.float32).reshape(3, 4).T,
}


@pytest.fixture
def path(tmp_path):
  safetensors.write(tmp_path / 'a.safetensors', TENSORS, {'format': 'pt'})
  return tmp_path / 'a.safetensors'


def test_there_and_back(path):
  tensors, metadata = safetensors.read(path)
  assert metadata == {'format': 'pt'}
  assert tensors.keys() == TENSORS.keys()
  for name, x in TENSORS.items():
    np.testing.assert_array_equal(tensors[name], x)
  assert struct.unpack('<Q', path.read_bytes()[:8])[0] % 8 == 0


def test_their_reader(path):
  theirs = pytest.importorskip('safetensors.numpy')
  for name, x in theirs.load_file(path).items():
    np.testing.assert_array_equal(x, TENSORS[name])
  theirs.save_file(
    {k: np.array(x, order='C') for k, x in TENSORS.items()}, path
  )
  tensors, _ = safetensors.read(path)
  for name, x in TENSORS.items():
    np.testing.assert_array_equal(tensors[name], x)


def swap(**changes):
  return lambda header: header['bias'].update(changes)


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda header: header.pop('scalar'), 'gap'),
    (lambda header: header.pop('weight'), 'need'),
    (lambda header: header.update(bias=[]), 'something else'),
    (lambda header: header.update(bias={}), 'something else'),
    (lambda header: header.update(more=header['weight']), 'overlap'),
    (lambda header: header.update(__metadata__=3), '__metadata__'),
    (swap(shape=[10**12]), 'bytes long'),
    (swap(shape=[0, 10**30]), 'something else'),
    (swap(shape=[1] * 99), 'something else'),
    (swap(shape=[4.0]), 'something else'),
    (swap(shape=[True]), 'something else'),
    (swap(shape='4'), 'something else'),
    (swap(dtype='I64'), 'I64'),
    (swap(dtype=['F32']), 'something else'),
    (swap(data_offsets=[-16, 0]), 'something else'),
    (swap(data_offsets=[16, 0]), 'bytes long'),
    (swap(data_offsets=[10**9, 10**9 + 16]), 'expected'),
    (swap(data_offsets=[0]), 'something else'),
  ],
)
def test_header_that_lies(path, change, words):
  data = path.read_bytes()
  (length,) = struct.unpack('<Q', data[:8])
  header = json.loads(data[8 : 8 + length])
  change(header)
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(text)) + text + data[8 + length :])
  with pytest.raises(UserError, match=words):
    safetensors.read(path)


@pytest.mark.parametrize(
  'make',
  [
    lambda data: b'',
    lambda data: b'hello',
    lambda data: b'these are no weights, but words in a row',
    lambda data: data[:100],
    lambda data: data[:-1],
    lambda data: data + b'\0',
    lambda data: struct.pack('<Q', 2**63) + data[8:],
    lambda data: struct.pack('<Q', len(data)) + data[8:],
    lambda data: struct.pack('<Q', 8) + data[8:],
    lambda data: struct.pack('<Q', 10**6) + b'[' * 10**6,
    lambda data: struct.pack('<Q', 15) + b'{"a":{},"a":{}}',
  ],
)
def test_damaged(path, make):
  path.write_bytes(make(path.read_bytes()))
  with pytest.raises(UserError, match=r'a\.safetensors'):
    safetensors.read(path)
  with pytest.raises(UserError, match='can not be read'):
    safetensors.read(path.parent / 'nowhere')
