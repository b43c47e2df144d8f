"""When one of three processes is gone the others end, and say why."""

import pathlib
import re
import signal
import socket
import subprocess
import sys

import pytest

from ijepa_jax.runtime.distributed import peers

ROOT = pathlib.Path(__file__).parents[2]
SILENT = 'gives no sign of life for 2 s: it was stopped'
# Without JAX: a line of `words` from process 0, and a line of what to do.
SCRIPT = """
import os, sys, time
from ijepa_jax.errors import UserError
from ijepa_jax.runtime.distributed import peers
peers._GRACE, peers._FAREWELL, peers._LAST_ONE = 0.5, 0.2, 0.9
rank = int(sys.argv[1])
peers._active = p = peers.Peers(rank, 3, 2.0)
if rank:
  p.join('localhost', sys.stdin.readline())
else:
  print(p.open(), flush=True)
p.start()
while not rank and sum(x.rank > 0 for x in p._peers.values()) < 2:
  time.sleep(0.01)
print('watching', flush=True)
try:
  exec(sys.stdin.readline())
except BaseException as error:
  peers.fail(error)
"""


@pytest.fixture
def three():
  """Three of them, which watch one another, and wait for what to do."""
  runs = []
  for rank in range(3):
    run = subprocess.Popen(
      [sys.executable, '-c', SCRIPT, str(rank)],
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    runs.append(run)
  words = runs[0].stdout.readline()
  for run in runs[1:]:
    run.stdin.write(words)
    run.stdin.flush()
  for run in runs:
    assert run.stdout.readline() == 'watching\n'
  runs[0].words = words
  yield runs
  for run in runs:
    run.kill()
    run.communicate()


def do(run, line: str) -> None:
  run.stdin.write(f'{line}\n')
  run.stdin.flush()


def ends(run) -> tuple[int, str]:
  return run.wait(60), run.stderr.read()


@pytest.mark.parametrize('who', [0, 1])
def test_one_is_killed(three, who):
  three[who].kill()
  for run in three:
    if run is not three[who]:
      status, words = ends(run)
      assert status == peers.LOST
      assert re.fullmatch(
        rf'\nProcess {who} of 3 on \S+ has gone: it was killed, or its machine '
        'went down, so this one ends; the same command goes on from what is '
        'saved.\n',
        words,
      )


def test_one_is_stopped(three):
  """And says that it is lost, if it ever continues."""
  three[2].send_signal(signal.SIGSTOP)
  for run in three[:2]:
    status, words = ends(run)
    assert status == peers.LOST and re.search(
      rf'Process 2 of 3 on \S+ {SILENT}', words
    )
  three[2].send_signal(signal.SIGCONT)
  status, words = ends(three[2])
  assert status == peers.LOST and re.search(rf'This process {SILENT}', words)


def test_one_ends_by_a_mistake(three):
  """The others say which."""
  do(three[1], 'sys.exit("The disk is full.")')
  assert ends(three[1]) == (1, '\nThe disk is full.\n')
  for run in three[0], three[2]:
    status, words = ends(run)
    assert status == 1
    assert re.search('Process 1 .* has ended: The disk is full, so th', words)


def test_one_ends_by_a_fault_of_ours(three):
  do(three[0], 'raise TypeError("none")')
  status, words = ends(three[0])
  assert status == 1 and words.endswith('\nTypeError: none\n')
  for run in three[1:]:
    assert 'has ended: TypeError: none, so' in ends(run)[1]


def test_all_end_by_the_same_mistake(three):
  """Each says it, and nothing of the others."""
  patient = 'peers._GRACE = 60; print("so", flush=True); '
  for run in three:
    do(run, f'{patient} exec(sys.stdin.readline())')
    assert run.stdout.readline() == 'so\n'
  for run in three:
    do(run, 'sys.exit("All alike.")')
  for run in three:
    assert ends(run) == (1, '\nAll alike.\n')


def test_one_is_stopped_by_a_signal(three):
  """With its status, so that a launcher starts all again."""
  do(three[1], 'p.tell(143, "SIGTERM"); time.sleep(0.2); os._exit(143)')
  for run in three[0], three[2]:
    assert ends(run)[0] == 143


def test_who_still_saves_after_a_signal_is_not_ended(three):
  save = 'p._seconds = 60; print("so", flush=True); time.sleep(1.5)'
  for run in three[0], three[2]:
    do(run, f'{save}; sys.exit("Saved.")')
    assert run.stdout.readline() == 'so\n'
  do(three[1], 'p.tell(143, "SIGTERM"); time.sleep(0.2); os._exit(143)')
  for run in three[0], three[2]:
    assert ends(run) == (1, '\nSaved.\n')


def test_a_failed_computation_waits_for_its_reason(three):
  """Which is another process, most often."""
  line = 'import jax; raise jax.errors.JaxRuntimeError("Connection closed")'
  do(three[0], line)
  three[1].kill()
  status, words = ends(three[0])
  assert status == peers.LOST and 'Process 1 of 3' in words
  assert 'Traceback' not in words


def test_those_that_are_done_are_no_loss(three):
  for run in three[:2]:
    do(run, '')
    assert ends(run) == (0, '')
  do(three[2], 'time.sleep(0.5)')
  assert ends(three[2]) == (0, '')


def test_strangers_are_shown_the_door(three):
  port = int(three[0].words.split()[0])
  for words in b'GET / HTTP/1.1\r\n\r\n', b'{"words": "end"}\n', b'[]\n':
    with socket.create_connection(('localhost', port)) as stranger:
      stranger.sendall(words)
      assert stranger.recv(100) in (b'', b'\n')
  for run in three:
    do(run, '')
    assert ends(run) == (0, '')


def test_memory_is_no_fault_of_others():
  import jax

  for words, expected in (
    ('RESOURCE_EXHAUSTED: Out of memory', False),
    ('', 1),
  ):
    error = jax.errors.JaxRuntimeError(words)
    assert peers._is_of_all(error) == expected
  assert not peers._is_of_all(ValueError())
  error = ValueError(
    'UNKNOWN: Gloo AllGather failed: Connection closed by peer'
  )
  assert peers._is_of_all(error)
  first, second = OSError(), ValueError()
  first.__context__, second.__context__ = second, first
  assert not peers._is_of_all(first)
