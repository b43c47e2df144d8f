"""What the numbers come to, in a sentence or two."""

from ijepa_jax.train import health

# Shares of the candidates, of a median rank; by chance it is a half.
_MUCH, _NOTHING = 0.1, 0.4


def verdict(numbers: dict, method) -> tuple[str, list[str]]:
  """Says at a glance whether the predictions hold anything of the content.

  Args:
    numbers: what report.json has.
    method: that is looked at; it knows what may help.

  Returns:
    'good', 'poor' or 'bad', and sentences.
  """
  sentences, grades = [], []
  if 'retrieval' in numbers:
    hits = numbers['retrieval']['among the same position in all images']
    grade = _grade(hits)
    grades.append(grade)
    words = {
      'good': 'Predictions hold what is in a hidden block, not only where it '
      'is: ',
      'poor': 'Predictions hold little of what is in a hidden block: ',
      'bad': 'Predictions hold nothing of what is in a hidden block: ',
    }
    sentences.append(words[grade] + _rank('its own block', hits))
  if 'generator' in numbers:
    # Of the generator, which may show less than there is: no grade.
    hits = numbers['generator']['rank']['sample']
    words = {
      'good': 'What is drawn from a prediction shows it: ',
      'poor': 'What is drawn from a prediction shows little of it: ',
      'bad': 'What is drawn from a prediction shows nothing of it: ',
    }
    sentences.append(
      words[_grade(hits)]
      + _rank('the vector that it was drawn from', hits)
      + f' Trained for {numbers["generator"]["steps"]} steps; a generator that '
      'is trained too little makes things look as if they were not held.'
    )
  alarms = health.alarms(numbers.get('health', {}), method)
  sentences += [f'Not healthy: {words}' for words in alarms.values()]
  order = 'bad', 'poor', 'good'
  if alarms:
    grades.append('bad')
  return min(grades, key=order.index, default='good'), sentences


def _grade(hits: dict) -> str:
  share = (hits['median_rank'] - 1) / max(hits['candidates'] - 1, 1)
  if share >= _NOTHING:
    return 'bad'
  return 'good' if share <= _MUCH else 'poor'


def _rank(thing: str, hits: dict) -> str:
  return (
    f'{thing} is first of {hits["candidates"]} in '
    f'{100 * hits["at_1"]:.1f}% (by chance {100 * hits["chance_at_1"]:.1f}%), '
    f'median rank {hits["median_rank"]:.0f}.'
  )
