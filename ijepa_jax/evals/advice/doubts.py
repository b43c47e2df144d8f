"""Doubts about a result: a sweep ends too early, a simpler one is above it."""

import contextlib
import json
from collections.abc import Mapping, Sequence

from ijepa_jax.probes import verdict

# Of accuracy, beside noise: images of one kind do not differ by as much.
_SHIFT = 0.1

# What the rows of a result are, for a line below its table.
ROWS = {
  'knn': 'the nearest training images vote; nothing is trained',
  'logistic': 'logistic regression on features that are computed once',
  'linear': 'the best of all linear heads, of whatever input',
  'linear_last': 'the best that takes the last layer, averaged over tokens',
  'linear_last4': 'the best that takes the last four layers',
  'attentive': 'a learned query gathers the tokens, then a linear head',
  'finetune': 'the encoder is trained too, with a linear head',
}
# From the simplest: each can do what those before it do.
_ORDER = 'knn', 'logistic', 'linear', 'attentive', 'finetune'
_ADVICE = {
  'logistic': 'give it more labels, or logistic.layers=last4',
  'linear': 'take more linear.epochs and greater linear.lrs',
  'attentive': 'take more attentive.epochs and other attentive.lrs',
  'finetune': (
    'take more finetune.epochs, a smaller finetune.batch_size, so that there '
    'are more steps, or another finetune.lr'
  ),
}


def of_rates(kind: str, lrs: Sequence[float], best: float) -> list[str]:
  """Says where a sweep may have ended too early.

  Args:
    kind: 'linear' or 'attentive'.
    lrs: learning rates of the sweep.
    best: that of the head that is reported.
  """
  knob = f'{kind}.lrs'
  if len(lrs) < 2:
    return [
      f'One learning rate was tried, {best:g}: give several in {knob}, such as '
      f'({10 * best:g}, {best:g}).'
    ]
  ends = {max(lrs): ('greatest', 3 * best), min(lrs): ('least', best / 3)}
  if best not in ends:
    return []
  end, further = ends[best]
  return [
    f'The best learning rate, {best:g}, is the {end} of the sweep: try '
    f'{further:.2g} too, in {knob}.'
  ]


def of_sweep(sweep, result: Mapping) -> list[str]:
  """Says the same of a head_sweep.HeadSweep and of its report.

  Nothing where heads of another rate are as good.
  """
  scores, most = result['heads'], result['best']['accuracy']
  best = {head.lr for head in sweep.heads if scores[head.name] == most}
  if len(best) > 1:
    return []
  return of_rates(sweep.kind, sweep.protocol.lrs, *best)


def of_held_out(
  held_out: Mapping[float, float], test: float, images: int
) -> list[str]:
  """Says where test images are much harder than held-out training images.

  Args:
    held_out: penalty -> accuracy of training images that were held out, in
      [0, 1]; empty if none were.
    test: accuracy of the test images, in [0, 1].
    images: that were held out, from which the noise follows.
  """
  best = max(held_out.values(), default=0.0)
  if best - test <= _SHIFT + 2 * verdict.accuracy_margin(max(images, 1)):
    return []
  return [
    f'Of training images that were held out {100 * best:.1f} are right, of the '
    f'test images {100 * test:.1f}: the test images are of another kind, or '
    'the training images are near copies of one another. A penalty that suits '
    'the first need not suit the second; compare with knn and linear.'
  ]


def of_simpler(result: Mapping, folder, images: int) -> list[str]:
  """Says where a simpler result of the same images is clearly better.

  Args:
    result: what is written of this evaluation.
    folder: of the results.
    images: of the test, from which the margin follows.
  """
  job = result['job']
  value = result['accuracy'].get(job)
  if value is None or _few_labels(result):
    return []
  least = value + verdict.accuracy_margin(images)
  sentences = []
  for other in _others(folder):
    if not _same_images(other, result) or _few_labels(other):
      continue
    name, which = other['job'], other['config'].get('which')
    accuracy = (other.get('accuracy') or {}).get(name, 0.0)
    if accuracy <= least:
      continue
    of_encoder = other.get('checkpoint') == result['checkpoint']
    if of_encoder and name in _ORDER[: _ORDER.index(job)]:
      sentences.append(
        f'{job} is {100 * value:.1f}, below {name} of the same encoder '
        f'({100 * accuracy:.1f}), which it should reach: {_ADVICE[job]}.'
      )
    elif name == job and result['config'].get('which') == 'target':
      words = {'pixels': 'raw pixels', 'untrained': 'the untrained encoder'}
      if which in words:
        sentences.append(
          f'{words[which].capitalize()} give {100 * accuracy:.1f} by {name}, '
          f'more than this encoder ({100 * value:.1f}).'
        )
  return sentences


def _others(folder):
  """Yields what the results in a folder hold; broken ones are left out."""
  for path in sorted(folder.iterdir()) if folder.is_dir() else ():
    with contextlib.suppress(OSError, ValueError):
      content = json.loads(path.read_text()) if path.suffix == '.json' else {}
      if {'job', 'config', 'accuracy'} <= content.keys():
        yield content


def _same_images(one: Mapping, two: Mapping) -> bool:
  def images(result):
    data = result['config'].get('data', {})
    names = ('source', 'path', 'train', 'test')
    return result.get('task'), [data.get(name) for name in names]

  return images(one) == images(two)


def _few_labels(result: Mapping) -> bool:
  c = result['config'].get('logistic') or {}
  return any(c.get(name) for name in ('per_class', 'share', 'list_file'))
