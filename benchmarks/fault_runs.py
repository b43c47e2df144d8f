"""What benchmarks/faults.py needs: runs of several processes, and what is left.

Real processes of main.py on the CPU of this machine, of one device each, which
may be in network namespaces with addresses of their own.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import fsspec
import jax
import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from configs import tiny
from ijepa_jax.runtime import metrics
from ijepa_jax.runtime.checkpoint import reader
from ijepa_jax.train import compile
from ijepa_jax.train.run import make_run

# Small and soon compiled.
KNOBS = {
  'total_steps': 80,
  'batch_size': 12,
  'data.count': 300,
  'model.width': 16,
  'model.depth': 1,
  'model.heads': 2,
  'optim.warmup_steps': 10,
  'checkpoint.every_steps': 10,
  'health.every_steps': 0,
  'probe.every_steps': 0,
  'log.tensorboard': False,
}
LOST_AFTER = 30  # seconds; the default is 100
# Of metrics.jsonl, what is measured and not computed.
_MEASURED = 'images_per_second', 'data_wait_share', 'compilations', 'seconds/'


@dataclasses.dataclass
class End:
  """How a process ended: seconds after the fault, its status, last words."""

  process: int
  seconds: float
  status: int
  words: str


class Job:
  """One start of a run of several processes; a context that leaves none.

  Attributes:
    workdir: of the run.
    processes: subprocess.Popen of each, in order.
    logs: files of what each has said.
  """

  def __init__(
    self, workdir, count, *, knobs=(), devices=1, inside=None, **env
  ):
    """Starts them.

    Args:
      workdir: of the run, a folder or URL.
      count: processes.
      knobs: changes of KNOBS.
      devices: of each process.
      inside: process -> words before its command, and of process 0 the host;
        for network namespaces.
      **env: more of the environment, with main.py's replacement in MAIN.
    """
    self.workdir, self.logs, self.processes = workdir, [], []
    main = env.pop('MAIN', str(ROOT / 'benchmarks/fault_main.py'))
    host = inside.host if inside else 'localhost'
    port = free_port()
    knobs = KNOBS | dict(knobs)
    folder = pathlib.Path(env.pop('LOGS', workdir))
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
      log = folder / f'log-{time.time():.3f}-{i}'
      command = [
        *(inside.words(i) if inside else ()),
        *(sys.executable, main, f'--config={ROOT}/configs/tiny.py'),
        f'--workdir={workdir}',
        *(f'--config.{name}={value}' for name, value in knobs.items()),
      ]
      if count > 1:
        command += [f'--coordinator={host}:{port}', f'--num_processes={count}']
        command += [f'--process_id={i}', f'--lost_after={LOST_AFTER}']
      with log.open('w') as file:
        self.processes.append(
          subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment(devices) | env,
            stdout=file,
            stderr=subprocess.STDOUT,
          )
        )
      self.logs.append(log)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.processes:
      with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
      process.wait()

  def reach(self, step: int, patience: float = 600) -> None:
    """Waits until this step is recorded."""
    until = time.monotonic() + patience
    while last_step(self.workdir) < step:
      ended = [p.poll() for p in self.processes if p.poll() is not None]
      assert not ended, f'ended with {ended} before step {step}: {self.logs}'
      assert time.monotonic() < until, f'no step {step} in {patience} s'
      time.sleep(0.02)

  def ends(self, *, without=(), patience: float = 600) -> list[End]:
    """Waits for the end of all processes but `without`.

    The seconds are since the call. One that has not ended in time is killed
    and has status None: it hung.
    """
    began, ends = time.monotonic(), {}
    waiting = {i for i in range(len(self.processes)) if i not in without}
    while waiting and time.monotonic() - began < patience:
      for i in list(waiting):
        if (status := self.processes[i].poll()) is not None:
          waiting.remove(i)
          ends[i] = End(i, time.monotonic() - began, status, self.said(i))
      time.sleep(0.05)
    for i in waiting:
      ends[i] = End(i, patience, None, self.said(i))
    return [ends[i] for i in sorted(ends)]

  def said(self, process: int) -> str:
    """The last line of what a process has said, but for what it logs."""
    lines = self.logs[process].read_text(errors='replace').split('\n')
    said = (x for x in reversed(lines) if x and not re.match(r'[IW]\d{4} ', x))
    return next(said, '')

  def from_step(self) -> int:
    """The step that this start went on from."""
    match = re.search(r'Going on from step (\d+)', self.logs[0].read_text())
    return int(match[1]) if match else 0


def environment(devices: int) -> dict[str, str]:
  """Of each process: CPU devices, compiled soon."""
  return {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': os.environ.get('XLA_FLAGS', '')
    + ' --xla_backend_optimization_level=0'
    + f' --xla_force_host_platform_device_count={devices}',
  }


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('', 0))
    return s.getsockname()[1]


def last_step(workdir) -> int:
  with contextlib.suppress(OSError):
    return max((row['step'] for row in metrics.read(workdir)), default=0)
  return 0


def numbers(workdir) -> list[dict]:
  """The lines of metrics.jsonl, without what is measured."""
  return [
    {k: v for k, v in row.items() if not k.startswith(_MEASURED)}
    for row in metrics.read(workdir)
  ]


def newest(workdir, **knobs):
  """-> step and arrays of the newest checkpoint, after all its checksums.

  Raises:
    UserError: none can be read.
  """
  if str(workdir).startswith('gs:'):
    fsspec.filesystem(
      'gs', finalize_on_close=True
    ).invalidate_cache()  # what was listed before
  config = tiny.get_config()
  config.update_from_flattened_dict(KNOBS | knobs)
  abstract, _ = compile.abstract_state(make_run(config))
  checkpoints = reader.CheckpointReader(f'{workdir}/checkpoints')
  if not checkpoints.steps():
    return 0, None
  state, step = checkpoints.read(abstract)
  assert step == checkpoints.steps()[-1], f'{checkpoints.steps()} and {step}'
  return step, jax.device_get(state)


def same(workdir, other) -> bool:
  """Whether two runs have the very same numbers, weights and moments."""
  (step, state), (other_step, other_state) = newest(workdir), newest(other)
  return (
    step == other_step
    and numbers(workdir) == numbers(other)
    and jax.tree.all(jax.tree.map(np.array_equal, state, other_state))
  )


class Network:
  """Network namespaces with addresses of their own, joined by a bridge.

  A context; needs root and `ip`.
  """

  def __init__(self, count: int):
    self._names = [f'faults{i}' for i in range(count)]
    self.host = self._address(0)

  def __enter__(self):
    self._ip('link add faultsbr type bridge')
    self._ip('link set faultsbr up')
    for i, name in enumerate(self._names):
      self._ip(f'netns add {name}')
      self._ip(f'link add {name}v type veth peer name eth0 netns {name}')
      self._ip(f'link set {name}v master faultsbr up')
      self._ip(f'-n {name} addr add {self._address(i)}/24 dev eth0')
      self._ip(f'-n {name} link set eth0 up')
      self._ip(f'-n {name} link set lo up')
      etc = pathlib.Path('/etc/netns') / name  # `ip netns exec` lays it on /etc
      etc.mkdir(parents=True)
      (etc / 'hosts').write_text(
        '127.0.0.1 localhost\n'
        + ''.join(
          f'{self._address(k)} {other}\n' for k, other in enumerate(self._names)
        )
      )
    return self

  def __exit__(self, *_):
    for name in self._names:
      for command in f'netns del {name}', f'link del {name}v':
        with contextlib.suppress(subprocess.CalledProcessError):
          self._ip(command)
      shutil.rmtree(f'/etc/netns/{name}', ignore_errors=True)
    with contextlib.suppress(subprocess.CalledProcessError):
      self._ip('link del faultsbr')

  def words(self, process: int) -> list[str]:
    """Before the command of a process: its namespace, and its host's name."""
    name = self._names[process]
    inside = f'hostname {name} && exec "$@"'
    return [*f'ip netns exec {name} unshare --uts sh -c'.split(), inside, 'sh']

  def cut(self, process: int) -> None:
    """Takes the link of a process down."""
    self._ip(f'link set {self._names[process]}v down')

  def join(self, process: int) -> None:
    """Takes it up again."""
    self._ip(f'link set {self._names[process]}v up')

  def _address(self, process: int) -> str:
    return f'10.213.7.{process + 1}'

  def _ip(self, words: str) -> None:
    subprocess.run(
      ['ip', *words.split()], check=True, stderr=subprocess.DEVNULL
    )
