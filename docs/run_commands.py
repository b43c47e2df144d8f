"""Runs the commands of the pages, each cut short, in an empty folder.

    python docs/run_commands.py                      # of all pages
    python docs/run_commands.py docs/first_hour.md   # of some

A command runs with the very flags of its page, then those of SHORT: few steps
of a small model. It waits for the commands that make what it reads. Where pages
say /my/images or ImageNet, 64 drawn pictures stand. What wants a cluster, a
bucket, root or the network is left out, and listed.

docs/check_commands.py looks at every command, in seconds, and runs none.
"""

import argparse
import io
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

import PIL.Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from docs import check
from docs.check_commands import ROOT, is_shell
from ijepa_jax.data.scenes import scene

RUN = re.compile(
  r'python (-c|-m ijepa_jax\b|main\.py|benchmarks/step\.py)|launch/local\.sh'
)
PRETRAIN = (
  *('batch_size=8', 'total_steps=4', 'optim.warmup_steps=1'),
  *('model.size=tiny', 'model.width=48', 'model.heads=4', 'model.depth=4'),
  *('model.unroll=1', 'model.predictor_width=48', 'model.predictor_depth=1'),
  *('data.workers=1', 'mesh.fsdp=1', 'mesh.data=-1'),
  *('probe.train_count=48', 'probe.test_count=16', 'health.images=16'),
)
# Job, or module -> what is put after the flags of a page.
SHORT = {
  'pretrain': PRETRAIN,
  'linear': ('linear.epochs=1', 'data.workers=0'),
  'logistic': ('data.workers=0',),
  'knn': ('data.workers=0',),
  'visualize': ('generator.total_steps=0', 'visualize.images=24'),
  'ijepa_jax.start': ('--minutes=0.1',),
}
# Of commands that need what no empty folder has.
ABSENT = {
  '...': 'it is not a whole command',
  '--topology': 'a planner of chips that are not here, minutes of compiling',
  '--against': 'another checkout',
}
SERVED_SECONDS = 15  # of a server, then it is ended
# Somebody's weights, as the pages call them.
FIRST = (
  'python -m ijepa_jax --config=vit_h14 --workdir=runs/theirs',
  'python -m ijepa_jax.convert runs/theirs jepa.pth.tar --to=release',
)
# What exists before the first command; all else is made by commands.
GIVEN = 'a.jpg', 'b.jpg', 'images', 'my/images', 'tiles', 'tiny-scenes'


# ---- Commands ----


def commands_of(page: pathlib.Path) -> list[tuple[str, ...]]:
  """Returns the words of a page's commands, and of its Python that is ours."""
  blocks, _ = check.split(page.read_text())
  commands = []
  for language, block in blocks:
    if language == 'python' and block.startswith('import ijepa_jax'):
      commands.append(('python', '-c', block))
    elif language != 'python' and is_shell(language, block):
      lines = block.replace('\\\n', ' ').splitlines()
      commands += [tuple(shlex.split(x, comments=True)) for x in lines]
  return [words for words in commands if words]


def reason_not_to_run(words: tuple[str, ...]) -> str:
  """Returns why a command is left out; '': it is run."""
  command = ' '.join(words)
  for flag, reason in ABSENT.items():
    if flag in command:
      return reason
  if command == 'python -m ijepa_jax':
    return 'it lists the recipes and has the status 1: tests/test_recipes.py'
  if RUN.match(command):
    return ''
  if command.startswith('python benchmarks/'):
    return 'hours; tests/benchmarks runs it small'
  return 'it wants a cluster, a bucket, root, the network or a whole machine'


def shortened(words: tuple[str, ...]) -> list[str]:
  """Returns the words of a command with what cuts it short."""
  words = list(words)
  if words[1] == '-m' and words[2] != 'ijepa_jax':
    return words + list(SHORT.get(words[2], ()))
  named = [w.partition('=')[2] for w in words if w.startswith('--config=')]
  if not named:
    return words
  recipe = re.sub(r'^configs/|\.py$', '', named[0])
  job = check.check_commands.parse_config(recipe).job
  return words + [f'--config.{knob}' for knob in SHORT.get(job, ())]


def inputs(words: tuple[str, ...]) -> list[str]:
  """Returns the paths that a command reads and that others make."""
  if words[1] == '-c':
    return re.findall(r"load_encoder\('(.*?)'\)", words[2])
  command = ' '.join(words)
  reads = re.findall(r'--config\.(?:init_from|data\.path)=(\S+)', command)
  reads += re.findall(r'ijepa_jax\.(?:convert|goodput|watch) (\S+)', command)
  reads += re.findall(r'--verify (\S+)', command)
  return [path.lstrip('/') for path in reads]


def missing(words: tuple[str, ...], folder: pathlib.Path) -> list[str]:
  """Returns what a command reads and no command has made yet."""
  return [
    path
    for path in inputs(words)
    if path not in GIVEN and not (folder / path).exists()
  ]


