"""A verdict is as good as the worst that was measured."""

import numpy as np
import pytest

from ijepa_jax.probes.verdict import judge

UNTRAINED = {'probe/label': 0.5, 'knn/label': 0.4}
UNTRAINED['rankme'] = np.float64(10.0)  # as the probe gives it
PIXELS = {'probe/label': 0.55, 'knn/label': 0.45}


@pytest.mark.parametrize(
  ('changes', 'word', 'words'),
  [
    ({}, 'good', 'label 60.0 (untrained 40.0); nowhere behind raw'),
    # As in the first hour of a new user.
    (
      {'knn/label': 0.36, 'rankme': 8.0},
      'mixed',
      'worse than untrained in kNN of label 36.0 (untrained 40.0), RankMe 8.0 '
      '(untrained 10.0); behind raw pixels in kNN of label 36.0 (pixels 45.0)',
    ),
    ({'knn/label': 0.42}, 'mixed', 'behind raw pixels in kNN'),
    ({'rankme': 8.9}, 'mixed', 'worse than untrained in RankMe 8.9'),
    ({'health/token_cosine': 0.97}, 'mixed', 'cosine of tokens 0.97'),
    # Less than images so few can tell.
    ({'probe/label': 0.51, 'knn/label': 0.41}, 'bad', 'nowhere clearly better'),
    (
      {'probe/label': 0.4, 'knn/label': 0.3, 'rankme': 20.0},
      'bad',
      'worse than untrained in probe of label 40.0',
    ),
  ],
)
def test_with_labels(changes, word, words):
  trained = {'probe/label': 0.7, 'knn/label': 0.6, 'rankme': 12.0} | changes
  untrained = UNTRAINED | {'health/token_cosine': 0.7}
  result = judge(trained, untrained, PIXELS, images=480)
  assert result.word == word and words in result.sentence
  assert ('docs/health.md' in result.sentence) == (word != 'good')


def test_where_nothing_was_left_to_gain():
  result = judge({'knn/label': 1.0}, {'knn/label': 0.99}, {}, images=480)
  assert result.word == 'mixed'


@pytest.mark.parametrize(
  ('rank', 'tokens', 'alarms', 'word'),
  [
    (15.0, 0.8, (), 'good'),
    (10.5, 0.8, (), 'mixed'),
    (15.0, 0.97, (), 'mixed'),
    (8.0, 0.8, (), 'bad'),
    (15.0, 0.8, ('gap_share is 0.01, below 0.05.',), 'bad'),
  ],
)
def test_without_labels(rank, tokens, alarms, word):
  trained, untrained = (
    {'health/rankme': r, 'health/token_cosine': c}
    for r, c in ((rank, tokens), (10.0, 0.75))
  )
  result = judge(trained, untrained, {}, images=0, alarms=alarms)
  assert result.word == word
  assert 'No label' in result.sentence and 'pixels' not in result.sentence
  assert all(alarm in result.sentence for alarm in alarms)
