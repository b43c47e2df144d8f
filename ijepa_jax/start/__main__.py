"""Looks at a folder of images, and says what to train on it and how long.

    python -m ijepa_jax.start /my/images
    python -m ijepa_jax.start /my/images --workdir=runs/mine --minutes=30 --go

Writes <workdir>/recipe.py, a config of its own that changes a few lines of the
recipe photos, and prints the command that trains with it; --go runs that
command. The images stay where they are. docs/small_data.md says what to expect.
"""

import os
import pathlib
import shlex
import subprocess
import sys

from absl import app, flags, logging

from ijepa_jax import recipes
from ijepa_jax.errors import UserError
from ijepa_jax.runtime import cli, preemption

FLAGS = flags.FLAGS
flags.DEFINE_string(
  'workdir', '', "Folder of the run; '': runs/<name of the folder of images>."
)
flags.DEFINE_float(
  'minutes', 5.0, 'That the training may take here.', lower_bound=0.1
)
flags.DEFINE_bool('go', False, 'Run the command.')

_BASE = 'photos'
_MEASURED_SECONDS = 5.0
_MANY = 50_000  # images, for links


@cli.one_sentence()
def main(argv):
  if len(argv) != 2:
    sys.exit('Say which folder: python -m ijepa_jax.start <folder> [--go]')
  from ijepa_jax.start import survey

  workdir = _workdir(argv[1])
  images = survey.survey_folder(argv[1])
  _print(*images.sentences())
  commands = _prepare(images, workdir)
  print(
    '\n' + '\n'.join(f'    python {shlex.join(c)}' for c in commands) + '\n'
  )
  if not FLAGS.go:
    return
  sys.stdout.flush()
  *first, last = commands
  for command in first:
    if status := subprocess.run([sys.executable, *command]).returncode:
      sys.exit(status)
  os.execv(sys.executable, [sys.executable, *last])


def _workdir(folder: str) -> pathlib.Path:
  """Of the run that is to come, which must not have begun.

  Raises:
    UserError: it has.
  """
  name = os.path.basename(os.path.abspath(folder)) or 'images'
  workdir = pathlib.Path(FLAGS.workdir or f'runs/{name}')
  if (workdir / 'config.json').exists():
    raise UserError(
      f'{workdir} holds a run already: go on with its own command, or take '
      'another --workdir.'
    )
  return workdir


def _print(*sentences: str) -> None:
  for sentence in sentences:
    print(sentence, flush=True)


def _prepare(images, workdir: pathlib.Path) -> list[list[str]]:
  """Chooses, measures and writes; returns the commands, without python.

  Raises:
    UserError: there is one image only, or the disk takes no links.
  """
  import jax

  from ijepa_jax.data import workers
  from ijepa_jax.start import choose, measure, write

  if len(images) - len(images.unreadable) < 2:
    raise UserError('There is one image only, and two are the least.')
  if len(images) < choose.FEW:
    _print(
      f'{len(images)} images are few: some hundreds at least are needed for '
      'features that are better than those of an untrained encoder.'
    )
  choice = choose.choose(
    images, devices=jax.device_count(), cores=workers.cores()
  )
  path, splits = _arrange(images, workdir, choice)
  choice.set('data.path', str(path))
  choose.choose_probe(choice, images, splits[1] if splits[1:] else '')
  config = recipes.load(_BASE)
  config.update_from_flattened_dict(choice.changes)
  _print(f'Timing some steps on {_machine(jax)}, after a minute of compiling.')
  seconds, share = measure.step_seconds(config, _MEASURED_SECONDS)
  epochs = choice.epochs(60 * FLAGS.minutes / seconds)
  packing = []
  if choose.wants_packing(images, share, epochs):
    packing = _pack(images, workdir, choice, path, splits)
    seconds *= 1 - share
  reason = choose.choose_steps(choice, seconds, FLAGS.minutes)
  _print(*_plan(choice, seconds, reason))
  command = [
    *('-m', 'ijepa_jax', f'--config={workdir}/recipe.py'),
    f'--workdir={workdir}',
  ]
  write.write_recipe(
    workdir / 'recipe.py',
    write.recipe(choice, f'python {shlex.join(command)}', _BASE),
  )
  return [*packing, command]


def _arrange(images, workdir, choice) -> tuple[pathlib.Path, list[str]]:
  """Where the images are trained from, and the names of their splits."""
  from ijepa_jax.start import survey, write

  splits = ['train', images.held_out] if images.held_out else ['train']
  others = None
  if images.held_out:
    others = survey.survey_split(images.path, images.held_out)
    _print(*others.sentences())
    if others.classes != images.classes:
      _print('Their classes are others: there will be no probe.')
      splits = ['train']
  if not write.needs_links(images) and not (others and others.unreadable):
    return pathlib.Path(images.path), splits
  folder = workdir.absolute() / 'images'
  if len(images) > _MANY:
    _print('They are arranged by links, which takes some minutes.')
  counts = write.link(images, folder)
  if others and splits[1:]:
    counts[images.held_out] = write.link_all(others, folder / images.held_out)
  choice.images = counts['train']
  words = ' and '.join(f'{n:,} in {split}' for split, n in counts.items())
  _print(f'Linked, not copied, in {folder}: {words}.')
  return folder, list(counts)


def _pack(images, workdir, choice, path, splits) -> list[list[str]]:
  """Has the images packed small first; returns the commands."""
  from ijepa_jax.data import workers
  from ijepa_jax.runtime.progress import duration
  from ijepa_jax.start import choose

  seconds = len(images) * images.seconds / workers.cores()
  _print(
    f'Large images: one takes {1e3 * images.seconds:.0f} ms to decode, and the '
    f'training would wait for them. They are packed once with a shorter side '
    f'of {choose.PACKED_SIDE} pixels, in about {duration(seconds)}.'
  )
  packed = workdir.absolute() / 'packed'
  choice.set('data.source', 'arrayrecord')
  choice.set('data.path', str(packed))
  return [
    [
      *('-m', 'ijepa_jax.data.pack', f'folder:{path}', f'{packed}/{split}'),
      *(f'--split={split}', f'--resize={choose.PACKED_SIDE}'),
    ]
    for split in splits
  ]


def _machine(jax) -> str:
  from ijepa_jax.data import workers

  kind = jax.devices()[0].device_kind
  if jax.default_backend() == 'cpu':
    cores = workers.cores()
    return f'{cores} CPU core{"s" if cores > 1 else ""}'
  return f'{jax.device_count()} x {kind}'


def _plan(choice, seconds: float, reason: str):
  """What would be trained, and how long it takes."""
  from ijepa_jax.runtime.progress import duration

  steps = choice.changes['total_steps']
  size = choice.changes.get('data.image_size', (64, 64))[0]
  yield (
    f'To train: --config=photos, an I-JEPA at {size} x {size} pixels, '
    f'{steps:,} steps of {choice.batch_size} images ({reason}): '
    f'{choice.epochs(steps):,.3g} epochs of {choice.images:,} images.'
  )
  yield (
    f'A step takes {1e3 * seconds:.0f} ms here: {duration(steps * seconds)} in '
    'all, and a minute or two to begin and to judge.'
  )
  if 'probe.every_steps' in choice.changes:
    yield (
      'A linear probe and kNN of the classes, on images that are held out, '
      'say what it learns, beside the untrained encoder and raw pixels.'
    )


if __name__ == '__main__':
  logging.set_verbosity(logging.ERROR)  # what is wrong is in the sentences
  with preemption.job():
    app.run(main, flags_parser=cli.parse)
