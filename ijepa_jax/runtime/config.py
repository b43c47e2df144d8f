"""config.json: the config that a workdir was made with, read and written."""

import json

from etils import epath
from ml_collections import ConfigDict

from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files


def read_run_config(workdir) -> ConfigDict:
  """Returns the config of a pre-training run.

  Raises:
    UserError: there is none, or it is of another job.
  """
  path = files.resolve(workdir) / 'config.json'
  try:
    config = json.loads(path.read_text())
    if {'model', 'data'} <= set(config):
      return ConfigDict(config)
    reason = 'it has no model or no data'
  except (OSError, ValueError, TypeError, RecursionError) as error:
    reason = type(error).__name__
  raise UserError(
    f'{workdir} is no training workdir, its config.json cannot be read or is '
    f'not of a run of pre-training ({reason}): give the --workdir of a run, or '
    'a file that holds an I-JEPA.'
  )


def write_config(workdir, config_json: str) -> list[str]:
  """Writes config.json, whole or not at all.

  Returns:
    The differences to the one before: ['total_steps: 20, was 10'].
  """
  path = epath.Path(workdir) / 'config.json'
  new, old = json.loads(config_json), read_config(workdir)
  files.atomic_write_text(path, json.dumps(new, indent=2))
  new, old = dict(_flatten(new)), dict(_flatten(old))
  return [
    f'{key}: {value}, was {old[key]}'
    for key, value in new.items()
    if key in old and old[key] != value
  ]


def read_config(workdir) -> dict:
  """Returns what config.json holds; {} if there is none or it is damaged."""
  path = epath.Path(workdir) / 'config.json'
  try:
    config = json.loads(path.read_text())
  except (OSError, ValueError, RecursionError):
    return {}
  return config if isinstance(config, dict) else {}


def _flatten(tree: dict, prefix: str = ''):
  """Yields ('optim.peak_lr', 0.1), ..."""
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _flatten(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value
