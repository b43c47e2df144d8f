"""From a folder to a recipe: of classes, flat, grey, transparent, broken."""

import ast
import importlib.util
import json
import os
import shlex
import sys

import jax
import numpy as np
import PIL.Image
import pytest
from absl import flags

from configs import photos
from ijepa_jax.errors import UserError
from ijepa_jax.start import __main__ as start
from ijepa_jax.start import choose, measure, survey, write
from ijepa_jax.train import compile
from ijepa_jax.train.run import make_run


def save(path, mode='RGB', size=(80, 70), seed=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  r = np.random.default_rng(seed)
  channels = len(PIL.Image.new(mode, (1, 1)).getbands())
  shape = (*size[::-1], channels) if channels > 1 else size[::-1]
  PIL.Image.fromarray(r.integers(0, 256, shape, np.uint8), mode).save(path)


@pytest.fixture
def classes(tmp_path):
  """12 cats and 8 dogs; one of the dogs is broken."""
  for name, count in (('cat', 12), ('dog', 7)):
    for i in range(count):
      save(tmp_path / 'pets' / name / f'{i}.png', seed=i)
  (tmp_path / 'pets/dog/broken.jpg').write_bytes(b'no image')
  return tmp_path / 'pets'


def test_survey_of_classes(classes):
  surveyed = survey.survey_folder(str(classes))
  first, second, third = surveyed.sentences()
  assert first.endswith('20 images, 2 classes (cat, dog) of 8 to 12 each.')
  assert second == ('All were opened: the shorter side has 70 pixels; all RGB.')
  assert third.startswith('1 unreadable, left out: pets/dog/broken')
  assert choose.can_be_probed(surveyed) and write.needs_links(surveyed)


def test_survey_of_a_flat_folder(tmp_path):
  for i in range(3):
    save(tmp_path / f'{i}.png', 'L', (40, 50), seed=i)
  surveyed = survey.survey_folder(str(tmp_path))
  assert '3 images, without classes' in surveyed.sentences()[0]
  assert (
    surveyed.grey and not surveyed.classes and not write.needs_links(surveyed)
  )
  choice = choose.choose(surveyed, devices=1, cores=4)
  assert choice.changes['data.channels'] == 1
  assert choice.changes['data.image_size'] == (32, 32)
  assert choice.changes['data.workers'] == 3
  assert choice.batch_size == 2


def test_survey_says_what_is_dropped(tmp_path):
  save(tmp_path / 'a.png', 'RGBA')
  save(tmp_path / 'b.png', size=(100, 200))
  surveyed = survey.survey_folder(str(tmp_path))
  words = surveyed.sentences()[1]
  assert '70 to 100 pixels, half of them above 85' in words
  assert '1 RGBA' in words and '(transparency is dropped)' in words
  assert (
    'data.channels' not in choose.choose(surveyed, devices=1, cores=1).changes
  )


def test_survey_of_arrays(tmp_path):
  for i in range(2):
    np.save(tmp_path / f'{i}.npy', np.zeros((60, 60, 5), np.uint8))
  surveyed = survey.survey_folder(str(tmp_path))
  assert 'all arrays of 5 channels' in surveyed.sentences()[1]
  changes = choose.choose(surveyed, devices=1, cores=1).changes
  assert changes['data.channels'] == len(changes['data.mean']) == 5


def test_survey_opens_a_few_of_many(tmp_path):
  for i in range(survey._FEWEST + 4):
    save(tmp_path / f'{i}.png', size=(8, 8))
  surveyed = survey.survey_folder(str(tmp_path), seconds=0)
  assert surveyed.opened == survey._FEWEST < len(surveyed)
  assert surveyed.sentences()[1].startswith('16 of them were opened')


def test_mistakes_are_said(tmp_path, classes):
  with pytest.raises(UserError, match='There is no folder'):
    survey.survey_folder(str(tmp_path / 'nothing'))
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match='There is no image in'):
    survey.survey_folder(str(tmp_path / 'empty'))
  (tmp_path / 'broken').mkdir()
  (tmp_path / 'broken/a.jpg').write_bytes(b'')
  with pytest.raises(UserError, match='None of the 1 images that were opened'):
    survey.survey_folder(str(tmp_path / 'broken'))
  with pytest.raises(UserError, match='is a bucket'):
    survey.survey_folder('gs://bucket/images')


