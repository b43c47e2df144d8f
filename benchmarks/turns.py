"""Processes that take turns in one measurement, so that all share a machine.

Each does the same work in a process of its own, a few steps at a time, while
the others wait: what else the machine does then falls on all alike. A worker is
a command that ends in `serve`.
"""

import statistics
import subprocess
import sys
import time


def serve(work) -> None:
  """Does `work(count)` for each count that is asked for on standard input.

  Prints the seconds of each. What `work` prints itself goes to standard error.
  """
  answers, sys.stdout = sys.stdout, sys.stderr
  print('ready', file=answers, flush=True)
  for line in sys.stdin:
    began = time.perf_counter()
    work(int(line))
    print(time.perf_counter() - began, file=answers, flush=True)


def serve_steps(run, batch) -> None:
  """Serves training steps of a run, on one batch."""
  import jax

  from ijepa_jax.runtime import sharding
  from ijepa_jax.train import compile

  abstract, make_state = compile.abstract_state(run)
  state = make_state(jax.random.key(0))
  shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}
  (step,) = compile.compile_steps(run, abstract, [shapes]).values()
  batch = sharding.to_global(batch, run.mesh)

  def work(count):
    nonlocal state
    for _ in range(count):
      state, _ = step(state, batch)
    jax.block_until_ready(state)

  serve(work)


class Worker:
  """A process that serves."""

  def __init__(self, command, **options):
    """Starts a command; options are those of subprocess.Popen.

    Raises:
      RuntimeError: it ended before it was ready.
    """
    self._process = subprocess.Popen(
      list(map(str, command)),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      **options,
    )
    self._answer()

  def __call__(self, count: int) -> float:
    """Returns the seconds of `count` steps."""
    print(count, file=self._process.stdin, flush=True)
    return float(self._answer())

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()

  def _answer(self) -> str:
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(f'{self._process.args} ended.')
    return line.strip()


def take(workers: dict[str, Worker], count: int, turns: int):
  """Seconds of a step of each worker in each turn: {name: [seconds]}.

  The first turn, in which caches are cold, is not counted. Each turn begins
  with a step that is not timed: the host of a virtual machine takes back the
  memory that a waiting process has freed, and that step waits for new memory.
  """
  seconds = {name: [] for name in workers}
  for turn in range(turns + 1):
    for name, worker in workers.items():
      worker(1)
      measured = worker(count) / count
      if turn:
        seconds[name].append(measured)
  return seconds


def ratios(seconds: dict[str, list[float]], reference: str) -> dict:
  """How many times as fast as `reference` each is: median, least and most."""
  result = {}
  for name, own in seconds.items():
    pairs = zip(seconds[reference], own, strict=True)
    each = [theirs / mine for theirs, mine in pairs]
    result[name] = statistics.median(each), min(each), max(each)
  return result
