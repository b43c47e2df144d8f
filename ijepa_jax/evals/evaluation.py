"""What the evaluation jobs share: from a config to a table and a JSON file.

Each job loads a frozen encoder, opens a task, and compares its accuracies with
the paper's numbers for that model.
"""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath

from ijepa_jax.data import decode
from ijepa_jax.errors import UserError
from ijepa_jax.evals import features, tasks
from ijepa_jax.evals.advice import doubts
from ijepa_jax.models import vit
from ijepa_jax.pretrained import frozen_encoder, load, shipped
from ijepa_jax.pretrained.formats import weights
from ijepa_jax.runtime import files, locks, sharding
from ijepa_jax.runtime.config_checks import check_numbers
from ijepa_jax.runtime.progress import text_table

# Config keys that change how a result is computed, and not the result.
_NO_EFFECT_ON_RESULT = 'batch_size', 'cache_dir', 'mesh', 'compilation_cache'


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The encoder that is evaluated, and the images of the task.

  Attributes:
    train, test: sources, see data/sources.
    column: of their labels.
    workdir: of results, features and trained heads.
  """

  frozen: frozen_encoder.FrozenEncoder | frozen_encoder.RawPixels
  task: tasks.Task
  train: object
  test: object
  column: int
  classes: int
  mesh: jax.sharding.Mesh
  workdir: epath.Path

  @classmethod
  def from_config(
    cls, config, workdir: str, list_file: str = ''
  ) -> 'Evaluation':
    """Loads the encoder and opens the task.

    Args:
      workdir: '': evals/ in the run, or <file>.evals, see shipped.places.
      list_file: of the training images to take, see data/sources/subset.py;
        '': all.

    Raises:
      UserError: a value of the config is wrong, or the encoder or the images
        can't be read.
    """
    checkpoint, workdir = shipped.places(config.init_from, workdir, 'evals')
    check_numbers(config)
    mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    decode.limit_pixels(config.data.max_pixels)
    task = _make_task(config)
    train, test, column, classes = task.open(list_file)
    sharding.check_alike(train.listing, len(train))
    sharding.check_alike(test.listing, len(test))
    frozen = load.load_frozen(
      checkpoint,
      mesh=mesh,
      which=config.which,
      step=config.step,
      image_size=config.image_size,
      pos_embed=config.pos_embed,
    )
    logging.info(
      '%s on %s: %d training and %d test images, %d classes.',
      frozen.name,
      config.task,
      len(train),
      len(test),
      classes,
    )
    return cls(frozen, task, train, test, column, classes, mesh, workdir)

  @property
  def depends_on(self) -> dict:
    """Names all that a training on these images and labels depends on."""
    return {
      'encoder': [self.frozen.fingerprint, self.frozen.channels],
      'images': self.train.identity,
      'label': [self.task.label, self.column, self.classes],
    }

  def widths(self) -> dict[str, int]:
    """Returns the widths of the features: {'last': D, 'last4': 4 D}."""
    image = 1, *self.frozen.image_size, self.frozen.channels
    pooled = jax.eval_shape(
      self.frozen.pooled, self.frozen.params, jnp.zeros(image, jnp.uint8)
    )
    return {
      k: x.shape[1] for k, x in zip(('last', 'last4'), pooled, strict=True)
    }

  def features(self, config, source) -> features.Features:
    """Returns the features of `train` or `test`, without augmentation."""
    _, transform = self.task.transforms(self.frozen.image_size)
    return features.extract(
      self.frozen,
      source,
      transform,
      mesh=self.mesh,
      cache_dir=config.cache_dir or self.workdir / 'features',
      batch_size=config.batch_size,
      workers=config.data.workers,
    )


def _make_task(config) -> tasks.Task:
  """Returns the task, on the images that config.data names."""
  task, d = tasks.get(config.task), config.data
  if d.path:
    return task.read_from(d.source, d.path, train=d.train, test=d.test)
  if (d.source, d.train, d.test) != ('folder', 'train', ''):
    raise UserError(
      f'data.path is empty, so that data.source = {d.source!r}, data.train = '
      f'{d.train!r} and data.test = {d.test!r} mean nothing: say where the '
      'images are, or leave these three.'
    )
  return task


def report(
  config, evaluation: Evaluation, accuracies: dict[str, float], details: dict
) -> dict:
  """Prints accuracies beside the paper's and writes <task>-<job>.json.

  Args:
    accuracies: of the test images, in [0, 1].
    details: what else the file holds; 'chosen' and 'advice', sentences, are
      printed below the table.

  Returns:
    What the file holds.
  """
  frozen, task = evaluation.frozen, evaluation.task
  encoder = getattr(frozen, 'encoder', None)  # raw pixels have none
  model = weights.encoder_sizes(encoder) if encoder else {}
  paper = {}
  if encoder and frozen.method == 'ijepa':
    paper = paper_accuracies(task, model, frozen.image_size)
  result = {
    'task': config.task,
    'job': config.job,
    'checkpoint': frozen.name,
    'accuracy': accuracies,
    'paper': {k: v / 100 for k, v in paper.items()},
    **details,
    'config': json.loads(config.to_json_best_effort()),
  }
  if jax.process_index() == 0:
    name = f'{config.task}-{config.job}'
    if config.which != 'target':
      name += f'-{config.which}'
    if config.image_size:
      name += '-{}x{}'.format(*frozen.image_size)
    if config.pos_embed != 'recompute':
      name += f'-{config.pos_embed}'
    with locks.only_writer(evaluation.workdir, wait=True):
      path = _result_path(evaluation.workdir, name, result['config'])
      simpler = doubts.of_simpler(
        result, evaluation.workdir, len(evaluation.test)
      )
      advice = result['advice'] = [*details.get('advice', ()), *simpler]
      files.atomic_write_text(path, json.dumps(result, indent=2))
    table = comparison_table(
      config.task, accuracies, paper, task.note, details.get('chosen', '')
    )
    rows = [f'{k}: {doubts.ROWS[k]}.' for k in accuracies if k in doubts.ROWS]
    words = '\n'.join([*rows, *advice])
    print(f'\n{frozen.name}\n\n{table}\n\n{words}\n\n{path}')
  return result


def _result_path(folder, name: str, config: dict):
  """Returns where a result is written.

  The same evaluation overwrites its own file, any other takes the next free
  <name>-2.json, <name>-3.json, ...
  """

  def is_same(path):
    # A file that can't be read is not overwritten either.
    with contextlib.suppress(OSError, ValueError, AttributeError):
      stored = json.loads(path.read_text()).get('config') or {}
      return _result_key(stored) == _result_key(config)

  paths = (
    epath.Path(folder) / f'{name}{f"-{n}" if n > 1 else ""}.json'
    for n in itertools.count(1)
  )
  return next(path for path in paths if not path.exists() or is_same(path))


def _result_key(config: dict) -> dict:
  """Returns the part of a config that a result depends on."""
  key = {k: v for k, v in config.items() if k not in _NO_EFFECT_ON_RESULT}
  data = {k: v for k, v in key.get('data', {}).items() if k != 'workers'}
  return key | {'data': data}


def paper_accuracies(
  task: tasks.Task, model: Mapping[str, Any], image_size: tuple[int, int]
) -> dict[str, float]:
  """Returns the paper's accuracies in % for this model; {} if it has none.

  Args:
    model: config.model: size, patch_size, and widths that were changed.
    image_size: (H, W) in pixels.
  """
  size, patch = model.get('size'), model.get('patch_size')
  changed = any(
    model.get(name) not in (None, value)
    for name, value in vit.SIZES.get(size, {}).items()
  )
  if changed or image_size[0] != image_size[1]:
    return {}
  return dict(task.paper.get((size, patch, image_size[0]), {}))


def comparison_table(
  name: str,
  accuracies: Mapping[str, float],
  paper: Mapping[str, float],
  note: str = '',
  selection_note: str = '',
) -> str:
  """Formats the accuracies of this checkpoint beside the paper's, in %.

  Args:
    name: of the task.
    accuracies: metric -> accuracy in [0, 1].
    paper: see `paper_accuracies`; metrics that were not measured are left out.
    note: on the paper's numbers, below the table if it has such.
    selection_note: how the best of several results was chosen, below the table.
  """
  rows = [(f'{name}, %', 'this checkpoint', 'paper')]
  for metric, accuracy in accuracies.items():
    published = f'{paper[metric]:.1f}' if metric in paper else '-'
    rows.append((metric, f'{100 * accuracy:.1f}', published))
  notes = [selection_note, note if paper else '']
  return '\n'.join([text_table(rows), *filter(None, notes)])