# ---- The folder ----


def make_folder(folder: pathlib.Path) -> None:
  """Writes GIVEN, a data set as ImageNet is prepared, and links of the repo."""
  for name in ('main.py', 'configs', 'benchmarks', 'launch', 'ijepa_jax'):
    (folder / name).symlink_to(ROOT / name)
  pictures = [scene.render('scenes', 0, k)[0] for k in range(64)]
  for path in 'a.jpg', 'b.jpg':
    PIL.Image.fromarray(pictures[0]).save(folder / path)
  for root in 'images', 'my/images', 'tiles':
    for k, pixels in enumerate(pictures):
      split = 'val' if k % 4 == 3 else 'train'
      path = folder / root / split / 'ab'[k % 8 < 4] / f'{k}.jpg'
      path.parent.mkdir(parents=True, exist_ok=True)
      PIL.Image.fromarray(pixels).resize((96, 80)).save(path)
  prepare_imagenet(folder / 'tfds', pictures)


def prepare_imagenet(folder: pathlib.Path, pictures) -> None:
  """Writes pictures as TFDS writes imagenet2012 as ArrayRecord."""
  import tensorflow_datasets as tfds

  class Imagenet2012(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('5.1.0')

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
          {
            'image': tfds.features.Image(encoding_format='jpeg'),
            'label': tfds.features.ClassLabel(num_classes=1000),
            'file_name': tfds.features.Text(),
          }
        ),
      )

    def _split_generators(self, dl_manager):
      return {
        'train': self._generate_examples(48),
        'validation': self._generate_examples(16),
      }

    def _generate_examples(self, count):
      for k, pixels in enumerate(pictures[-count:]):
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, 'JPEG')
        file.seek(0)
        yield k, {'image': file, 'label': k % 2, 'file_name': f'{k}.JPEG'}

  tfds.disable_progress_bar()
  Imagenet2012(
    data_dir=folder, file_format='array_record'
  ).download_and_prepare()


def environment(folder: pathlib.Path) -> dict[str, str]:
  return os.environ | {
    'PATH': f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}',
    'PYTHONPATH': str(ROOT),
    'TFDS_DATA_DIR': str(folder / 'tfds'),
    'IJEPA_JAX_CACHE': str(folder / 'cache'),
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'xla'),
  }


# ---- Running ----


def run(words: list[str], folder: pathlib.Path) -> str:
  """Runs a command; returns what is wrong with it, '': nothing."""
  log = folder / 'log.txt'
  with log.open('w') as file:
    process = subprocess.Popen(
      words,
      cwd=folder,
      env=environment(folder),
      stdout=file,
      stderr=subprocess.STDOUT,
    )
    server = 'ijepa_jax.watch' in words
    try:
      status = process.wait(SERVED_SECONDS if server else None)
    except subprocess.TimeoutExpired:
      process.terminate()
      process.wait()
      return ''
  if not status and not server:
    return ''
  return f'status {status}\n' + '\n'.join(log.read_text().splitlines()[-15:])


def run_pages(pages: list[pathlib.Path], folder: pathlib.Path) -> list[str]:
  """Runs all commands of pages; returns what is wrong, a text each."""
  make_folder(folder)
  commands = dict.fromkeys(c for page in pages for c in commands_of(page))
  if 'jepa.pth.tar' in str(list(commands)):
    commands |= dict.fromkeys(tuple(c.split()) for c in FIRST)
  reasons = {words: reason_not_to_run(words) for words in commands}
  waiting = [words for words, reason in reasons.items() if not reason]
  wrong = []
  while ready := [c for c in waiting if not missing(c, folder)]:
    words = ready[0]
    waiting.remove(words)
    # Pages train several recipes into the same workdir, each for itself.
    for workdir in re.findall(r'--workdir=(\S+)', ' '.join(words)):
      shutil.rmtree(folder / workdir, ignore_errors=True)
    here = f'{folder}/my/images'
    began = time.monotonic()
    fault = run(
      [w.replace('/my/images', here) for w in shortened(words)], folder
    )
    seconds = time.monotonic() - began
    shown = ' '.join(words)
    print(
      f'{"WRONG" if fault else "ran"} {seconds:4.0f} s  {shown}', flush=True
    )
    wrong += [f'{shown}\n{fault}'] if fault else []
  for words in waiting:
    paths = ', '.join(missing(words, folder))
    wrong.append(f'{" ".join(words)}\nno command of these pages makes {paths}')
  for words, reason in reasons.items():
    if reason:
      print(f'left out: {" ".join(words)[:70]}: {reason}')
  return wrong


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('pages', nargs='*', type=pathlib.Path)
  chosen = [path.resolve() for path in parser.parse_args().pages]
  with tempfile.TemporaryDirectory() as temporary:
    sentences = run_pages(chosen or check.PAGES, pathlib.Path(temporary))
  sys.exit('\n\n'.join(sentences) or None)
