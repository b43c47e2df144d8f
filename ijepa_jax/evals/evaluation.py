"""The evaluations as jobs of main.py: from a config to a table and a JSON.

Every one loads a frozen encoder, opens a task, and compares what it finds with
the paper's numbers for that model.
"""

import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath

from ijepa_jax.data import decode
from ijepa_jax.errors import UserError
from ijepa_jax.evals import features, tasks
from ijepa_jax.models import vit
from ijepa_jax.pretrained import frozen_encoder, load
from ijepa_jax.pretrained.formats import weights
from ijepa_jax.runtime import files, locks, sharding
from ijepa_jax.runtime.config import check_numbers

# Knobs of how an evaluation is computed.
_NO_EFFECT_ON_RESULT = 'batch_size', 'cache_dir', 'mesh'


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What is evaluated, and on what."""

  frozen: frozen_encoder.FrozenEncoder | frozen_encoder.RawPixels
  task: tasks.Task
  train: object  # sources
  test: object
  column: int  # of their labels
  classes: int
  mesh: jax.sharding.Mesh
  workdir: epath.Path

  @property
  def depends_on(self) -> dict:
    """What anything that is trained on the training images depends on."""
    return {
      'encoder': [self.frozen.fingerprint, self.frozen.channels],
      'images': self.train.identity,
      'label': [self.task.label, self.column, self.classes],
    }

  def widths(self) -> dict[str, int]:
    """Of the features: {'last': D, 'last4': 4 D}."""
    size = 1, *self.frozen.image_size, self.frozen.channels
    found = jax.eval_shape(
      self.frozen.pooled, self.frozen.params, jnp.zeros(size, jnp.uint8)
    )
    return {
      k: x.shape[1] for k, x in zip(('last', 'last4'), found, strict=True)
    }

  def features(self, config, source) -> features.Features:
    """Of one of the sources, without augmentation."""
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


def set_up(config, workdir: str, list_file: str = '') -> Evaluation:
  """Loads the encoder and opens the task.

  Args:
    list_file: of the training images to take, see sources.from_list; '': all.

  Raises:
    UserError: one of them can't be had; the sentence says why.
  """
  if not config.init_from:
    raise UserError('init_from is empty: set it to the --workdir of a run.')
  start = files.resolve(config.init_from)
  if not start.exists():
    raise UserError(f'There is nothing at init_from = {config.init_from}.')
  if not workdir:
    # A file has no room for a folder: <file>.evals beside it.
    inside = start.is_dir()
    workdir = start / 'evals' if inside else f'{os.fspath(start)}.evals'
  workdir = files.resolve(workdir)
  check_numbers(config)
  mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
  decode.limit_pixels(config.data.max_pixels)
  task = tasks.get(config.task)
  d = config.data
  if d.path:
    task = task.read_from(d.source, d.path, train=d.train, test=d.test)
  elif (d.source, d.train, d.test) != ('folder', 'train', ''):
    raise UserError(
      f'data.path is empty, so that data.source = {d.source!r}, data.train = '
      f'{d.train!r} and data.test = {d.test!r} mean nothing: say where the '
      'images are, or leave these three.'
    )
  train, test, column, classes = task.open(list_file)
  sharding.check_alike(train.listing, len(train))
  sharding.check_alike(test.listing, len(test))
  frozen = load.load_frozen(
    start,
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
  return Evaluation(frozen, task, train, test, column, classes, mesh, workdir)


def report(
  config, bench: Evaluation, ours: dict[str, float], details: dict
) -> dict:
  """Prints `ours` beside the paper's numbers and writes <task>-<job>.json."""
  encoder = getattr(bench.frozen, 'encoder', None)
  model = weights.encoder_sizes(encoder) if encoder else {}
  theirs = paper_accuracies(bench.task, model, bench.frozen.image_size)
  found = {
    'task': config.task,
    'job': config.job,
    'checkpoint': bench.frozen.name,
    'accuracy': ours,
    'paper': {k: v / 100 for k, v in theirs.items()},
    **details,
    'config': json.loads(config.to_json_best_effort()),
  }
  if jax.process_index() == 0:
    which = '' if config.which == 'target' else f'-{config.which}'
    if config.image_size:
      which += '-{}x{}'.format(*bench.frozen.image_size)
    if config.pos_embed != 'recompute':
      which += f'-{config.pos_embed}'
    with locks.only_writer(bench.workdir, wait=True):
      path = _result_path(
        bench.workdir, f'{config.task}-{config.job}{which}', found
      )
      files.atomic_write_text(path, json.dumps(found, indent=2))
    words = comparison_table(
      config.task, ours, theirs, bench.task.note, details.get('chosen', '')
    )
    print(f'\n{bench.frozen.name}\n\n{words}\n\n{path}')
  return found


def _result_path(folder, name: str, found: dict):
  """Where a result is written: over that of the same evaluation, but over no
  other's.
  """

  def same(path):
    # What can't be read is somebody's all the same.
    with contextlib.suppress(OSError, ValueError, AttributeError):
      old = json.loads(path.read_text()).get('config') or {}
      return _result_key(old) == _result_key(found['config'])

  paths = (
    epath.Path(folder) / f'{name}{f"-{n}" if n > 1 else ""}.json'
    for n in itertools.count(1)
  )
  return next(path for path in paths if not path.exists() or same(path))


def _result_key(config: dict) -> dict:
  """Of a config, what a result depends on."""
  kept = {k: v for k, v in config.items() if k not in _NO_EFFECT_ON_RESULT}
  data = {k: v for k, v in kept.get('data', {}).items() if k != 'workers'}
  return kept | {'data': data}


def paper_accuracies(
  task: tasks.Task, model: Mapping[str, Any], image_size: tuple[int, int]
) -> dict[str, float]:
  """The paper's accuracies in % for this model; {} where it has none.

  Args:
    model: a config's: size and patch_size, and what was changed by hand.
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
  ours: Mapping[str, float],
  theirs: Mapping[str, float],
  note: str = '',
  chosen: str = '',
) -> str:
  """This checkpoint beside the paper, accuracies in %.

  Args:
    name: of the task.
    ours: what was measured -> accuracy in [0, 1].
    theirs: see `paper_accuracies`; rows that were not measured are left out.
    note: on the paper's numbers, below the table where there are such.
    chosen: how ours were chosen among several, below the table.
  """
  rows = [(f'{name}, %', 'this checkpoint', 'paper')]
  for key, value in ours.items():
    published = f'{theirs[key]:.1f}' if key in theirs else '-'
    rows.append((key, f'{100 * value:.1f}', published))
  wide = max(len(row[0]) for row in rows)
  lines = [f'{a:{wide}}  {b:>15}  {c:>5}' for a, b, c in rows]
  below = [chosen, note if theirs else '']
  return '\n'.join([*lines, *filter(None, below)])
