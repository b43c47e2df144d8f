"""What becomes of a run of several processes when something goes wrong.

    nice python benchmarks/faults.py [--only=killed,kills] [--folder=runs/x]

Each row of the table is a run of two or three processes on this machine, small
and on its CPU, to which something is done at step 25: docs/faults.md says what.
It shows what the others say and after how long they end, whether the newest
checkpoint can be read with all its checksums, where the same command goes on,
and whether its numbers, weights and moments are in the end the very same as
those of a run that was left alone. Rows that are there are not made again.

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

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import fault_runs
from fault_runs import Job, Network, last_step, newest, same

_STEP = 25  # at which the fault happens; 20 is saved
_FOLDER = flags.DEFINE_string('folder', 'runs/faults', 'Of all the runs.')
_ONLY = flags.DEFINE_list('only', [], 'Rows to make; all, if empty.')
_COUNT = flags.DEFINE_integer('count', 20, 'Kills of the row "kills".')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the moments of the kills.')


def undisturbed(count: int) -> pathlib.Path:
  """-> the workdir of a run of so many processes that was left alone."""
  workdir = folder() / f'undisturbed-{count}'
  if last_step(workdir) < fault_runs.KNOBS['total_steps']:
    with Job(workdir, count) as job:
      assert not any(end.status for end in job.ends()), job.logs
  return workdir


def folder() -> pathlib.Path:
  return pathlib.Path(_FOLDER.value).resolve()


def fault(name, act, *, count=3, workdir=None, spared=(), then=None, **start):
  """Makes a row.

  Args:
    name: of the row, and of the workdir.
    act: is called with the Job at step 25.
    count: processes.
    workdir: if not in --folder.
    spared: processes whose end is not waited for.
    then: is called with the Job once the others have ended; gives more ends.
    **start: arguments of Job.
  """
  if workdir is None:
    workdir = folder() / name
    shutil.rmtree(workdir, ignore_errors=True)
  with Job(workdir, count, **start) as job:
    job.reach(_STEP)
    act(job)
    ends = job.ends(without=spared)
    reached = last_step(workdir)
    ends += then(job) if then else []
  return finish(workdir, count, ends, reached, **start)


def finish(workdir, count, ends, reached, **start):
  """-> a row: the rest of the run, by the same command."""
  step, _ = newest(workdir)
  with Job(workdir, count, **start) as job:
    statuses = [end.status for end in job.ends()]
    went_on = job.from_step()
  return {
    'ends': [dataclasses.asdict(end) for end in ends],
    'reached': reached,
    'loadable': step,
    'went_on_from': went_on,
    'statuses_of_the_rest': statuses,
    'same': same(workdir, undisturbed(count)),
  }


def send(process: int, number: int):
  return lambda job: job.processes[process].send_signal(number)


def killed():
  """One of three is killed."""
  return fault('killed', send(1, signal.SIGKILL), spared=[1])


def coordinator():
  """Process 0 of three is killed."""
  return fault('coordinator', send(0, signal.SIGKILL), spared=[0])


def stopped():
  """One of three is stopped, and continued when the others have ended."""

  def then(job):
    send(1, signal.SIGCONT)(job)
    return job.ends(without=[0, 2])

  return fault('stopped', send(1, signal.SIGSTOP), spared=[1], then=then)


def network():
  """The link of one of three is taken down."""
  with Network(3) as net:
    act = lambda job: net.cut(2)  # noqa: E731
    workdir = folder() / 'network'
    shutil.rmtree(workdir, ignore_errors=True)
    with Job(workdir, 3, inside=net) as job:
      job.reach(_STEP)
      act(job)
      ends, reached = job.ends(), last_step(workdir)
  with Network(3) as net:
    return finish(workdir, 3, ends, reached, inside=net)


def preempted():
  """One of three gets SIGTERM."""
  return fault('preempted', send(2, signal.SIGTERM))


def disk():
  """The disk of two is full at a save, and has room again later."""
  disk = folder() / 'disk'
  disk.mkdir(exist_ok=True)
  logs = str(folder() / 'disk-logs')
  subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', disk], check=True
  )
  try:
    filler = disk / 'filler'

    def fill(job):
      with contextlib.suppress(OSError), filler.open('wb') as file:
        while True:
          file.write(bytes(4096))

    return fault(
      'disk',
      fill,
      count=2,
      workdir=disk / 'run',
      then=lambda job: filler.unlink() or [],
      LOGS=logs,
    )
  finally:
    subprocess.run(['umount', disk], check=False)


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

    return fault(
      'bucket', outage, count=2, workdir=workdir, LOGS=str(logs), **gs.env
    )


def kills():
  """Both of two are killed, again and again, at random moments."""
  random_ = random.Random(_SEED.value)
  began = time.monotonic()
  shutil.rmtree(folder() / 'undisturbed-2', ignore_errors=True)
  undisturbed(2)
  length = time.monotonic() - began
  rows, kill, run = [], 0, 0
  workdir = folder() / 'kills-0'
  shutil.rmtree(workdir, ignore_errors=True)
  while (
    kill < _COUNT.value or last_step(workdir) < fault_runs.KNOBS['total_steps']
  ):
    pause = random_.uniform(0, length) if kill < _COUNT.value else 1e9
    with Job(workdir, 2) as job:
      until = time.monotonic() + pause
      while time.monotonic() < until:
        if all(p.poll() is not None for p in job.processes):
          break
        time.sleep(0.01)
      ended = [p.poll() for p in job.processes]
      assert set(ended) <= {None, 0}, f'{ended}: {job.logs}'
      if ended != [0, 0]:
        for process in job.processes:
          process.send_signal(signal.SIGKILL)
        kill += 1
        checkpoints = pathlib.Path(workdir) / 'checkpoints'
        rows.append(
          {
            'run': run,
            'seconds': round(pause, 1),
            'went_on_from': job.from_step(),
            'step': last_step(workdir),
            'in_a_save': any(checkpoints.glob('*tmp*')),
          }
        )
        print(rows[-1], flush=True)
    if ended == [0, 0]:
      assert same(workdir, undisturbed(2)), workdir
      if kill < _COUNT.value:
        run += 1
        workdir = folder() / f'kills-{run}'
        shutil.rmtree(workdir, ignore_errors=True)
  return {'kills': rows, 'runs': run + 1, 'same': True, 'seconds': length}


ROWS = {
  f.__name__: f
  for f in (
    killed,
    coordinator,
    stopped,
    network,
    preempted,
    disk,
    bucket,
    kills,
  )
}


def show(name: str, row: dict) -> None:
  print(f'\n{name}: {ROWS[name].__doc__}')
  for end in row.get('ends', ()):
    print(
      f'  process {end["process"]}: status {end["status"]} after '
      f'{end["seconds"]:.1f} s: {end["words"]}'
    )
  print('  ' + json.dumps({k: v for k, v in row.items() if k != 'ends'}))


def main(_):
  rows = folder() / 'rows'
  rows.mkdir(parents=True, exist_ok=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder() / 'compiled')
  for name in _ONLY.value or ROWS:
    path = rows / f'{name}.json'
    if _ONLY.value or not path.exists():
      path.write_text(json.dumps(ROWS[name](), indent=2))
    show(name, json.loads(path.read_text()))


if __name__ == '__main__':
  app.run(main)
