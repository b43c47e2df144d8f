"""The notebooks run as they are, on a tiny model."""

import base64
import io
import os
import pathlib

import nbclient
import nbformat
import numpy as np
import PIL.Image

NOTEBOOKS = pathlib.Path(__file__).parents[1] / 'notebooks'


def test_features(small_run, tmp_path, monkeypatch):
  monkeypatch.setenv('IJEPA_CHECKPOINT', str(small_run))
  monkeypatch.setenv('IJEPA_JAX_CACHE', str(tmp_path))
  monkeypatch.setenv('IPYTHONDIR', str(tmp_path))
  monkeypatch.setenv('JUPYTER_RUNTIME_DIR', str(tmp_path))
  monkeypatch.delenv('MPLBACKEND', raising=False)  # the kernel's own, inline
  one = ' --xla_force_host_platform_device_count=1'  # the last one counts
  monkeypatch.setenv('XLA_FLAGS', os.environ['XLA_FLAGS'] + one)
  notebook = nbformat.read(NOTEBOOKS / 'features.ipynb', as_version=4)
  cells = [c for c in notebook.cells if c.cell_type == 'code']
  assert not any(c.outputs for c in cells)  # none are committed
  install, *cells = cells
  assert install.metadata.tags == ['install']
  notebook.cells = cells
  nbclient.NotebookClient(
    notebook,
    timeout=120,
    kernel_name='python3',
    resources={'metadata': {'path': str(NOTEBOOKS)}},
  ).execute()
  shapes, maps, neighbours = (c.outputs for c in cells[-3:])
  assert 'tokens (6, 36, 64)' in ''.join(o.text for o in shapes)
  for outputs in maps, neighbours:
    (png,) = (o.data['image/png'] for o in outputs if 'data' in o)
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(png)))
    assert np.asarray(picture.convert('L')).std() > 20
