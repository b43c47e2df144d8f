"""The task of an evaluation that names none: the images of the run itself."""

import os

from absl import logging

from ijepa_jax.data import sources
from ijepa_jax.errors import UserError
from ijepa_jax.evals import tasks
from ijepa_jax.pretrained import shipped
from ijepa_jax.runtime.config import read_config

_TEST_SPLITS = 'val', 'test', 'validation', 'valid'
_IMAGENET_CLASSES = 1000


def complete(config):
  """Returns a config that names its task and, of a run's folder, its images.

  With config.task = '' these are the images at data.path, or without one those
  that the run at init_from was trained on; of another file, ImageNet. Images of
  1000 classes are ImageNet, and the job `logistic` takes 1% of its labels.

  Args:
    config: of an evaluation, see configs/evals/common.py.

  Raises:
    UserError: the run's images have no task, or no split to test on.
  """
  if config.task or not config.init_from:
    return config
  config = config.copy_and_resolve_references()
  run = {}
  if not config.data.path:
    run = read_config(shipped.locate(config.init_from))
  data = run.get('data') or {}
  kind = data.get('source', '')
  if kind == 'scenes':
    crowd = data.get('flavour') == 'crowd'
    config.task = 'crowd_count' if crowd else 'scenes_class'
  elif kind == 'tfds':
    config.task = _of_tfds(data.get('path'))
  elif kind or config.data.path:
    if kind:
      _take_images_of_run(config.data, run)
    config.task = _of_files(config.data)
  else:
    config.task = 'imagenet'
  if config.task == 'imagenet' and config.job == 'logistic':
    config.task = 'imagenet_1pct'
  logging.info(
    'No task is named: %s%s.',
    config.task,
    f' of {config.data.path}' if config.data.path else '',
  )
  return config


def _of_tfds(path) -> str:
  """The first task that trains on this data set."""
  for name, task in tasks.TASKS.items():
    if task.train.get('path') == path:
      return name
  raise UserError(
    f'The run was trained on {path} of TFDS, of which there is no task: set '
    f'config.task to one of {", ".join(tasks.TASKS)}.'
  )


def _take_images_of_run(d, run: dict) -> None:
  """Sets source, path and splits to those of the run."""
  data = run['data']
  d.source, d.path = data['source'], data['path']
  d.train = data.get('split', '')
  if d.test:
    return
  named = (run.get('probe') or {}).get('split')
  splits = [named] if named else []
  splits += [
    split
    for split in _TEST_SPLITS
    if os.path.isdir(os.path.join(os.path.expanduser(d.path), split))
  ]
  if not splits:
    raise UserError(
      f'The run was trained on {d.path}, which has no folder '
      f'{" or ".join(_TEST_SPLITS[:2])} to test on: make one, or name other '
      'images by config.task=folder and config.data.path.'
    )
  d.test = splits[0]


def _of_files(d) -> str:
  """The task of images that lie at data.path."""
  source = sources.make_source(d.source, path=d.path, split=d.train)
  classes = source.labels.get('label')
  return 'imagenet' if classes == _IMAGENET_CLASSES else 'folder'
