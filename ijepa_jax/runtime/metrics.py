"""The metrics of a run: metrics.jsonl and TensorBoard.

workdir/metrics.jsonl   one strict JSON object a line: {"step": 12, ...};
                        a number that is not finite is null
workdir/tensorboard/    the same numbers as scalars, and pictures
workdir/pictures/       the newest of each picture, a PNG

A bucket can't be appended to. With a workdir on one (gs://...) both are in a
temporary folder of this machine, and `MetricWriter.sync` copies them.
"""

import contextlib
import json
import math
import pathlib
import shutil
import tempfile

import numpy as np
from absl import logging
from etils import epath
from PIL import Image

from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files


def read(workdir) -> list[dict]:
  """Returns the lines of metrics.jsonl, oldest first; [] if there is no file.

  A last line that a kill cut short is left out; null becomes None.
  """
  path = epath.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return []
  with path.open() as lines:
    return [row for line in lines if (row := _parse(line))]


class MetricWriter:
  """Writes metrics.jsonl and TensorBoard; a context manager."""

  def __init__(
    self,
    workdir,
    *,
    start_step: int = 0,
    tensorboard: bool = True,
    enabled: bool = True,
  ):
    """Opens the files for the steps after `start_step`.

    A killed run may have written lines beyond its last checkpoint: lines of
    steps after `start_step`, and one cut short, are dropped.

    Args:
      workdir: made if needed.
      start_step: of the checkpoint that the run goes on from, or 0.
      tensorboard: write TensorBoard scalars too.
      enabled: False, on processes other than 0: nothing is written.
    """
    self._file = self._board = self._remote = None
    self.folder = None  # on this machine, where the files are written
    if not enabled:
      return
    local = pathlib.Path(workdir)
    if '://' in str(workdir):
      self._remote = epath.Path(workdir)
      local = pathlib.Path(tempfile.mkdtemp(prefix='ijepa-metrics-'))
      remote = self._remote / 'metrics.jsonl'
      if remote.exists():
        (local / 'metrics.jsonl').write_bytes(remote.read_bytes())
    local.mkdir(parents=True, exist_ok=True)
    self.folder = local
    path = local / 'metrics.jsonl'
    if path.exists():
      with path.open(encoding='utf-8') as lines:
        lines_to_keep = [
          line.rstrip('\n') + '\n'
          for line in lines
          if (row := _parse(line)) and row['step'] <= start_step
        ]
      files.atomic_write_text(epath.Path(path), ''.join(lines_to_keep))
    # Line buffered, so that a kill loses no finished line.
    self._file = path.open('a', buffering=1, encoding='utf-8')
    if tensorboard:
      import tensorboardX  # late, since it takes a fifth of a second
      from tensorboardX.proto.summary_pb2 import Summary

      self._summary = Summary
      self._board = tensorboardX.SummaryWriter(
        str(local / 'tensorboard'), purge_step=start_step + 1, flush_secs=30
      )

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes the metrics of a step, the number of finished steps.

    Raises:
      UserError: the disk is full, or fails.
    """
    if self._file is None:
      return
    numbers = {name: float(value) for name, value in values.items()}
    row = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
    line = json.dumps({'step': int(step), **row}, allow_nan=False)
    try:
      self._file.write(line + '\n')
    except OSError as error:
      raise UserError(
        f'{self._file.name} cannot be written ({error.strerror}): make room, '
        'and the same command goes on from the newest checkpoint.'
      ) from error
    if self._board:
      # One event a step: add_scalar makes one a number, in six times the time.
      values = [
        self._summary.Value(tag=name, simple_value=value)
        for name, value in row.items()
        if value is not None
      ]
      self._board.file_writer.add_summary(self._summary(value=values), step)

  def picture(self, name: str, step: int, image_HWC: np.ndarray) -> None:
    """Writes a picture, uint8 [H, W, 3], over the one of an earlier step."""
    if self._file is None:
      return
    try:
      with files.atomic_write(self.folder / 'pictures' / f'{name}.png') as path:
        Image.fromarray(image_HWC).save(path, 'PNG')
    except OSError as error:
      logging.warning('The picture %s is not written: %s.', name, error)
    if self._board is not None:
      self._board.add_image(name, image_HWC, step, dataformats='HWC')

  def sync(self) -> None:
    """Copies both to a workdir on a bucket; call it after each checkpoint."""
    if self._remote is None:
      return
    if self._board is not None:
      self._board.flush()
    for path in self.folder.rglob('*'):
      if path.is_file():
        remote = self._remote / path.relative_to(self.folder)
        remote.parent.mkdir(parents=True, exist_ok=True)
        remote.write_bytes(path.read_bytes())

  def close(self) -> None:
    """Closes and copies both."""
    if self._file is not None:
      with contextlib.suppress(OSError):  # of a full disk: `write` has said it
        self._file.close()
    if self._board is not None:
      self._board.close()
      self._board = None
    self.sync()
    if self._remote is not None:
      shutil.rmtree(self.folder)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def _parse(line: str) -> dict | None:
  try:
    row = json.loads(line)
  except json.JSONDecodeError:
    return None
  return row if isinstance(row, dict) and 'step' in row else None
