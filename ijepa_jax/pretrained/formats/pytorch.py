"""Files of PyTorch: tensors and plain values, in and out.

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
from ijepa_jax.pretrained.formats import weights


def check(path) -> None:
  """Reads it once, checksums and all.

  Raises:
    UserError: it is no such archive, cut off, damaged or made to harm.
  """
  if not os.path.isfile(path):
    raise UserError(f'There is no file {path}.')
  try:
    with zipfile.ZipFile(path) as archive:
      entries = archive.infolist()
      names = [entry.filename for entry in entries]
      if climbing := [
        n for n in names if n[:1] == '/' or '..' in n.split('/') or '\\' in n
      ]:
        raise UserError(f'holds {climbing[0]!r}, which leads out of it')
      if len(set(names)) < len(names):
        raise UserError('holds the same name twice')
      if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError('is compressed, which PyTorch never does')
      if (bad := archive.testzip()) is not None:
        raise zipfile.BadZipFile(f'wrong checksum of {bad}')
  except ValueError as error:
    raise UserError(f'{path} {error}: it is no file of PyTorch.') from error
  except Exception as error:
    raise UserError(
      f'{path} is no file of torch.save, or it is damaged or cut off '
      f'({error}): bring it here again.'
    ) from error


def import_torch():
  """PyTorch.

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
  """What a file that was checked holds; its tensors stay on the disk until they
  are used.

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
      f'{path} can not be read as a file of PyTorch ({type(error).__name__}).'
    ) from error


def check_tensor(torch, tensor, what: str) -> None:
  """Whether it is one, and of the plain kind.

  Raises:
    UserError: it is not.
  """
  if (
    not isinstance(tensor, torch.Tensor)
    or tensor.layout != torch.strided
    or tensor.is_nested
    or tensor.device.type != 'cpu'
  ):
    raise UserError(f'{what} is no plain tensor.')


def check_size(tensor, what: str, path) -> None:
  """Whether so much of it is stored: a pickle may describe a tensor far larger
  than what lies behind it.

  Raises:
    UserError: it is larger than the file.
  """
  stored = min(tensor.untyped_storage().nbytes(), os.path.getsize(path))
  if tensor.numel() * tensor.element_size() > stored:
    raise UserError(f'{what} is larger than what is stored of it.')


def to_numpy(tensor, what: str, path) -> np.ndarray:
  """A tensor of the file as float32.

  Raises:
    UserError: it is larger than the file, or not all of it is finite.
  """
  check_size(tensor, what, path)
  return weights.require_finite(tensor.detach().float().numpy(), what)


def write(torch, path: pathlib.Path, content) -> None:
  """Writes a file, or nothing."""
  partial = path.with_name(path.name + '.partial')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, partial)
    os.replace(partial, path)
  except RuntimeError as error:  # PyTorch's, of a full disk among others.
    raise UserError(f'{path} could not be written: {error}') from error
  finally:
    partial.unlink(missing_ok=True)
