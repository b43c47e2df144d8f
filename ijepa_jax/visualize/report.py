"""The job `visualize`: from a config to index.html and report.json."""

import json

import jax
import numpy as np

from ijepa_jax.data import decode, loader
from ijepa_jax.data.sources.subset import Subset
from ijepa_jax.data.transforms import crop
from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files, locks, sharding
from ijepa_jax.runtime.config_checks import check_numbers
from ijepa_jax.runtime.progress import text_table
from ijepa_jax.visualize import (
  drawings,
  mask_coverage,
  page,
  retrieval,
  subject,
)


def run(config, workdir: str) -> dict:
  """Draws what the predictor predicts.

  Args:
    config: see configs/visualize.py.
    workdir: of index.html and report.json; '': <init_from>/visualize.

  Returns:
    The content of report.json.

  Raises:
    UserError: one sentence with the value, the limit and what to do.
  """
  if jax.process_count() > 1:
    raise UserError(
      f'There are {jax.process_count()} processes, and job visualize takes '
      'one: start it by itself, on as many devices as it sees.'
    )
  path, out = _places(config, workdir)
  check_numbers(config)
  mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
  decode.limit_pixels(config.data.max_pixels)
  model = subject.load_subject(path, mesh, step=config.step)
  images = subject.open_images(model, config.data, config.visualize.images)
  batches = _read(config, model, images, mesh)
  count = min(config.visualize.images, len(images))
  sections, numbers = [], {'model': model.name, 'images': count}
  coverage = mask_coverage.coverage(
    model.method.sampler, model.grid, config.visualize.draws, config.seed
  )
  shown = {k: x[: config.visualize.shown] for k, x in batches[0].items()}
  sections.append(drawings.masks(model, coverage, shown))
  vectors = _compute(model, batches, mesh, count)
  pixels = np.concatenate([b['image'] for b in batches])[:count]
  sections.append(drawings.colors(model, shown, vectors['tokens']))
  sections.append(drawings.maps(model, shown, vectors))
  if model.has_predictor:
    blocks = retrieval.Blocks.of_images(
      vectors['position'], vectors['predicted'], vectors['true']
    )
    hits = retrieval.all_hits(blocks, vectors['tokens'])
    numbers['retrieval'] = {name: h.numbers() for name, h in hits.items()}
    sections.append(
      drawings.retrieval_section(
        model, blocks, hits, pixels, config.visualize.shown
      )
    )
  with locks.only_writer(out, wait=True):
    files.atomic_write_text(
      out / 'index.html', page.document(model.name, *sections)
    )
    files.atomic_write_text(out / 'report.json', json.dumps(numbers, indent=2))
  print(f'\n{model.name}\n\n{_words(numbers)}\n\n{out}/index.html')
  return numbers


def _places(config, workdir: str):
  """The path that is looked at, and the folder that is written."""
  if not config.init_from:
    raise UserError('init_from is empty: set it to the --workdir of a run.')
  path = files.resolve(config.init_from)
  if not path.exists():
    raise UserError(f'There is nothing at init_from = {config.init_from}.')
  if workdir:
    return path, files.resolve(workdir)
  if path.is_dir():
    return path, path / 'visualize'
  return path, path.parent / f'{path.name}.visualize'


def _read(config, model, images, mesh) -> list[dict]:
  """All images in batches, with masks, on the host."""
  if len(images) < 2:
    raise UserError(
      f'There are {len(images)} images to look at, and 2 are needed: name '
      'others in data.path, or take more.'
    )
  count = min(config.visualize.images, len(images))
  rows = np.linspace(0, len(images) - 1, count).astype(int)
  size = model.image_size
  batch_size = -(-min(config.batch_size, count) // mesh.size) * mesh.size
  dataset = loader.local_batches(
    Subset(images, rows),
    model.method.sampler,
    transform=crop.CenterCrop(size, max(size)),
    batch_size=batch_size,
    seed=config.seed,
    channels=model.channels,
    one_pass=True,
    workers=config.data.workers,
    max_bad_share=0.0,
  )
  with loader.prefetch(dataset, lambda batch: batch) as batches:
    return list(batches)


def _compute(model, batches, mesh, count):
  """Vectors of all images: see retrieval.compiled, and 'position'."""
  method, parts = model.method, []
  run = retrieval.compiled(method, model.has_predictor)
  for batch in batches:
    arrays = sharding.to_global({k: batch[k] for k in method.batch_keys}, mesh)
    vectors = jax.device_get(run(model.params, model.target, arrays))
    parts.append({**vectors, 'position': batch['targets']})
  return {
    k: np.concatenate([part[k] for part in parts])[:count] for k in parts[0]
  }


def _words(numbers) -> str:
  """What the page says in numbers, for the terminal."""
  if 'retrieval' not in numbers:
    return 'No predictor: pictures of the encoder alone.'
  rows = [['own block first, %', '', 'chance']]
  for name, h in numbers['retrieval'].items():
    rows.append(
      [name, f'{100 * h["at_1"]:.1f}', f'{100 * h["chance_at_1"]:.1f}']
    )
  return text_table(rows)
