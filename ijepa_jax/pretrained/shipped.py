"""Small trained models that come with the package, by name.

    encoder = ijepa_jax.load_encoder('tiny-scenes')

Wherever a path to weights is asked for, a name does too. Each is a folder that
`python -m ijepa_jax.convert --to=orbax` made, with its model card, README.md:
what it was trained on, how good it is, and the command that trained it.
"""

import os

from etils import epath

from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files

FOLDER = epath.Path(__file__).parent / 'shipped'


def pretrained_names() -> list[str]:
  """Returns the names of the models that `load_encoder` takes, sorted."""
  folders = (path.parent for path in FOLDER.glob('*/config.json'))
  return sorted(folder.name for folder in folders)


def locate(path) -> epath.Path:
  """Returns the absolute path of weights, of a user or of the package.

  What lies at the path itself goes before a model of that name.

  Raises:
    UserError: see files.resolve.
  """
  resolved = files.resolve(path)
  if os.fspath(path) in pretrained_names() and not resolved.exists():
    return FOLDER / os.fspath(path)
  return resolved


def nothing_at(path) -> str:
  """Returns the sentence of a path that is empty."""
  names = ', '.join(pretrained_names())
  return f'There is nothing at {path}. The package itself has {names}.'


def places(init_from: str, workdir: str, kind: str) -> tuple:
  """Returns the path that a job reads, and the folder that it writes.

  Args:
    init_from: of the weights.
    workdir: of the results; '': <init_from>/<kind> of a workdir or a folder,
      <init_from>.<kind> beside a file, and in the current folder for a model
      that comes with the package.
    kind: of results, such as 'evals'.

  Raises:
    UserError: there is nothing at `init_from`.
  """
  if not init_from:
    raise UserError('init_from is empty: set it to the --workdir of a run.')
  path = locate(init_from)
  if not path.exists():
    raise UserError(nothing_at(f'init_from = {init_from}'))
  if workdir:
    return path, files.resolve(workdir)
  if path.parent == FOLDER:
    return path, files.resolve(f'{path.name}.{kind}')
  beside = path.parent / f'{path.name}.{kind}'
  return path, path / kind if path.is_dir() else beside
