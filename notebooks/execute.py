"""Executes notebooks and keeps their outputs in them.

    python notebooks/execute.py                  # all
    python notebooks/execute.py features see     # some

What they read from the environment, such as IJEPA_RUN, they read here too. The
cell that installs is left out. Pictures become small ones of few colors, and a
path of this repository becomes a relative one.
"""

import base64
import io
import pathlib
import re
import sys

import nbclient
import nbformat
import PIL.Image

FOLDER = pathlib.Path(__file__).resolve().parent
_ROOT = FOLDER.parent
_SIDE, _COLORS = 1200, 256  # of a picture, at most
_ABSOLUTE = re.compile(r'(?<![\w./:<])/[\w.-]+/[\w./-]+')


def execute(notebook, timeout: float | None = None) -> None:
  """Runs all cells but those with the tag 'install', and keeps their outputs.

  Args:
    notebook: of nbformat.
    timeout: seconds that a cell may take; None: any.

  Raises:
    nbclient.exceptions.CellExecutionError: a cell has failed.
  """
  metadata = notebook.metadata.copy()
  nbclient.NotebookClient(
    notebook,
    timeout=timeout,
    kernel_name='python3',
    record_timing=False,
    coalesce_streams=True,
    skip_cells_with_tag='install',
    resources={'metadata': {'path': str(FOLDER)}},
  ).execute()
  notebook.metadata = metadata


def outputs(notebook):
  """Yields the outputs of all cells."""
  for cell in notebook.cells:
    yield from cell.get('outputs', ())


def absolute_paths(notebook) -> list[str]:
  """Returns the paths of a machine that its outputs name."""
  found = []
  for output in outputs(notebook):
    texts = [output.get('text', ''), *output.get('traceback', ())]
    for kind, content in output.get('data', {}).items():
      texts += [content] if kind.startswith('text/') else []
    found += [path for text in texts for path in _ABSOLUTE.findall(text)]
  return found


def shrink(notebook) -> None:
  """Reduces the pictures, and makes paths of this repository relative."""
  for output in outputs(notebook):
    if 'text' in output:
      output.text = output.text.replace(str(_ROOT), '..')
    data = output.get('data', {})
    for kind, content in data.items():
      if kind == 'image/png':
        data[kind] = _shrink_picture(content)
      elif kind.startswith('text/'):
        data[kind] = content.replace(str(_ROOT), '..')


def _shrink_picture(content: str) -> str:
  """Base64 of a PNG, of a smaller one."""
  picture = PIL.Image.open(io.BytesIO(base64.b64decode(content)))
  picture = picture.convert('RGB')
  picture.thumbnail((_SIDE, _SIDE))
  file = io.BytesIO()
  picture.quantize(_COLORS).save(file, 'PNG', optimize=True)
  return base64.b64encode(file.getvalue()).decode()


def main(names: list[str]) -> None:
  paths = [FOLDER / f'{name}.ipynb' for name in names]
  for path in paths or sorted(FOLDER.glob('*.ipynb')):
    notebook = nbformat.read(path, as_version=4)
    execute(notebook)
    shrink(notebook)
    if paths_of_machine := absolute_paths(notebook):
      sys.exit(
        f'{path.name} is left as it was: its outputs name '
        f'{", ".join(paths_of_machine)}.'
      )
    nbformat.write(notebook, path)
    print(f'{path.name}: {path.stat().st_size / 1000:.0f} kB', flush=True)


if __name__ == '__main__':
  main(sys.argv[1:])
