"""The notebooks run as they are, on a tiny model."""

import base64
import io
import os
import pathlib
import shutil

import nbclient
import nbformat
import numpy as np
import PIL.Image

NOTEBOOKS = pathlib.Path(__file__).parents[1] / 'notebooks'


def execute(name, tmp_path, monkeypatch, changes=('', ''), **environment):
  """Runs a notebook as it is, but for its installation; returns its cells.

  Args:
    changes: a text of its cells, and what stands there to be quick.
    **environment: that it reads.
  """
  for variable, value in environment.items():
    monkeypatch.setenv(variable, str(value))
  for variable in 'IJEPA_JAX_CACHE', 'IPYTHONDIR', 'JUPYTER_RUNTIME_DIR':
    monkeypatch.setenv(variable, str(tmp_path))
  monkeypatch.delenv('MPLBACKEND', raising=False)  # the kernel's own, inline
  one = ' --xla_force_host_platform_device_count=1'  # the last one counts
  monkeypatch.setenv('XLA_FLAGS', os.environ['XLA_FLAGS'] + one)
  notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
  cells = [c for c in notebook.cells if c.cell_type == 'code']
  assert not any(c.outputs for c in cells)  # none are committed
  install, *cells = cells
  for cell in cells:
    cell.source = cell.source.replace(*changes) if changes[0] else cell.source
  assert install.metadata.tags == ['install']
  notebook.cells = cells
  nbclient.NotebookClient(
    notebook,
    timeout=240,
    kernel_name='python3',
    resources={'metadata': {'path': str(NOTEBOOKS)}},
  ).execute()
  return cells


def picture_of(outputs) -> np.ndarray:
  """The one picture of a cell, in grey."""
  (png,) = (
    o.data['image/png'] for o in outputs if 'image/png' in o.get('data', ())
  )
  return np.asarray(
    PIL.Image.open(io.BytesIO(base64.b64decode(png))).convert('L')
  )


def test_features(small_run, tmp_path, monkeypatch):
  cells = execute(
    'features.ipynb', tmp_path, monkeypatch, IJEPA_CHECKPOINT=small_run
  )
  shapes, maps, neighbours = (c.outputs for c in cells[-3:])
  assert 'tokens (6, 36, 64)' in ''.join(o.text for o in shapes)
  for outputs in maps, neighbours:
    assert picture_of(outputs).std() > 20


def test_see(small_run, tmp_path, monkeypatch):
  """On a run, with few steps."""
  run = tmp_path / 'run'
  shutil.copytree(small_run, run)
  line = 'config.init_from = str(run)'
  small = (
    'config.visualize.update(images=24, judged=8, sample_steps=2)\n'
    'config.generator.update(width=16, depth=1, heads=2)'
  )
  cells = execute(
    *('see.ipynb', tmp_path, monkeypatch, (line, f'{line}\n{small}')),
    IJEPA_RUN=run,
    IJEPA_STEPS=4,
  )
  figure, tables = (c.outputs for c in cells[-2:])
  assert picture_of(figure).std() > 20
  assert 'no vector' in ''.join(o.text for o in tables)
  assert (run / 'visualize/index.html').exists()
