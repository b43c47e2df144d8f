"""The story of a pre-training, from the config to the report."""

import contextlib
import json

import jax
from absl import logging
from ml_collections import ConfigDict

from ijepa_jax.errors import UserError
from ijepa_jax.methods import from_config
from ijepa_jax.methods.train_step import State
from ijepa_jax.models import kernel_check
from ijepa_jax.pretrained.formats import orbax
from ijepa_jax.runtime import files, locks, metrics, preemption, sharding
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.runtime.config import read_config, write_config
from ijepa_jax.runtime.timing import starts
from ijepa_jax.train import compile, loop, monitors, report
from ijepa_jax.train.initial_state import state_from_weights
from ijepa_jax.train.run import PretrainRun, make_run


def run(config, workdir: str) -> State:
  """Trains as `config` says, going on from what `workdir` holds.

  Where it holds nothing yet, config.init_from may say what weights to begin
  with, see train/initial_state.py.

  Args:
    config: see configs/base.py.
    workdir: receives config.json, images.json, metrics.jsonl, tensorboard/,
      checkpoints/, goodput/ and, with the probe or health on, report.json
      and curves.png; a folder or gs://.

  Returns:
    The last state.

  Raises:
    UserError: a mistake in the config, see `make_run`; data or checkpoints
      that can't be read, or a disk that is full; loop.NotFinite of them: the
      loss, the gradient or the state was.
    Stopped: SIGTERM or Ctrl-C came before the last step; what was trained is
      saved.
  """
  with preemption.watch() as watched, starts.this_start() as this_start:
    return _run(config, workdir, watched, this_start)


def _run(config, workdir, watched, this_start) -> State:
  if not workdir:
    raise UserError('--workdir is empty: say where the run is kept.')
  run = make_run(config)
  del config  # it goes no further
  workdir, earlier_config = _open_workdir(workdir, run)
  abstract, make_state = compile.abstract_state(run)
  checkpoints = checkpointer.Checkpointer(
    workdir / 'checkpoints', **run.checkpoint
  )
  with (
    watched.together(),
    locks.only_writer(workdir, job=True),
    checkpoints,
  ):
    first_process = jax.process_index() == 0
    saved = checkpoints.steps()
    log_plan(run, max(saved, default=0))
    if saved:
      require_same_function(earlier_config, run)
    # Before anything is compiled: the images may be no such.
    probe, signals = monitors.make_probe(run), monitors.make_health(run)
    all_monitors = monitors.make_monitors(run, probe, signals)
    kernel_check.check_attention(run.method)
    if first_process and max(saved, default=0) < run.total_steps:
      this_start.keep_in(workdir)
    if restored := checkpoints.restore(abstract):
      state, start = restored
      logging.info('Going on from step %d of %s.', start, workdir)
    else:
      state, start = _first_state(run, abstract, make_state)
    dataset = run.batches(start)
    _log_sizes(run, state)
    if first_process and start < run.total_steps:
      for change in write_config(workdir, run.config_json):
        logging.warning('Not as in the run so far: %s.', change)
      note_images(workdir, run.source, start)
    with metrics.MetricWriter(
      workdir,
      start_step=start,
      tensorboard=run.tensorboard,
      enabled=first_process,
    ) as writer:
      all_monitors += monitors.make_pictures(run, all_monitors, writer)
      state = loop.train(
        *(run, state, abstract, dataset),
        *(checkpoints, writer, watched, all_monitors),
      )
  if int(state.step) < run.total_steps:
    watched.check()
  if (probe or signals) and int(state.step) == run.total_steps:
    with this_start.clock.part('evaluate'):
      report.report(
        *(run, workdir, state, make_state),
        lambda: sum(this_start.clock.seconds().values()),
        probe=probe,
        signals=signals,
      )
  return state


def _first_state(run: PretrainRun, abstract, make_state):
  """The state that a run begins with, and the step that it is of."""
  if run.init_from or run.init_optimizer:
    state = state_from_weights(run, abstract, make_state)
    return state, int(state.step)
  return make_state(jax.random.key(run.seed)), 0


