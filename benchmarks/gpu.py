"""What one GPU does with this repository, in eight minutes.

    benchmarks/gpu.sh
    benchmarks/gpu.sh --parts=steps,cudnn --recipes=vit_h14 --out=runs/h14
    benchmarks/gpu.sh --recipes=tiny --batch=8 --largest=16 --steps=2  # a CPU

In this order, the most valuable first:

  parity   the released code's numbers, by benchmarks/parity.py, in float32 and
           in bfloat16
  steps    a step of each recipe, by benchmarks/step.py, of --batch images, or
           of half as many until it fits
  cudnn    the same steps with model.attention=cudnn
  largest  steps of the first recipe, of ever twice --batch, until it does not
           fit

Each is a process of its own, since a process keeps a GPU's memory, with a limit
of its own; what --seconds leaves no time for is named. A step is of the shape
of masks that is drawn most, all else is as the recipe has it. <out>/gpu.jsonl
receives a line for each as soon as it is known, and <out>/<number>.log what its
process had to say. In the end a table for docs/hardware.md is printed.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

from absl import app, flags

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from ijepa_jax import recipes
from ijepa_jax.errors import one_of
from ijepa_jax.plan.program.compiled import out_of_memory
from ijepa_jax.runtime import cli

FLAGS = flags.FLAGS
PARTS = 'parity', 'steps', 'cudnn', 'largest'
GOLDEN = 'tests/golden/release_tiny.npz'
NO_ROOM, NO_TIME, NO_GPU = 'out of memory', 'cut off', 'not on this device'
_LEAST = 10  # seconds, in which no process on a GPU does anything
COLUMNS = (
  *('batch', 'images/s, step alone', 'MFU', 'peak memory, GiB'),
  *('compile seconds', 'loss'),
)


class Bench:
  """Measures, one process after the other, until the time is over.

  Args:
    out: folder of gpu.jsonl and the logs.
    seconds: of all together.
    each: of one process, at most.

  Attributes:
    rows: of all that was measured, as in gpu.jsonl.
  """

  def __init__(self, out: pathlib.Path, seconds: float, each: float):
    self.rows = []
    self._out, self._each = out, each
    self._end = time.monotonic() + seconds
    out.mkdir(parents=True, exist_ok=True)

  def parity(self, dtype: str) -> None:
    """Compares with the released code's numbers."""
    command = 'benchmarks/parity.py', GOLDEN, f'--dtype={dtype}', '--json'
    self._add({'parity': dtype}, self._measure(command))

  def step(self, recipe: str, batch: int, attention: str = 'xla') -> str:
    """Times a step; returns why it could not be, or ''."""
    command = (
      'benchmarks/step.py',
      f'--config=configs/{recipe}.py',
      f'--config.batch_size={batch}',
      f'--config.model.attention={attention}',
      f'--steps={FLAGS.steps}',
      '--shapes=1',
    )
    other = {row.get('platform', 'gpu') for row in self.rows} - {'gpu'}
    refused = attention == 'cudnn' and other
    result = {'error': NO_GPU} if refused else self._measure(command)
    name = {'recipe': recipe, 'attention': attention, 'batch_size': batch}
    return self._add(name, result).get('error', '')

  def _measure(self, command) -> dict:
    """The object that a script of ours prints last, or {'error': why not}."""
    seconds = min(self._each, self._end - time.monotonic())
    if seconds < _LEAST:
      return {'error': NO_TIME}
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    log = self._out / f'{len(self.rows)}.log'
    with log.open('w') as file:
      try:
        done = subprocess.run(
          [sys.executable, *command],
          cwd=ROOT,
          env=os.environ
          | {
            'PYTHONPATH': path,
            # Else seconds of compiling are those of reading.
            'JAX_ENABLE_COMPILATION_CACHE': 'false',
            'JAX_TRACEBACK_FILTERING': 'off',  # which adds lines after an error
          },
          stdout=subprocess.PIPE,
          stderr=file,
          text=True,
          timeout=seconds,
        )
      except subprocess.TimeoutExpired:
        return {'error': f'{NO_TIME} after {seconds:.0f} s'}
    start = f'\n{done.stdout}'.rfind('\n{')
    if start >= 0:
      return json.loads(done.stdout[start:])
    return {'error': why(log.read_text(), done.returncode)}

  def _add(self, name: dict, result: dict) -> dict:
    self.rows.append(name | result)
    with (self._out / 'gpu.jsonl').open('a') as file:
      file.write(f'{json.dumps(self.rows[-1])}\n')
    print(json.dumps(self.rows[-1]), file=sys.stderr, flush=True)
    return self.rows[-1]


