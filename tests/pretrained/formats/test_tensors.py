"""Safetensors files: whatever a file says falsely of itself is refused."""

import json
import struct

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from ijepa_jax.errors import UserError
from ijepa_jax.pretrained.formats import tensors

ARRAYS = {
  'bias': np.arange(4, dtype=np.float32),
  'scalar': np.array(3, np.float32),
  'weight': np.arange(12, dtype=np.float32).reshape(3, 4).T,
}


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'a.safetensors'
  tensors.write_safetensors(path, ARRAYS, {'format': 'pt'})
  return path


def test_there_and_back(path):
  """Transposed arrays too; the same arrays give the same bytes."""
  for arrays in (
    tensors.read_safetensors(path),
    safetensors_numpy.load_file(path),
  ):
    assert arrays.keys() == ARRAYS.keys()
    for name, x in ARRAYS.items():
      np.testing.assert_array_equal(arrays[name], x)
  again = path.with_name('again')
  backwards = dict(reversed(ARRAYS.items()))
  tensors.write_safetensors(again, backwards, {'format': 'pt'})
  assert again.read_bytes() == path.read_bytes()
  assert len(list(path.parent.iterdir())) == 2


def swap(**changes):
  return lambda header: header['bias'].update(changes)


@pytest.mark.parametrize(
  'change',
  [
    lambda header: header.pop('scalar'),
    lambda header: header.pop('weight'),
    lambda header: header.update(bias=[]),
    lambda header: header.update(bias={}),
    lambda header: header.update(more=header['weight']),
    lambda header: header.update(__metadata__=3),
    swap(shape=[10**12]),
    swap(shape=[0, 10**30]),
    swap(shape=[1] * 99),
    swap(shape=[4] + [1] * 99),
    swap(shape=[4.0]),
    swap(shape=[True]),
    swap(shape='4'),
    swap(dtype='I64'),
    swap(dtype=['F32']),
    swap(dtype='F8_E4M3', shape=[16]),
    swap(data_offsets=[-16, 0]),
    swap(data_offsets=[16, 0]),
    swap(data_offsets=[10**9, 10**9 + 16]),
    swap(data_offsets=[0]),
  ],
)
def test_header_that_lies(path, change):
  data = path.read_bytes()
  (length,) = struct.unpack('<Q', data[:8])
  header = json.loads(data[8 : 8 + length])
  change(header)
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(text)) + text + data[8 + length :])
  with pytest.raises(UserError, match=r'a\.safetensors is no safetensors file'):
    tensors.read_safetensors(path)


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
    tensors.read_safetensors(path)
  with pytest.raises(UserError, match='cannot be read'):
    tensors.read_safetensors(path.parent / 'nowhere')
