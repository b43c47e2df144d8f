"""PyTorch's files: reads tensors and plain values, finds networks, writes.

Such a file is a zip archive around a pickle. Only tensors and plain values are
taken from it (`weights_only`), so nothing in it is ever executed, and nothing
is unpacked to the disk; but PyTorch itself looks neither at checksums nor at
where a name would lead. It is imported only when a file is read or written.
"""

import os
import pathlib
import pickle
import zipfile

import numpy as np

from ijepa_jax.errors import UserError
from ijepa_jax.pretrained.formats import tensors, weights
from ijepa_jax.runtime import files

# A tensor that every network of this kind has.
_ANCHORS = {
  'encoder': 'patch_embed.proj.weight',
  'predictor': 'predictor_embed.weight',
}
# Where others keep one table of everything; and their names of the encoders.
_ONE_TABLE = 'state_dict', 'model_state_dict', 'model'
_ENCODERS = {
  'encoder': 'encoder',
  'context_encoder': 'encoder',
  'target_encoder': 'target',
}


def check(path) -> None:
  """Reads a file once, checksums and all.

  Raises:
    UserError: it is no such archive, cut off, damaged or made to harm.
  """
  if not os.path.isfile(path):
    raise UserError(f'There is no file {path}.')
  try:
    with zipfile.ZipFile(path) as archive:
      fault = _fault(archive)
      if not fault and (bad := archive.testzip()) is not None:
        raise zipfile.BadZipFile(f'wrong checksum of {bad}')
  except Exception as error:  # A hostile archive can fail in any way.
    raise UserError(
      f'{path} is no file of torch.save, or it is damaged or cut off '
      f'({error}): bring it here again.'
    ) from error
  if fault:
    raise UserError(f'{path} {fault}: it is no file of PyTorch.')


def _fault(archive: zipfile.ZipFile) -> str:
  """Returns what PyTorch's own archives never have, in words, or ''."""
  entries = archive.infolist()
  names = [entry.filename for entry in entries]
  for name in names:
    if name[:1] == '/' or '..' in name.split('/') or '\\' in name:
      return f'holds {name!r}, which leads out of it'
  if len(set(names)) < len(names):
    return 'holds the same name twice'
  if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
    return 'is compressed, which PyTorch never does'
  return ''


def import_torch():
  """Returns the module torch.

  Raises:
    UserError: it is not installed.
  """
  try:
    import torch
  except ImportError as error:
    raise UserError(
      "Files of PyTorch need PyTorch: pip install 'ijepa_jax[torch]'."
    ) from error
  return torch


def read(torch, path):
  """Returns the content of a checked file; tensors stay on the disk until used.

  Raises:
    UserError: it holds more than tensors and plain values, or is damaged.
  """
  try:
    return torch.load(
      os.fspath(path), map_location='cpu', weights_only=True, mmap=True
    )
  except MemoryError:
    raise
  except pickle.UnpicklingError as error:
    raise UserError(
      f'{path} holds more than tensors and plain values: what it holds would '
      'have to be executed, and never is here.'
    ) from error
  except Exception as error:
    # A hostile pickle can make its reader fail in any way.
    raise UserError(
      f'{path} cannot be read as a file of PyTorch ({type(error).__name__}).'
    ) from error


def check_tensor(torch, tensor, name: str) -> None:
  """Refuses what is no plain tensor.

  Raises:
    UserError: it is none.
  """
  if (
    not isinstance(tensor, torch.Tensor)
    or tensor.layout != torch.strided
    or tensor.is_nested
    or tensor.device.type != 'cpu'
  ):
    raise UserError(f'{name} is no plain tensor.')


def check_size(tensor, name: str, path) -> None:
  """Refuses a tensor that its pickle says is larger than what is stored of it.

  Raises:
    UserError: it is larger than its storage, or than the file.
  """
  stored = min(tensor.untyped_storage().nbytes(), os.path.getsize(path))
  if tensor.numel() * tensor.element_size() > stored:
    raise UserError(f'{name} is larger than what is stored of it.')