def why(words: str, code: int) -> str:
  """What ended a process, by its standard error: one line."""
  # Of memory that it can do without XLA only warns.
  *before, last = re.split(
    r'^(?=[\w.]*(?:Error|Exception)\b)', words, flags=re.M
  )
  if not before:
    return f'ended with status {code}'
  return NO_ROOM if out_of_memory(last) else last.splitlines()[0][:300]


def measure(bench: Bench, parts, names: list[str]) -> None:
  """Measures these parts of these recipes, in the order of PARTS."""
  fitting = dict.fromkeys(names, FLAGS.batch)
  if 'parity' in parts:
    for dtype in 'float32', 'bfloat16':
      bench.parity(dtype)
  if 'steps' in parts:
    for recipe in names:
      while bench.step(recipe, fitting[recipe]) == NO_ROOM:
        if fitting[recipe] == 1:
          break
        fitting[recipe] //= 2
  if 'cudnn' in parts:
    for recipe in names:
      bench.step(recipe, fitting[recipe], 'cudnn')
  if 'largest' in parts and fitting[names[0]] == FLAGS.batch:
    recipe, batch = names[0], 2 * fitting[names[0]]
    while batch <= FLAGS.largest and not bench.step(recipe, batch):
      batch *= 2


def table(rows: list[dict]) -> str:
  """The rows as Markdown, the steps first."""
  devices = {(r['device'], r['jax']) for r in rows if 'device' in r}
  title = ' and '.join(f'{kind}, jax {jax}' for kind, jax in sorted(devices))
  lines = [f'| {title} | {" | ".join(COLUMNS)} |', '|---' * 7 + '|']
  for row in rows:
    if 'recipe' not in row:
      continue
    name = f'`{row["recipe"]}`'
    if row['attention'] != 'xla':
      name += f', `model.attention={row["attention"]}`'
    if 'error' in row:
      cells = [row['error'].replace('|', ' '), *[''] * 4]
    else:
      share = row.get('model_flops_utilisation')
      cells = [
        f'{row["images_per_second"]:.4g}',
        '' if share is None else f'{100 * share:.1f}%',
        f'{row["peak_gib"]:.2f}',
        f'{row["compile_seconds"]:.1f}',
        f'{row["loss"]:.4f}',
      ]
    lines.append(f'| {name} | {row["batch_size"]} | {" | ".join(cells)} |')
  return '\n'.join([*lines, '', *filter(None, map(parity_words, rows))])


def parity_words(row: dict) -> str:
  """A sentence on a row of parity; '' on others."""
  if 'parity' not in row:
    return ''
  title = f'Parity with the released code in {row["parity"]}'
  if 'error' in row:
    return f'{title}: {row["error"]}.'
  beyond = [
    f'{name} {error:.1e} (bound {bound:.0e})'
    for name, error, bound in row['errors']
    if not error <= bound
  ]
  within = len(row['errors']) - len(beyond)
  words = f'{within} of {len(row["errors"])} quantities are within their bounds'
  return f'{title}: {words}{"; beyond: " if beyond else ""}{", ".join(beyond)}.'


@cli.one_sentence()
def main(_):
  for part in FLAGS.parts:
    one_of('--parts', part, PARTS)
  for recipe in FLAGS.recipes:
    one_of('--recipes', recipe, recipes.names())
  bench = Bench(pathlib.Path(FLAGS.out), FLAGS.seconds, FLAGS.each)
  measure(bench, FLAGS.parts, FLAGS.recipes)
  print(table(bench.rows))


if __name__ == '__main__':
  flags.DEFINE_list('parts', list(PARTS), 'Of those above.')
  flags.DEFINE_list('recipes', ['vit_b16', 'vit_l16', 'vit_h14'], 'Of configs.')
  flags.DEFINE_integer('batch', 128, 'Images a step, or the half of it, ...')
  flags.DEFINE_integer('largest', 8192, 'No batch above it is tried.')
  flags.DEFINE_integer('steps', 20, 'Timed steps.')
  flags.DEFINE_float('seconds', 470, 'Of all together.')
  flags.DEFINE_float('each', 150, 'Of one process.')
  flags.DEFINE_string('out', os.environ.get('OUT') or 'runs/gpu', 'Folder.')
  app.run(main)
