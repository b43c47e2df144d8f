"""Judges a trained encoder in words, beside itself untrained and raw pixels.

docs/health.md says how it is decided.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

RANK_CHANGE = 0.1  # of RankMe, as a share of the untrained encoder's
ALIKE = 0.95  # mean cosine of two tokens of an image that are nearly the same
_NAMES = {'probe': 'probe of', 'knn': 'kNN of'}
_RANKS = 'rankme', 'health/rankme'
_TOKENS = 'health/token_cosine'
_SHOWN = 4  # measures that a sentence names


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a training was good for.

  Attributes:
    word: 'good'; 'mixed'; or 'bad', which is no better than untrained.
    sentence: the word, and why.
  """

  word: str
  sentence: str


def judge(
  trained: Mapping[str, float],
  untrained: Mapping[str, float],
  pixels: Mapping[str, float],
  *,
  images: int,
  alarms: Sequence[str] = (),
) -> Verdict:
  """Judges an encoder by all that was measured of it.

  Args:
    trained, untrained: 'probe/<label>' and 'knn/<label>', accuracies in [0, 1];
      'rankme' or 'health/rankme'; 'health/token_cosine'. None has to be there.
    pixels: the accuracies of raw pixels; {}: unknown.
    images: held-out ones, of which the accuracies are.
    alarms: sentences of the alarms of health that ring.
  """
  margin = accuracy_margin(images)
  better, worse, behind = [], [], []
  labelled = [name for name in trained if is_accuracy(name)]
  room = [name for name in labelled if untrained.get(name, 0) < 1 - margin]
  for name, value in trained.items():
    if name not in untrained:
      continue
    change = _change(name, value, untrained[name], margin)
    before = format_metric(name, untrained[name])
    words = f'{_shown(name, value)} (untrained {before})'
    # Where there are labels a rank alone is no gain.
    if change > 0 and (is_accuracy(name) or not labelled):
      better.append(words)
    elif change < 0:
      worse.append(words)
    if name in pixels and value < pixels[name] - margin:
      behind.append(
        f'{_shown(name, value)} (pixels {format_metric(name, pixels[name])})'
      )
  word = 'mixed'
  if alarms or (not better and (worse or room)):
    word = 'bad'
  elif better and not worse and not behind:
    word = 'good'
  parts = [
    f'better than untrained in {_listed(better)}'
    if better
    else 'nowhere clearly better than untrained',
    worse and f'worse than untrained in {_listed(worse)}',
    behind and f'behind raw pixels in {_listed(behind)}',
    not (behind or not pixels) and 'nowhere behind raw pixels',
  ]
  sentences = [f'{word.capitalize()}: {"; ".join(filter(None, parts))}.']
  sentences += alarms
  if not labelled:
    sentences.append(
      'No label was there to judge by: images in class folders tell more.'
    )
  if word != 'good':
    sentences.append('docs/health.md says what to try.')
  return Verdict(word, ' '.join(sentences))


def accuracy_margin(images: int) -> float:
  """By how much accuracies of so many images have to differ.

  The greatest standard error that an accuracy can have.
  """
  return 0.5 / math.sqrt(max(images, 1))


def is_accuracy(name: str) -> bool:
  return name.split('/')[0] in _NAMES


def table_of(rows: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
  """Cells of a table: a row a name, a column a metric; the head first."""
  columns = list(dict.fromkeys(k for row in rows.values() for k in row))
  names = [re.sub('^(probe|health)/', '', c) for c in columns]
  head = ['', *(re.sub('[/_]', ' ', name) for name in names)]
  return [head] + [
    [name, *(format_metric(c, row.get(c)) for c in columns)]
    for name, row in rows.items()
  ]


def format_metric(name: str, value: float | None) -> str:
  """An accuracy in %, a cosine with two decimals; '-': not measured."""
  if value is None:
    return '-'
  if is_accuracy(name):
    return f'{100 * value:.1f}'
  return f'{value:.2f}' if 'cosine' in name else f'{value:.1f}'


def _change(name: str, value: float, before: float, margin: float) -> int:
  """1: better than before; -1: worse; 0: neither, or it can't be said."""
  if is_accuracy(name):
    gain = value - before
  elif name in _RANKS:
    gain, margin = value / before - 1, RANK_CHANGE
  elif name == _TOKENS:
    # To fall is no gain: tokens of noise differ most.
    return -1 if value > max(ALIKE, before) else 0
  else:
    return 0
  return int(gain > margin) - int(gain < -margin)


def _shown(name: str, value: float) -> str:
  kind, _, label = name.partition('/')
  title = f'{_NAMES[kind]} {label}' if is_accuracy(name) else name
  title = {_TOKENS: 'cosine of tokens'}.get(name, title)
  title = 'RankMe' if name in _RANKS else title
  return f'{title} {format_metric(name, value)}'


def _listed(measures: list[str]) -> str:
  more = len(measures) - _SHOWN
  rest = [f'{more} more'] if more > 0 else []
  return ', '.join(f'{words}' for words in measures[:_SHOWN] + rest)
