"""The part of the job that trains: from a model to numbers and figure."""

import dataclasses
from typing import Any

import numpy as np

from ijepa_jax.errors import UserError, one_of
from ijepa_jax.runtime import files, metrics
from ijepa_jax.visualize.generator import (
  blocks,
  figure,
  numbers,
  readings,
  sampler,
  train,
)
from ijepa_jax.visualize.subject import Subject


@dataclasses.dataclass(frozen=True)
class Generated:
  """What the page shows of a generator.

  Attributes:
    numbers: for JSON, see numbers.py.
    pictures: {'png', 'pdf'}, see figure.draw_figure.
    rows: metrics.jsonl of its training.
  """

  numbers: dict[str, Any]
  pictures: dict[str, bytes]
  rows: list[dict]


def check(c, mesh) -> None:
  """Refuses settings that do not fit, before anything is computed.

  Args:
    c: section `generator` of configs/visualize.py.
    mesh: the devices.

  Raises:
    UserError: one sentence with the value, the limit and what to do.
  """
  if c.image_size % c.patch_size or c.width % c.heads or c.width % 4:
    raise UserError(
      f'generator.image_size is {c.image_size}, patch_size {c.patch_size}, '
      f'width {c.width} and heads {c.heads}: take a size that is a multiple of '
      'patch_size and a width that is one of heads and of 4.'
    )
  if c.batch_size % mesh.size:
    raise UserError(
      f'generator.batch_size is {c.batch_size}: take a multiple of the '
      f'{mesh.size} devices.'
    )
  one_of('generator.dtype', c.dtype, ('float32', 'bfloat16'))


def generate(
  config, model: Subject, source, images, label, mesh, out
) -> Generated:
  """Trains a generator, draws with it, and reads what it drew.

  Args:
    config: see configs/visualize.py.
    model: with a predictor.
    source: images to learn from.
    images: uint8 [n, H, W, C], others, to draw blocks of.
    label: int32 [n, L], theirs.
    mesh: devices that share the work.
    out: folder of the page; the training is kept in it.

  Raises:
    Stopped: the training was asked to stop, and is saved.
  """
  c, v = config.generator, config.visualize
  options = {
    'batch_size': config.batch_size,
    'workers': config.data.workers,
    'cache_dir': config.cache_dir or files.cache_dir(),
  }
  data = blocks.stored_blocks(
    model,
    source,
    mesh,
    # No more than a short training sees.
    count=min(c.blocks, c.total_steps * c.batch_size),
    size=c.image_size,
    seed=config.seed,
    **options,
  )
  run = train.make_run(c, data, mesh, config.seed)
  judged = readings.judged_blocks(
    model,
    images[: v.judged],
    label[: v.judged],
    mesh,
    seed=config.seed,
    batch_size=config.batch_size,
  )
  folder = train.folder_of(out, data, c, config.seed)
  held_out = blocks.BlockData(
    judged.vector[:, None],
    judged.real(c.image_size)[:, None],
    judged.label,
    '',
  )
  state = train.train(run, data, held_out, folder, c.every_steps)
  pen = sampler.Pen(run, state.target, v.sample_steps)
  drawn = readings.drawn_blocks(pen, judged, v.seeds)
  measured = numbers.measured(model, judged, drawn, mesh, config.batch_size)
  measured['labels'] = numbers.label_accuracies(
    source.labels, data, judged, drawn, config.seed
  )
  pictures = figure.draw_figure(
    judged,
    _with_shared_noise(pen, judged, drawn, v.shown),
    data.block_pixels(_nearest(data, judged.vector[: v.shown])),
    model.method.encoder.patch_size,
    v.shown,
  )
  measured |= {'steps': int(state.step), 'blocks': len(data)}
  return Generated(measured, pictures, metrics.read(folder))


def _with_shared_noise(pen, judged, drawn, count: int) -> readings.Drawn:
  """The first blocks again: seed s has the same noise for each of them."""
  # Of the others that are shown beside them too.
  count = min(count + drawn.places, len(judged))
  seeds = drawn.samples.shape[1]
  vectors = np.repeat(judged.vector[:count], seeds, axis=0)
  noise = np.tile(np.arange(seeds), count)
  shape = count, *drawn.samples.shape[1:]
  return dataclasses.replace(
    drawn,
    samples=pen.draw(vectors, noise).reshape(shape),
    null=pen.draw(judged.vector[:count], [0] * count, known=False)[:, None],
  )


def _nearest(data: blocks.BlockData, vector_nD) -> np.ndarray:
  """The training block whose vector is nearest to each, by number: int [n]."""
  # All vectors have one length, so the product is the cosine.
  best, number = np.full(len(vector_nD), -np.inf), np.zeros(len(vector_nD), int)
  step = 65_536
  for start in range(0, len(data), step):
    rows = np.arange(start, min(start + step, len(data)))
    cosine_nN = vector_nD @ data.block_vectors(rows).T
    row = cosine_nN.argmax(1)
    value = cosine_nN[np.arange(len(row)), row]
    number = np.where(value > best, start + row, number)
    best = np.maximum(value, best)
  return number
