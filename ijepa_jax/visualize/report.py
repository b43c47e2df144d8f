"""The job `visualize`: from a config to index.html and report.json."""

import json

import jax
import numpy as np
from absl import logging

from ijepa_jax.data import decode
from ijepa_jax.data.sources.subset import Subset
from ijepa_jax.errors import UserError
from ijepa_jax.pretrained import shipped
from ijepa_jax.runtime import files, locks, metrics, sharding
from ijepa_jax.runtime.config_checks import check_numbers
from ijepa_jax.runtime.progress import text_table
from ijepa_jax.visualize import gallery, mask_coverage, retrieval, subject
from ijepa_jax.visualize.generator import blocks, job
from ijepa_jax.visualize.page import (
  generator_section,
  markup,
  sections,
  verdict,
)

_FEWEST_JUDGED = 4  # blocks, whose spread and ranks say something


def run(config, workdir: str) -> dict:
  """Draws what the predictor predicts.

  The page is written at once, and again with what the generator draws.

  Args:
    config: see configs/visualize.py.
    workdir: of index.html, samples.png, samples.pdf, report.json and the
      training of the generator; '': <init_from>/visualize.

  Returns:
    The content of report.json.

  Raises:
    UserError: one sentence with the value, the limit and what to do.
    Stopped: the training of the generator was asked to stop, and is saved.
  """
  if jax.process_count() > 1:
    raise UserError(
      f'There are {jax.process_count()} processes, and job visualize takes '
      'one: start it by itself, on as many devices as it sees.'
    )
  path, out = shipped.places(config.init_from, workdir, 'visualize')
  check_numbers(config)
  mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
  decode.limit_pixels(config.data.max_pixels)
  job.check(config.generator, mesh)
  model = subject.load_subject(path, mesh, step=config.step)
  images = subject.open_images(model, config.data, config.visualize.images)
  seen = gallery.read_gallery(
    model,
    images.gallery,
    mesh,
    count=config.visualize.images,
    batch_size=config.batch_size,
    seed=config.seed,
    workers=config.data.workers,
  )
  numbers, parts = _at_once(config, model, seen, path)
  _write(out, model, numbers, parts)
  generated = _generated(config, model, images, seen, mesh, out)
  if generated:
    numbers['generator'] = generated.numbers
    parts.insert(0, generator_section.section(generated))
    _write(out, model, numbers, parts, generated.pictures)
  _, sentences = verdict.verdict(numbers, model.method)
  words = [model.name, _words(numbers), *sentences, f'{out}/index.html']
  print('\n' + '\n\n'.join(words))
  return numbers


def _at_once(config, model, seen: gallery.Gallery, path):
  """What needs no training: numbers and sections of the page."""
  v = config.visualize
  numbers = {'model': model.name, 'images': len(seen)}
  coverage = mask_coverage.coverage(
    model.method.sampler, model.grid, v.draws, config.seed
  )
  parts = [
    sections.masks(model, coverage, seen, v.shown),
    sections.colors(model, seen, v.shown),
    sections.maps(model, seen, v.shown),
  ]
  if model.has_predictor:
    numbers['health'] = seen.signals
    hits = retrieval.all_hits(seen.blocks, seen.vectors['tokens'])
    numbers['retrieval'] = {name: h.numbers() for name, h in hits.items()}
    parts.append(sections.retrieval_section(model, seen, hits, v.shown))
  rows = metrics.read(path) if path.is_dir() else []
  if rows or seen.signals:
    parts.append(sections.health(rows, seen.signals))
  return numbers, parts


def _generated(config, model, images, seen, mesh, out):
  """What a generator draws; None where it is off or there can be none."""
  if not config.generator.total_steps or not model.has_predictor:
    return None
  columns = model.grid[1]
  if not all(blocks.is_box(block, columns) for block in seen.targets[0]):
    logging.warning(
      'The targets of mask.sampler %r are no rectangles: no generator.',
      model.method.sampler.kind,
    )
    return None
  train, judged = images.open_train(), config.visualize.judged
  if train.listing == images.gallery.listing:
    # What is judged is not learned from.
    judged = min(judged, len(train) // 2)
    others = np.setdiff1d(np.arange(len(train)), seen.rows[:judged])
    train = Subset(train, others)
  if min(judged, len(seen)) < _FEWEST_JUDGED:
    logging.warning(
      '%d images are too few to learn from and to judge by: no generator.',
      len(images.gallery),
    )
    return None
  return job.generate(
    config, model, train, seen.image[:judged], seen.label[:judged], mesh, out
  )


def _write(out, model, numbers, parts, pictures=None) -> None:
  grade, sentences = verdict.verdict(numbers, model.method)
  banner = markup.banner(grade, sentences)
  with locks.only_writer(out, wait=True):
    files.atomic_write_text(
      out / 'index.html', markup.document(model.name, banner, *parts)
    )
    files.atomic_write_text(out / 'report.json', json.dumps(numbers, indent=2))
    for kind, picture in (pictures or {}).items():
      (out / f'samples.{kind}').write_bytes(picture)


def _words(numbers) -> str:
  """What the page says in numbers, for the terminal."""
  if 'retrieval' not in numbers:
    return 'No predictor: pictures of the encoder alone.'
  rows = [['own block first, %', '', 'chance']]
  for name, h in numbers['retrieval'].items():
    rows.append(
      [name, f'{100 * h["at_1"]:.1f}', f'{100 * h["chance_at_1"]:.1f}']
    )
  tables = [text_table(rows)]
  if 'generator' in numbers:
    tables += generator_section.text_tables(numbers['generator'])
  return '\n\n'.join(tables)
