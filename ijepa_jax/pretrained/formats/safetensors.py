"""The safetensors format, with NumPy alone: tensors and nothing to execute.

A file is 8 bytes with the header's length, little-endian; the header, JSON of
{name: {dtype, shape, data_offsets}} and `__metadata__`, strings by strings; and
the data, where the tensors lie side by side without a gap. What a file says of
itself is checked before anything is read by it.
(https://huggingface.co/docs/safetensors)
"""

import json
import math
import os
import pathlib
import struct

import jax.numpy as jnp
import numpy as np

from ijepa_jax.errors import UserError

_DTYPES = {
  'F64': np.dtype('<f8'),
  'F32': np.dtype('<f4'),
  'F16': np.dtype('<f2'),
  'BF16': np.dtype(jnp.bfloat16),
  # No weights: counters and masks beside them.
  'BOOL': np.dtype(bool),
  **{
    f'{kind}{8 * n}': np.dtype(f'<{kind.lower()}{n}')
    for kind in 'IU'
    for n in (1, 2, 4, 8)
  },
}
_HEADER_LIMIT = 100_000_000  # bytes, as in the format's own reader


def read(path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """The tensors, which stay on the disk until they are used, and the metadata.

  Raises:
    UserError: it is not such a file, or says something untrue of itself.
  """
  path = pathlib.Path(path)
  try:
    size = path.stat().st_size
    with path.open('rb') as file:
      start = file.read(8)
      length = struct.unpack('<Q', start)[0] if len(start) == 8 else 0
      if not 2 <= length <= min(size - 8, _HEADER_LIMIT):
        raise UserError(
          f'{path} is no safetensors file, or only a part of one: its header '
          f'would be {length} bytes long, and the file has {size}.'
        )
      header = _parse(file.read(length), path)
  except OSError as error:
    raise UserError(f'{path} can not be read: {error.strerror}.') from error
  metadata = header.pop('__metadata__', {})
  if not isinstance(metadata, dict):
    raise UserError(f'{path}: its __metadata__ is not a table of strings.')
  size -= 8 + length
  places = {name: _place(path, name, e) for name, e in header.items()}
  end = 0
  for name, (_, _, begin, stop) in sorted(
    places.items(), key=lambda item: item[1][2:]
  ):
    if begin != end:
      raise UserError(
        f'{path}: {name} starts at byte {begin} of the data, where {end} is '
        'expected: tensors overlap or leave a gap.'
      )
    end = stop
  if end != size:
    raise UserError(
      f'{path}: its tensors need {end} bytes of data and there are {size}: it '
      'is damaged, or only a part of one.'
    )
  if not size:
    return {}, metadata
  data = np.memmap(path, np.uint8, 'r', offset=8 + length)
  tensors = {
    name: data[begin:stop].view(dtype).reshape(shape)
    for name, (dtype, shape, begin, stop) in places.items()
  }
  return tensors, metadata


def _parse(text: bytes, path) -> dict:
  def once(pairs):
    if len(table := dict(pairs)) != len(pairs):
      raise UserError('a name twice')
    return table

  try:
    header = json.loads(text.decode(), object_pairs_hook=once)
    if not isinstance(header, dict):
      raise UserError('no table')
  except (ValueError, RecursionError) as error:
    raise UserError(
      f'{path} is no safetensors file: its header is not JSON as it should be.'
    ) from error
  return header


def _place(path, name: str, entry):
  """(dtype, shape, first byte, byte after the last) of one tensor."""

  try:
    kind, shape, (begin, stop) = (
      entry[k] for k in ('dtype', 'shape', 'data_offsets')
    )
    numbers = [*shape, begin, stop]
    if {type(n) for n in numbers} != {int} or min(numbers) < 0:
      raise UserError('not natural numbers')
    # So that no size is larger than the file.
    if not all(shape) or len(shape) > 8 or not isinstance(kind, str):
      raise UserError('no shape of a weight')
  except (TypeError, KeyError, ValueError) as error:
    raise UserError(
      f'{path}: the header says of {name} something else than dtype, shape and '
      'data_offsets.'
    ) from error
  if kind not in _DTYPES:
    raise UserError(
      f'{path}: {name} is of the type {kind!r}: only {", ".join(_DTYPES)} can '
      'be read here.'
    )
  dtype = _DTYPES[kind]
  if stop - begin != math.prod(shape) * dtype.itemsize:
    raise UserError(
      f'{path}: {name} of shape {shape} and type {kind} can not be '
      f'{stop - begin} bytes long.'
    )
  return dtype, tuple(shape), begin, stop


def write(path, tensors: dict[str, np.ndarray], metadata: dict[str, str]):
  """Writes float32 tensors; the same tensors give the same bytes."""
  header, end = {'__metadata__': metadata}, 0
  for name in sorted(tensors):
    shape = tensors[name].shape
    begin, end = end, end + 4 * math.prod(shape)
    header[name] = dict(dtype='F32', shape=shape, data_offsets=(begin, end))
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # Readers map the data, aligned.
  with open(path, 'wb') as file:
    file.write(struct.pack('<Q', len(text)) + text)
    for name in sorted(tensors):
      file.write(np.ascontiguousarray(tensors[name], '<f4').data)
    file.flush()
    os.fsync(file.fileno())
