"""The evaluations as jobs of main.py: from a config to a table and a JSON.

Every one loads a frozen encoder, opens a task, and compares what it finds with
the paper's numbers for that model.
"""

import contextlib
import dataclasses
import itertools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from ijepa_jax import (
  decode,
  limits,
  locks,
  metrics,
  paths,
  sharding,
)
from ijepa_jax.errors import UserError
from ijepa_jax.evals import features, knn, linear, subsets, tasks
from ijepa_jax.interop import load

# Knobs of how an evaluation is computed.
_ANYHOW = 'batch_size', 'cache_dir', 'mesh'


@dataclasses.dataclass(frozen=True)
class Bench:
  """What is evaluated, and on what."""

  frozen: load.Frozen | load.Pixels
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


def set_up(config, workdir: str, list_file: str = '') -> Bench:
  """Loads the encoder and opens the task.

  Args:
    list_file: of the training images to take, see sources.from_list; '': all.

  Raises:
    UserError: one of them can't be had; the sentence says why.
  """
  if not config.init_from:
    raise UserError('init_from is empty: set it to the --workdir of a run.')
  start = paths.resolve(config.init_from)
  if not start.exists():
    raise UserError(f'There is nothing at init_from = {config.init_from}.')
  if not workdir:
    # A file has no room for a folder: <file>.evals beside it.
    inside = start.is_dir()
    workdir = start / 'evals' if inside else f'{os.fspath(start)}.evals'
  workdir = paths.resolve(workdir)
  limits.check_all(config)
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
  frozen = load.load(
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
  return Bench(frozen, task, train, test, column, classes, mesh, workdir)


def report(config, bench: Bench, ours: dict[str, float], details: dict) -> dict:
  """Prints `ours` beside the paper's numbers and writes <task>-<job>.json."""
  theirs = tasks.paper(bench.task, bench.frozen.model, bench.frozen.image_size)
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
      path = _place(bench.workdir, f'{config.task}-{config.job}{which}', found)
      metrics.replace(path, json.dumps(found, indent=2))
    words = tasks.table(
      config.task, ours, theirs, bench.task.note, details.get('chosen', '')
    )
    print(f'\n{bench.frozen.name}\n\n{words}\n\n{path}')
  return found


def _place(folder, name: str, found: dict):
  """Where a result is written: over that of the same evaluation, but over no
  other's.
  """

  def same(path):
    # What can't be read is somebody's all the same.
    with contextlib.suppress(OSError, ValueError, AttributeError):
      old = json.loads(path.read_text()).get('config') or {}
      return _asked(old) == _asked(found['config'])

  paths = (
    epath.Path(folder) / f'{name}{f"-{n}" if n > 1 else ""}.json'
    for n in itertools.count(1)
  )
  return next(path for path in paths if not path.exists() or same(path))


def _asked(config: dict) -> dict:
  """Of a config, what a result depends on."""
  kept = {k: v for k, v in config.items() if k not in _ANYHOW}
  data = {k: v for k, v in kept.get('data', {}).items() if k != 'workers'}
  return kept | {'data': data}


def run_knn(config, workdir: str) -> dict:
  """Weighted kNN, the best of a sweep and all of it."""
  bench = set_up(config, workdir)
  ks = knn.at_most(tuple(config.knn.ks), len(bench.train))
  if ks != tuple(sorted(set(config.knn.ks))):
    logging.info('There are %d training images: ks are %s.', ks[-1], ks)
  train, test = (bench.features(config, s) for s in (bench.train, bench.test))
  found = knn.knn(
    train.last,
    train.labels[:, bench.column],
    test.last,
    test.labels[:, bench.column],
    classes=bench.classes,
    ks=ks,
    temperatures=tuple(config.knn.temperatures),
    mesh=bench.mesh,
  )
  sweep = {f'k={k}, T={t:g}': a for (k, t), a in found.accuracies.items()}
  ours = {'knn': found.accuracies[found.best]}
  return report(config, bench, ours, {'chosen': found.chosen, 'sweep': sweep})


def run_logistic(config, workdir: str) -> dict:
  """Logistic regression on all labels or on a few."""
  c = config.logistic
  if c.layers not in ('last', 'last4'):
    raise UserError(f'layers is {c.layers!r}: take last or last4.')
  if c.per_class == 1 and len(c.l2) > 1:
    raise UserError(
      'logistic.per_class is 1, so that none can be held out to choose among '
      f'the {len(c.l2)} logistic.l2: give one, such as (0.01,).'
    )
  bench = set_up(config, workdir, c.list_file)
  train, test = (bench.features(config, s) for s in (bench.train, bench.test))
  labels = train.labels[:, bench.column]
  chosen = np.arange(len(labels))
  if c.per_class or c.share:
    chosen = subsets.balanced(
      labels,
      per_class=c.per_class,
      share=c.share,
      seed=config.seed,
      classes=bench.classes,
    )
  found = linear.logistic(
    getattr(train, c.layers)[chosen],
    labels[chosen],
    getattr(test, c.layers),
    test.labels[:, bench.column],
    classes=bench.classes,
    l2s=tuple(c.l2),
    mesh=bench.mesh,
    seed=config.seed,
  )
  details = {
    'chosen': found.chosen,
    'l2': found.l2,
    'held_out': found.held_out,
    'training_examples': len(chosen),
  }
  return report(config, bench, {'logistic': found.accuracy}, details)
