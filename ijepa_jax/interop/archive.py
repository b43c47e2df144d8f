"""Whether a zip archive of PyTorch is whole, and honest about its names.

Nothing of it is unpacked to the disk here or by PyTorch; but PyTorch itself
looks neither at checksums nor at where a name would lead.
"""

import os
import zipfile


def check(path) -> None:
  """Reads it once, checksums and all.

  Raises:
    ValueError: it is no such archive, cut off, damaged or made to harm.
  """
  if not os.path.isfile(path):
    raise ValueError(f'There is no file {path}.')
  try:
    with zipfile.ZipFile(path) as archive:
      entries = archive.infolist()
      names = [entry.filename for entry in entries]
      if climbing := [
        n for n in names if n[:1] == '/' or '..' in n.split('/') or '\\' in n
      ]:
        raise ValueError(f'holds {climbing[0]!r}, which leads out of it')
      if len(set(names)) < len(names):
        raise ValueError('holds the same name twice')
      if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError('is compressed, which PyTorch never does')
      if (bad := archive.testzip()) is not None:
        raise zipfile.BadZipFile(f'wrong checksum of {bad}')
  except ValueError as error:
    raise ValueError(f'{path} {error}: it is no file of PyTorch.') from error
  except Exception as error:
    raise ValueError(
      f'{path} is no file of torch.save, or it is damaged or cut off '
      f'({error}): bring it here again.'
    ) from error