def _open_workdir(workdir: str, run: PretrainRun):
  """The absolute path, and the config.json there; {} where there is none."""
  path = files.resolve(workdir)
  files.check_checkpoints(path)
  sharding.check_alike(run.source.listing, len(run.source))
  config = read_config(path)
  if config and config.get('job') != 'pretrain':
    raise UserError(
      f'{path} holds something else: its config.json is of no run of '
      'pre-training. Take another --workdir.'
    )
  return path, config


# Of the longest published run, MAE's, are 1600; below 5000 nothing is said.
_MANY_EPOCHS = 5000


def log_plan(run: PretrainRun, start: int) -> None:
  """Says in words what the run is going to do, before anything is compiled.

  Args:
    run: of pre-training.
    start: the newest checkpoint's step; 0: there is none.
  """
  images, batch, steps = len(run.source), run.batch_size, run.total_steps
  logging.info(
    '%s steps of %s images each: %s epochs of %s images%s.',
    f'{steps:,}',
    f'{batch:,}',
    f'{_rounded(steps * batch / images)}',
    f'{images:,}',
    f'; {start:,} steps are done' if start else '',
  )
  if batch > images:
    logging.warning(
      'A batch of %d is more than the %d images: every step takes some of them '
      'several times. Take a batch_size well below %d; configs/photos.py is a '
      'recipe for few images.',
      batch,
      images,
      images,
    )
  if (epochs := steps * batch / images) > _MANY_EPOCHS:
    logging.warning(
      'Every image is seen %s times, and the steps may be those of a recipe '
      'for more images: for 300 epochs of these, total_steps is %d.',
      _rounded(epochs),
      max(1, round(300 * images / batch)),
    )


def _rounded(number: float) -> str:
  return f'{number:,.0f}' if number >= 10 else f'{number:.2g}'


def _log_sizes(run: PretrainRun, state: State) -> None:
  count = sum(x.size for x in jax.tree.leaves(state.params['encoder']))
  shapes = run.method.sampler.shapes if run.method.sampler else 'none'
  logging.info(
    'Encoder of %.1f M parameters, mask shapes %s.', count / 1e6, shapes
  )
  if not jax.process_index():
    logging.info(sharding.describe_state(state, run.mesh))


def note_images(workdir, source, start: int) -> None:
  """Keeps in images.json which images the run takes, and says a difference.

  The file is a list of {'from_step', 'images', 'listing'}: one for the start
  and one for each time that the images were others than before.
  """
  path = workdir / 'images.json'
  now = {'images': len(source), 'listing': source.listing}
  history = []
  with contextlib.suppress(OSError, ValueError):
    history = [
      x for x in json.loads(path.read_text()) if x['from_step'] < start
    ]
  before = {k: history[-1].get(k) for k in now} if history else now
  if before != now:
    logging.warning(
      'The images are not those of the run so far (%d now, %d before, or other '
      'names, order or labels): from step %d on their order is another, so '
      'that the run is no longer bit for bit that of one start.',
      now['images'],
      before['images'],
      start + 1,
    )
  if not history or before != now:
    history.append({'from_step': start, **now})
    files.atomic_write_text(path, json.dumps(history, indent=2))


def require_same_function(earlier_config: dict, run: PretrainRun) -> None:
  """Refuses to resume with settings of which the arrays say nothing, or little.

  Args:
    earlier_config: the workdir's config.json; {} where it is lost.
    run: that goes on.

  Raises:
    UserError: the method, heads, mean, std or mu_dtype are others.
  """
  if not earlier_config:
    return

  def settings(method, mu_dtype):
    own = {'method': method.name, **method.settings()}
    return own | {'optim.mu_dtype': mu_dtype}

  earlier = ConfigDict(earlier_config)
  before = settings(
    from_config.make_method(earlier), orbax.mu_dtype_of(earlier)
  )
  for name, value in settings(run.method, run.mu_dtype).items():
    if value != before[name]:
      raise UserError(
        f'{name} is {value}, and the run in --workdir was trained with '
        f'{before[name]}: set it to that, or take another --workdir.'
      )
