"""The accuracies that jobs left in a workdir, as tables for its card."""

import json
import re
from collections.abc import Iterator

from absl import logging
from etils import epath

from ijepa_jax.convert import provenance
from ijepa_jax.probes import verdict


def render(source) -> str:
  """Returns the card's section on <source>/report.json and its evals/*.json.

  It is '' where there are none; a file that can't be read is left out.
  """
  source = epath.Path(source)
  rows = []
  folder = source / 'evals'
  # Not by a glob, which would take the folder's own name for a pattern.
  for path in sorted(folder.iterdir()) if folder.is_dir() else ():
    if path.suffix == '.json':
      rows += _readable(path, _evaluation_rows)
  tables = []
  if rows:
    head = [['task', 'what', 'encoder', 'ours', 'paper']]
    tables.append('Accuracy in %.\n\n' + markdown_table(head + rows))
  if (source / 'report.json').exists():
    rows = _readable(source / 'report.json', _report_rows)
    if rows:
      tables.append(
        'At the end of training, on the middle of held-out images, without '
        "the evaluations' margin; accuracies in %.\n\n" + markdown_table(rows)
      )
  return '## Evaluation\n\n' + '\n\n'.join(tables) if tables else ''


def _readable(path, rows) -> list:
  """Returns `rows` of a JSON file; [] and a warning where it is broken."""
  try:
    return list(rows(json.loads(path.read_text())))
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    logging.warning('%s is left out of the card: %r.', path, error)
    return []


def _evaluation_rows(result: dict) -> Iterator[list]:
  """Yields a row for each accuracy of an evaluation's result."""
  # 'run, step 300, target encoder': the run is in the card's title.
  encoder = re.sub(r'^.*, (?=step \d+, )', '', result['checkpoint'], flags=re.S)
  count = result.get('training_examples')
  labels = f', {count} labels' if count else ''
  images = result.get('config', {}).get('data', {}).get('path', '')
  for name, accuracy in result['accuracy'].items():
    paper = result['paper'].get(name)
    candidates = _num_candidates(result, name)
    best = f', best of {candidates} on the test images'
    yield [
      result['task']
      + (f' ({provenance.public_name(images)})' if images else ''),
      name + labels + (best if candidates > 1 else ''),
      encoder,
      f'{100 * accuracy:.1f}',
      '-' if paper is None else f'{100 * paper:.1f}',
    ]


def _num_candidates(result: dict, name: str) -> int:
  """Returns of how many results this one is the best on the test images."""
  if 'sweep' in result:  # of kNN: one for each k and temperature
    return len(result['sweep'])
  layers = name.removeprefix('linear_')
  heads = result.get('heads', {})
  return sum(name == 'linear' or head.split()[0] == layers for head in heads)


def _report_rows(report: dict) -> list[list[str]]:
  """Returns the head and the rows of a training report."""
  rows = {k: v for k, v in report.items() if isinstance(v, dict)}
  return verdict.table_of(rows)


def markdown_table(rows) -> str:
  """Returns rows of cells as Markdown; the first row is the head."""
  lines = [
    '| ' + ' | '.join(str(x).replace('|', '/') for x in row) + ' |'
    for row in rows
  ]
  lines.insert(1, '|' + '---|' * len(rows[0]))
  return '\n'.join(lines)
