"""What becomes of a run of several processes when something goes wrong.

    nice python benchmarks/faults.py [--only=faults,kills,bucket]

One run of three processes, small and on the CPU of this machine, suffers one
fault after the other, and goes on by the same command: docs/faults.md has the
table. Shown is what the others say and after how long they end, which is the
newest checkpoint that can be read with all its checksums, where the same
command goes on, and whether numbers, weights and moments are in the end the
very same as those of a run that was left alone. Stories that are there are not
made again.

Needs root and `ip` for the network, root for the disk, and for the bucket
    pip install gcsfs gcp-storage-emulator
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import fault_runs
from fault_runs import Job, Network, last_step, newest, same

from ijepa_jax.runtime.timing import summary

TOTAL = fault_runs.KNOBS['total_steps']
_FOLDER = flags.DEFINE_string('folder', 'runs/faults', 'Of all the runs.')
_ONLY = flags.DEFINE_list('only', [], 'Stories to make; all, if empty.')
_FAULTS = flags.DEFINE_list('faults', [], 'Of "faults"; all, if empty.')
_COUNT = flags.DEFINE_integer('count', 20, 'Kills of "kills".')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the moments of the kills.')


def folder() -> pathlib.Path:
  return pathlib.Path(_FOLDER.value).resolve()


def undisturbed(count: int) -> pathlib.Path:
  """-> the workdir of a run of so many processes that was left alone."""
  workdir = folder() / f'undisturbed-{count}'
  if last_step(workdir) < TOTAL:
    with Job(workdir, count) as job:
      assert not any(end.status for end in job.ends()), job.logs
  return workdir


def send(process: int, number: int):
  return lambda job: job.processes[process].send_signal(number)


@dataclasses.dataclass
class Fault:
  """What is done to a run of three processes.

  Attributes:
    step: at which.
    act, after: called with the Job: to do it, and to undo it when all others
      have ended.
    victims: processes that do not end by themselves.
  """

  step: int
  act: Callable
  after: Callable = lambda job: None
  victims: tuple[int, ...] = ()


def suffer(faults: dict[str, Fault], workdir, count=3, **start) -> dict:
  """Trains one run, by the same command after each fault, to its end.

  Args:
    faults: by name, in the order of their steps.
    workdir, count, **start: arguments of Job.

  Returns:
    A row of each.
  """
  rows, before = {}, ''
  for name, fault in faults.items():
    with Job(workdir, count, **start) as job:
      job.reach(fault.step)
      fault.act(job)
      ends = job.ends(without=fault.victims)
      reached, went_on = last_step(workdir), job.from_step()
      fault.after(job)
      if name == 'stopped':  # it was continued
        ends += job.ends(without={0, 1, 2} - {*fault.victims})
    if rows:
      rows[before]['went_on_from'] = went_on
    loadable, _ = newest(workdir)
    rows[name] = {
      'ends': [dataclasses.asdict(end) for end in ends],
      'reached': reached,
      'loadable': loadable,
    }
    before = name
    show(name, rows[name])
  with Job(workdir, count, **start) as job:
    assert not any(end.status for end in job.ends()), job.logs
    rows[before]['went_on_from'] = job.from_step()
  equal = same(workdir, undisturbed(count))
  return rows | {'all': {'same': equal}}


def fill(disk: pathlib.Path) -> None:
  with contextlib.suppress(OSError), (disk / 'filler').open('wb') as file:
    while True:
      file.write(bytes(4096))
      file.flush()


def faults() -> dict:
  """One run of three processes, each with an address of its own, whose disk is
  a small one.
  """
  disk = folder() / 'disk'
  disk.mkdir(exist_ok=True)
  logs = folder() / 'logs'
  with contextlib.ExitStack() as stack:
    size = ['-o', 'size=32m']
    mount = ['mount', '-t', 'tmpfs', *size, 'faults', str(disk)]
    subprocess.run(mount, check=True)
    stack.callback(subprocess.run, ['umount', str(disk)])
    net = stack.enter_context(Network(3))
    stages = {
      'killed': Fault(15, send(1, signal.SIGKILL), victims=(1,)),
      'coordinator': Fault(25, send(0, signal.SIGKILL), victims=(0,)),
      'stopped': Fault(
        *(35, send(1, signal.SIGSTOP), send(1, signal.SIGCONT)), victims=(1,)
      ),
      'network': Fault(45, lambda _: net.cut(2), lambda _: net.join(2)),
      'preempted': Fault(55, send(2, signal.SIGTERM)),
      'disk': Fault(
        75, lambda _: fill(disk), lambda _: (disk / 'filler').unlink()
      ),
    }
    chosen = {k: stages[k] for k in _FAULTS.value or stages}
    return suffer(chosen, disk / 'run', inside=net, LOGS=str(logs))


def bucket():
  """The bucket of two refuses all connections for a minute."""
  from fault_bucket import Bucket

  workdir = f'gs://faults/run-{time.time():.0f}'
  logs = folder() / 'bucket-logs'
  undisturbed(2)
  with Bucket(logs) as gs:

    def outage(_):
      gs.refuse()
      threading.Timer(60, gs.answer).start()

    stages = {'bucket': Fault(21, outage)}
    return suffer(stages, workdir, 2, LOGS=str(logs), **gs.env)


def kills():
  """Both of two are killed, again and again, at random moments: of the whole
  time that a start takes, and every second time after its first step.
  """
  random_ = random.Random(_SEED.value)
  length = summary.read(undisturbed(2))[-1]['wall_seconds']
  rows, kill, run, complete = [], 0, 0, False
  workdir = folder() / 'kills-0'
  shutil.rmtree(workdir, ignore_errors=True)
  while kill < _COUNT.value or not complete:
    pause = random_.uniform(0, length) if kill < _COUNT.value else 1e9
    checkpoints = workdir / 'checkpoints'
    unfinished = {*checkpoints.glob('*tmp*')}  # of an earlier kill
    with Job(workdir, 2) as job:
      began, counted = time.monotonic(), kill % 2 == 0
      while not counted or time.monotonic() < began + pause:
        if all(p.poll() is not None for p in job.processes):
          break
        time.sleep(0.01)
        if not counted and ' Step ' in job.logs[0].read_text():
          began, counted, pause = time.monotonic(), True, pause / 2
      ended = [p.poll() for p in job.processes]
      assert set(ended) <= {None, 0}, f'{ended}: {job.logs}'
      complete = ended == [0, 0]
      if not complete:
        for process in job.processes:
          process.send_signal(signal.SIGKILL)
        rows.append(
          {
            'run': run,
            'after_its_first_step': kill % 2 == 1,
            'seconds': round(pause, 1),
            'went_on_from': job.from_step(),
            'step': last_step(workdir),
            'in_a_save': bool({*checkpoints.glob('*tmp*')} - unfinished),
          }
        )
        print(rows[-1], flush=True)
        kill += 1
    if complete:
      assert same(workdir, undisturbed(2)), workdir
      if kill < _COUNT.value:
        run += 1
        workdir = folder() / f'kills-{run}'
        shutil.rmtree(workdir, ignore_errors=True)
  return {str(i): row for i, row in enumerate(rows)} | {
    'all': {'runs': run + 1}
  }


STORIES = {f.__name__: f for f in (faults, kills, bucket)}


def show(name: str, row: dict) -> None:
  print(f'\n{name}:')
  for end in row.get('ends', ()):
    print(
      f'  process {end["process"]}: status {end["status"]} after '
      f'{end["seconds"]:.1f} s: {end["words"]}'
    )
  print('  ' + json.dumps({k: v for k, v in row.items() if k != 'ends'}))
  sys.stdout.flush()


def main(_):
  rows = folder() / 'rows'
  rows.mkdir(parents=True, exist_ok=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder() / 'compiled')
  for name in _ONLY.value or STORIES:
    path = rows / f'{name}.json'
    if _ONLY.value or not path.exists():
      path.write_text(json.dumps(STORIES[name](), indent=2))
    print(f'\n{name}: {STORIES[name].__doc__}')
    for row in json.loads(path.read_text()).items():
      show(*row)


if __name__ == '__main__':
  app.run(main)
