"""What a generator draws, and the numbers that say what the picture means."""

import numpy as np

from ijepa_jax.runtime import progress
from ijepa_jax.train import report
from ijepa_jax.visualize.generator.job import Generated
from ijepa_jax.visualize.page import markup


def section(generated: Generated) -> str:
  """The figure, its numbers, and how both are read."""
  n = generated.numbers
  spread = n['spread']
  top = max(np.max(spread['between_map']), np.max(spread['within_map']), 1e-9)
  maps = [
    markup.figure(
      markup.png(_grey(np.asarray(spread[key]) / top), 144),
      f'{words} (white: {top:.3f})',
    )
    for key, words in (
      ('between_map', 'variance between vectors'),
      ('within_map', 'variance over seeds of one vector'),
    )
  ]
  return markup.section(
    'What it draws',
    'A generator that was trained on frozen predictions draws the hidden block '
    'from one vector, the average prediction over that block, and from nothing '
    'else: no context, no position. What all samples of a row have in common '
    'is in the prediction; what differs is not. Then the controls: drawn '
    "without a vector, from another image's vector, the mean picture for the "
    'vector (a regressor), and the real block whose vector is nearest.',
    markup.embedded(
      generated.pictures['png'], 'Images, contexts, samples and controls'
    ),
    _words('How much is fixed', _SPREAD),
    markup.table(['', 'between / within'], _spread_rows(spread)),
    markup.row(maps),
    _words('Whether it is found again', _RANK),
    markup.table(*_rank_rows(n['rank'])),
    *_labels(n['labels']),
    _words('How much of the pixels', _EXPLAINED),
    markup.table(
      ['', 'share'], [[k, f'{100 * v:.1f}%'] for k, v in n['explained'].items()]
    ),
    _words('Its training', f'{n["steps"]} steps on {n["blocks"]} blocks.'),
    *_curves(generated.rows),
  )


_SPREAD = (
  'Variance of the pixels between vectors at one place, over the variance '
  'over seeds of one vector. Above 1, the vector decides more than chance; '
  'which part of the picture it decides is in the rows. The regressor says '
  'what a generator without fault would come to: far above that, samples vary '
  'too little; far below, it was trained too little.'
)
_RANK = (
  'A drawn block is pasted into ANOTHER image and encoded, and its features '
  'are compared with the vectors of all images at that place: how often the '
  'vector that it was drawn from is first, and among the first ten (in '
  'brackets: by chance). The real block shows what can be reached; without a '
  "vector, and with another image's, it must be by chance."
)
_LABELS = (
  'A small network that learned labels from the pixels of real blocks looks at '
  'what is drawn. What it finds in samples, above the controls, is what the '
  'prediction holds of that label and the generator shows. The vector itself, '
  'read by a linear probe, is shown beside it.'
)
_EXPLAINED = (
  "Share of the true pixels' variance at one place that is drawn: by the mean "
  'of the samples, and by the regressor. The two are close where the generator '
  'was trained enough.'
)


def text_tables(numbers: dict) -> list[str]:
  """The same numbers for the terminal."""
  tables = [[['between / within', ''], *_spread_rows(numbers['spread'])]]
  header, rows = _rank_rows(numbers['rank'])
  tables.append([header, *rows])
  for name, accuracies in numbers['labels'].items():
    rows = [[k, f'{100 * v:.1f}'] for k, v in accuracies.items()]
    tables.append([[f'{name} told, %', ''], *rows])
  return [progress.text_table(table) for table in tables]


def _spread_rows(spread: dict) -> list[list[str]]:
  ratios = {
    'all pixels': spread['ratio'],
    'the same, by the regressor': spread['ratio_by_regressor'],
    'the same, between vectors of all places': spread['ratio_with_places'],
    **spread['ratios'],
  }
  return [[name, f'{ratio:.2f}'] for name, ratio in ratios.items()]


def _rank_rows(ranks: dict):
  """Header and rows."""
  rows = []
  for name, h in ranks.items():
    cells = [
      f'{100 * h[k]:.1f}% ({100 * h["chance_" + k]:.1f}%)'
      for k in ('at_1', 'at_10')
    ]
    rows.append([name, *cells, f'{h["median_rank"]:.0f} of {h["candidates"]}'])
  return ['', 'first', 'first ten', 'median rank'], rows


def _labels(labels: dict) -> list[str]:
  if not labels:
    return []
  kinds = list(next(iter(labels.values())))
  rows = [
    [kind, *(f'{100 * x[kind]:.1f}%' for x in labels.values())]
    for kind in kinds
  ]
  return [
    _words('Which label is told', _LABELS),
    markup.table(['', *labels], rows),
  ]


def _curves(rows: list[dict]) -> list[str]:
  if not rows:
    return []
  curves = report.draw_curves(rows)
  return [markup.embedded(curves, 'Curves of the training of the generator')]


def _words(title: str, words: str) -> str:
  return markup.section(title, words)


def _grey(share_HW) -> np.ndarray:
  return (np.clip(share_HW, 0, 1) * 255).round().astype(np.uint8)[..., None]
