"""The time of a run over all its starts: what counted, and what did not."""

import datetime
import itertools
import json

from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files
from ijepa_jax.runtime.progress import text_table

FOLDER = 'goodput'  # in that of the run
# Of the wall time since the first start, in the order of the table.
SHARES = ('steps', 'redone', 'compile', 'data', 'save', 'evaluate', 'restart')
SHARES += ('other', 'between')
_WORDS = {
  'steps': 'steps that counted',
  'redone': 'steps that were made again after a crash',
  'compile': 'compiling',
  'data': 'waiting for data',
  'save': 'saving',
  'evaluate': 'evaluating (probe, health, report)',
  'restart': 'from a start to its first step, without compiling',
  'other': 'other',
  'between': 'between a stop and the next start',
}


def read(workdir) -> list[dict]:
  """What starts.Start wrote, oldest first, each with its 'redone' seconds.

  Steps that a later start made again are 'redone' and no longer 'steps'.

  Raises:
    UserError: nothing was written there.
  """
  folder = files.resolve(workdir) / FOLDER
  starts = []
  for path in folder.glob('*.json') if folder.exists() else ():
    try:
      starts.append(json.loads(path.read_text()))
    except (OSError, ValueError):  # a machine that lost its power
      continue
  if not starts:
    raise UserError(
      f'{workdir} says nothing of the time of its run: it holds no training, '
      'or one from before this was kept.'
    )
  starts.sort(key=lambda start: start['began'])
  limit = None  # of the steps that no later start makes again
  for start in reversed(starts):
    seconds = start['seconds']
    redone = seconds['steps'] - _until(start, limit)
    start['seconds'] = seconds | {
      'steps': seconds['steps'] - redone,
      'redone': redone,
    }
    begun = [x for x in (limit, start['from_step']) if x is not None]
    limit = min(begun, default=None)
  return starts


def _until(start: dict, limit: int | None) -> float:
  """-> seconds of steps up to step `limit`; None: of all."""
  total, step = start['seconds']['steps'], start['step']
  if limit is None or step is None or step <= limit:
    return total
  before, spent = start['from_step'], 0.0
  for after, seconds in [*start['saved'], [step, total]]:
    if after > limit:  # between two saves each step is taken to cost as much
      share = max(limit - before, 0) / (after - before)
      return spent + share * (seconds - spent)
    before, spent = after, seconds
  return spent


def total(starts: list[dict]) -> dict:
  """Returns the sums over all starts.

  Args:
    starts: from `read`.

  Returns:
    goodput: share of the wall time in steps that counted. wall_seconds: since
    the first start. seconds: of SHARES, whose sum that is. starts, step.
  """
  seconds = dict.fromkeys(SHARES, 0.0)
  for start in starts:
    for part, value in start['seconds'].items():
      seconds[part] += value
  # Clocks of two machines may differ.
  seconds['between'] = sum(
    max(b['began'] - a['began'] - a['wall_seconds'], 0.0)
    for a, b in itertools.pairwise(starts)
  )
  wall = sum(seconds.values())
  return {
    'goodput': seconds['steps'] / max(wall, 1e-9),
    'wall_seconds': wall,
    'seconds': seconds,
    'starts': len(starts),
    'step': max((x['step'] or 0 for x in starts), default=0),
  }


def sentence(starts: list[dict]) -> str:
  """The last start in one line, with the goodput of all."""
  last, wall = starts[-1]['seconds'], starts[-1]['wall_seconds']
  shares = ', '.join(
    f'{name} {last[name] / wall:.1%}' for name in SHARES if name in last
  )
  sums = total(starts)
  return (
    f'Where the {wall:.0f} s of this start went: {shares}. Goodput over '
    f'{sums["starts"]} start(s): {sums["goodput"]:.1%} of '
    f'{sums["wall_seconds"]:.0f} s.'
  )


def table(starts: list[dict]) -> str:
  """All starts and their sums, to print."""
  rows = [('start (UTC)', 'steps', 'end', 'seconds', *SHARES[:-1])]
  for start in starts:
    began = datetime.datetime.fromtimestamp(start['began'], datetime.UTC)
    steps = '-'
    if start['from_step'] is not None:
      steps = f'{start["from_step"]} to {start["step"]}'
    rows.append(
      (
        f'{began:%Y-%m-%d %H:%M:%S}',
        steps,
        start['end'] or 'killed or running',
        f'{start["wall_seconds"]:.0f}',
        *(f'{start["seconds"][name]:.0f}' for name in SHARES[:-1]),
      )
    )
  sums = total(starts)
  wall = max(sums['wall_seconds'], 1e-9)
  shares = [('of the time since the first start', 'seconds', '%')]
  shares += [
    (_WORDS[name], f'{value:.0f}', f'{100 * value / wall:.1f}')
    for name, value in sums['seconds'].items()
  ]
  shares.append(('all', f'{sums["wall_seconds"]:.0f}', '100.0'))
  inside = wall - sums['seconds']['between']
  return (
    f'{text_table(rows)}\n\n{text_table(shares)}\n\nGoodput '
    f'{sums["goodput"]:.1%}; without the time between starts, which is the '
    f"machines', {sums['seconds']['steps'] / max(inside, 1e-9):.1%}."
  )