def test_steps_are_bounded_by_time_and_by_epochs(classes):
  choice = choose.choose(survey.survey_folder(str(classes)), devices=1, cores=2)
  choice.images, choice.changes['batch_size'] = 2000, 64
  for seconds, minutes, steps, words in (
    (0.05, 5, 6000, 'as many as 5 minutes have'),
    (0.001, 60, choose.MAX_EPOCHS * 2000 // 64 // 100 * 100, 'repeat'),
    (2.0, 5, choose.MIN_STEPS, 'fewer would teach'),
  ):
    assert words in choose.choose_steps(choice, seconds, minutes)
    assert choice.changes['total_steps'] == steps
    assert choice.changes['optim.warmup_steps'] == steps // 20
    assert choice.changes['health.every_steps'] == steps // 20


@pytest.mark.parametrize('folder', ['a b', 'new\\x', '\\N', '"""', 'end\\'])
def test_a_folder_may_have_any_name(folder):
  command = f'python -m ijepa_jax --workdir={shlex.quote(folder)}'
  choice = choose.Choice({'data.path': folder}, {}, 10)
  module = ast.parse(write.recipe(choice, command, 'photos'))
  assert command in ast.get_docstring(module)


def test_links_hold_out_some_of_each_class(classes, tmp_path):
  surveyed = survey.survey_folder(str(classes))
  counts = write.link(surveyed, tmp_path / 'links')
  assert counts == {'train': 16, 'val': 3}
  held_out = {p.parent.name for p in (tmp_path / 'links/val').rglob('*.png')}
  assert held_out == {'cat', 'dog'}
  linked = list((tmp_path / 'links').rglob('*.*'))
  assert len(linked) == 19 and all(p.is_symlink() for p in linked)
  assert 'broken.jpg' not in [p.name for p in linked]
  assert write.link(surveyed, tmp_path / 'links') == counts  # once more
  (tmp_path / 'links/train/mine.png').write_bytes(b'')
  with pytest.raises(UserError, match='is in the way'):
    write.link(surveyed, tmp_path / 'links')


@pytest.fixture
def run_start(tmp_path, monkeypatch, capsys):
  """(folder, *flags) -> the lines that are printed, and the config."""

  def run(folder, *arguments, seconds=(0.05, 0.0)):
    monkeypatch.setattr(measure, 'step_seconds', lambda *_: seconds)
    monkeypatch.setattr(jax, 'device_count', lambda: 1)
    workdir = tmp_path / 'run'
    argv = ['start', str(folder), f'--workdir={workdir}', *arguments]
    with monkeypatch.context() as patch:
      for name in 'workdir', 'minutes', 'go':
        flag = start.FLAGS[name]
        patch.setattr(flag, '_value', flag.value)
      start.main(flags.FLAGS(argv))
    spec = importlib.util.spec_from_file_location('r', workdir / 'recipe.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return capsys.readouterr().out, module.get_config()

  return run


def test_start_on_classes(classes, run_start, tmp_path):
  out, config = run_start(classes)
  assert '20 images are few' in out
  assert 'Linked, not copied' in out and '16 in train and 3 in val' in out
  assert f'--config={tmp_path}/run/recipe.py' in out
  assert config.probe.split == 'val' and config.probe.every_steps
  run = make_run(config, jax.devices('cpu')[:1])
  assert len(run.source) == 16
  assert len(run.open_source(split='val')) == 3


def test_start_on_a_flat_folder(tmp_path, run_start):
  for i in range(4):
    save(tmp_path / f'flat/{i}.png')
  out, config = run_start(tmp_path / 'flat')
  assert 'Linked' not in out and 'probe' not in out
  assert not config.probe.every_steps and config.health.every_steps
  assert config.data.path == str(tmp_path / 'flat')


def test_start_packs_large_images(tmp_path, run_start, monkeypatch):
  for i in range(4):
    save(tmp_path / f'flat/{i}.png', size=(300, 250))
  out, config = run_start(tmp_path / 'flat', seconds=(0.05, 0.8))
  assert 'Large images' in out and '-m ijepa_jax.data.pack folder:' in out
  assert config.data.source == 'arrayrecord'
  # By the time of a step that waits for nothing.
  assert '10 ms here' in out


def test_start_refuses_a_workdir_that_has_a_run(classes, run_start, tmp_path):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run/config.json').write_text(json.dumps({}))
  with pytest.raises(SystemExit, match='holds a run already'):
    run_start(classes)


def test_go_runs_the_command(classes, run_start, monkeypatch):
  calls = []
  monkeypatch.setattr(os, 'execv', lambda *args: calls.append(args))
  run_start(classes, '--go')
  ((program, arguments),) = calls
  assert program == arguments[0] == sys.executable
  assert arguments[1:3] == ['-m', 'ijepa_jax']
  assert arguments[3].endswith('run/recipe.py')


def test_steps_are_timed_on_the_images(images, monkeypatch, one_device):
  c = photos.get_config()
  c.batch_size, c.data.path, c.data.workers, c.model.depth = (
    8,
    str(images),
    0,
    1,
  )
  batches = []

  def compile_steps(run, abstract):
    shapes = run.method.batch_shapes(run.batch_size, run.image_shape)

    def step(state, batch):
      batches.append(batch['image'].shape)
      return state, {}

    return {compile.batch_shape(run, shape): step for shape in shapes}

  monkeypatch.setattr(compile, 'compile_steps', compile_steps)
  seconds, share = measure.step_seconds(c, 0.0)
  assert seconds > 0 and 0 <= share <= 1
  assert set(batches) == {(8, 64, 64, 3)} and len(batches) >= 6
