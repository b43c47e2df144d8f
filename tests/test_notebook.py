"""The notebooks run as they are, on a tiny model, and hold small outputs."""

import base64
import io
import itertools
import os
import shutil

import nbclient
import nbformat
import numpy as np
import PIL.Image
import pytest

from notebooks import execute as notebooks

NAMES = 'evaluate', 'features', 'pretrain', 'see'


def read(name):
  return nbformat.read(notebooks.FOLDER / f'{name}.ipynb', as_version=4)


def execute(name, tmp_path, monkeypatch, changes=(), **environment):
  """Runs a notebook as it is, but for its installation.

  Args:
    changes: pairs of a text of its cells, and what stands there to be quick.
    **environment: that it reads.

  Returns:
    Its cells of code.
  """
  for variable, value in environment.items():
    monkeypatch.setenv(variable, str(value))
  for variable in 'IJEPA_JAX_CACHE', 'IPYTHONDIR', 'JUPYTER_RUNTIME_DIR':
    monkeypatch.setenv(variable, str(tmp_path))
  monkeypatch.delenv('MPLBACKEND', raising=False)  # the kernel's own, inline
  one = ' --xla_force_host_platform_device_count=1'  # the last one counts
  monkeypatch.setenv('XLA_FLAGS', os.environ['XLA_FLAGS'] + one)
  notebook = read(name)
  for old, new in changes:
    (cell,) = (c for c in notebook.cells if old in c.source)
    cell.source = cell.source.replace(old, new)
  notebooks.execute(notebook, timeout=600)  # of a busy machine
  return [c for c in notebook.cells if c.cell_type == 'code']


def pictures_of(cell) -> list[np.ndarray]:
  """The pictures that a cell shows, in gray."""
  pngs = (o.data['image/png'] for o in cell.outputs if 'data' in o)
  return [
    np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(png))).convert('L'))
    for png in pngs
  ]


def text_of(cell) -> str:
  return ''.join(o.get('text', '') for o in cell.outputs)


def test_pretrain(tmp_path, monkeypatch):
  small = "'--config=tiny', '--config.data.count=64'"
  small += ", '--config.probe.train_count=64', '--config.probe.test_count=32'"
  *_, command, training, end = execute(
    *('pretrain', tmp_path, monkeypatch),
    [("'--config=tiny'", small), ('steps // 10', 'steps // 2')],
    IJEPA_RUN=tmp_path / 'run',
    IJEPA_STEPS=40,
  )
  assert '--config.optim.warmup_steps=2 ' in text_of(command)
  assert 'step 40 of 40: complete' in text_of(training)
  assert 'target encoder, trained' in text_of(end)
  assert any(word in text_of(end) for word in ('Good:', 'Mixed:', 'Bad:'))
  for cell in training, end:
    (picture,) = pictures_of(cell)
    assert picture.std() > 20


def test_pretrain_says_what_failed(tmp_path, monkeypatch):
  with pytest.raises(nbclient.exceptions.CellExecutionError) as error:
    execute(
      *('pretrain', tmp_path, monkeypatch),
      IJEPA_IMAGES=tmp_path / 'nowhere',
      IJEPA_RUN=tmp_path / 'run',
    )
  assert 'There is no folder' in str(error.value)


@pytest.mark.parametrize('folder', [False, True])
def test_evaluate(folder, small_run, images, tmp_path, monkeypatch):
  """Of drawn pictures one task, and of a folder."""
  run = tmp_path / 'run'
  shutil.copytree(small_run, run)
  *_, table, figure = execute(
    *('evaluate', tmp_path, monkeypatch),
    [
      ('TRAIN, TEST = 4000, 1000', 'TRAIN, TEST = 128, 64'),
      (", 'hue': 'scenes_hue', 'count': 'crowd_count'", ''),
      ('PASSES = 40_000', 'PASSES = 256'),
    ],
    IJEPA_CHECKPOINT=run,
    IJEPA_IMAGES=images if folder else '',
  )
  name = 'label' if folder else 'class'
  rows = [
    line.split()
    for line in text_of(table).splitlines()
    if line.startswith(f'{name}, ')
  ]
  assert [row[1] for row in rows] == ['knn', 'logistic', 'attentive']
  for row in rows:
    assert all(0 < float(cell) <= 100 for cell in row[2:])
    assert len(row) == 6
  (picture,) = pictures_of(figure)
  assert picture.std() > 20


def test_features(small_run, tmp_path, monkeypatch):
  cells = execute('features', tmp_path, monkeypatch, IJEPA_CHECKPOINT=small_run)
  shapes, *shown = cells[-3:]
  assert 'tokens (6, 36, 64)' in text_of(shapes)
  for cell in shown:
    (picture,) = pictures_of(cell)
    assert picture.std() > 20


def test_see(small_run, tmp_path, monkeypatch):
  """On a run, with few steps."""
  line = 'config.init_from = RUN'
  small = (
    'config.visualize.update(images=24, judged=8, sample_steps=2)\n'
    'config.generator.update(width=16, depth=1, heads=2)'
  )
  *_, figure, tables = execute(
    *('see', tmp_path, monkeypatch, [(line, f'{line}\n{small}')]),
    IJEPA_RUN=small_run,
    IJEPA_OUT=tmp_path / 'out',
    IJEPA_STEPS=4,
  )
  (picture,) = pictures_of(figure)
  assert picture.std() > 20
  assert 'no vector' in text_of(tables)
  assert (tmp_path / 'out/index.html').exists()


def test_all_are_installed_alike():
  pairs = [
    (words.source, cell.source)
    for name in NAMES
    for words, cell in itertools.pairwise(read(name).cells)
    if 'install' in cell.metadata.get('tags', ())
  ]
  assert len(pairs) == len(NAMES)
  assert len(set(pairs)) == 1


@pytest.mark.parametrize('name', NAMES)
def test_outputs_are_kept_and_small(name):
  notebook = read(name)
  data = [o.get('data', {}) for o in notebooks.outputs(notebook)]
  assert any('image/png' in kinds for kinds in data)
  assert not notebooks.absolute_paths(notebook)
  path = notebooks.FOLDER / f'{name}.ipynb'
  assert path.stat().st_size < 400_000
  for cell in notebook.cells:
    if 'install' in cell.metadata.get('tags', ()):
      assert not cell.outputs