def to_numpy(tensor, name: str, path) -> np.ndarray:
  """Returns a tensor of the file as float32.

  Raises:
    UserError: it is larger than the file, or not all of it is finite.
  """
  check_size(tensor, name, path)
  return tensors.require_finite(tensor.detach().float().numpy(), name)


def from_numpy(torch, array: np.ndarray):
  """Returns a float32 copy as a tensor: PyTorch wants to write to its own."""
  return torch.from_numpy(np.array(array, np.float32, order='C'))


def write(torch, path: pathlib.Path, content) -> None:
  """Writes a file, or nothing.

  Raises:
    UserError: the disk is full, or it can't be written for another reason.
  """
  try:
    with files.atomic_write(path) as temporary:
      torch.save(content, temporary)
  except RuntimeError as error:  # PyTorch's, of a full disk among others.
    raise UserError(f'{path} could not be written: {error}') from error


def title_of(path, part: str) -> str:
  """Names one network of a file in sentences."""
  return f"{path}'s {weights.PARTS[part].release_key}"


def find_networks(torch, file: dict, path) -> tuple[dict, set, list[str]]:
  """Finds the networks of a file of I-JEPA.

  Args:
    torch: the module.
    file: its content, see `read`.
    path: of the file, for sentences.

  Returns:
    {part: {its own name: tensor}}, the file's keys that these are from, and
    notes.

  Raises:
    UserError: networks can't be told apart, or hold something else than
      tensors.
  """
  stored = {
    name: file[part.release_key]
    for name, part in weights.PARTS.items()
    if file.get(part.release_key) is not None
  }
  used, notes, names = set(), [], {}
  for part, table in stored.items():
    title = title_of(path, part)
    if not isinstance(table, dict) or not all(
      isinstance(k, str) for k in table
    ):
      raise UserError(f'{title} is not a table of tensors.')
    used.add(weights.PARTS[part].release_key)
    anchor = _ANCHORS[weights.PARTS[part].network]
    names[part] = tensors.only_network(table, anchor, title)
    notes += tensors.unused_note(table, names[part].values())
  if not stored:
    used = {k for k in _ONE_TABLE if isinstance(file.get(k), dict)}
    table = file[min(used)] if len(used) == 1 else file
    table = {k: x for k, x in table.items() if isinstance(x, torch.Tensor)}
    names = _split_one_table(table, path, notes)
    stored = dict.fromkeys(names, table)
    if names:
      taken = [name for own in names.values() for name in own.values()]
      notes += tensors.unused_note(table, taken)
      used = used if len(used) == 1 else set(table)
  networks = {}
  for part, own in names.items():
    networks[part] = {k: stored[part][name] for k, name in own.items()}
    for name, tensor in networks[part].items():
      check_tensor(torch, tensor, f'{title_of(path, part)}: {name}')
  return networks, used, notes


def _split_one_table(table: dict, path, notes: list[str]) -> dict[str, dict]:
  """Returns {part: {its own name: name in the table}} of one table of all."""
  prefixes, names = {}, {}
  for kind, anchor in _ANCHORS.items():
    try:
      networks = tensors.networks(table, anchor)
    except UserError as error:
      raise UserError(f'{path} {error}') from error
    for prefix, own in networks.items():
      attribute = prefix.removesuffix('.').rpartition('.')[2]
      part = 'predictor' if kind == 'predictor' else _ENCODERS.get(attribute)
      prefixes.setdefault(part, []).append(prefix)
      names[part] = tensors.without_heads(own)
  if prefixes.keys() == {None} and len(prefixes[None]) == 1:
    notes.append(
      'It does not say which of the two encoders it holds: it is taken for the '
      'context encoder.'
    )
    return {'encoder': names[None]}
  if None in prefixes or any(len(group) > 1 for group in prefixes.values()):
    every = sorted(prefix for group in prefixes.values() for prefix in group)
    raise UserError(
      f'{path} holds networks whose names begin with '
      f'{", ".join(map(repr, every))}: which are the context and the target '
      'encoder cannot be known, so save them under the keys encoder and '
      'target_encoder.'
    )
  return names
