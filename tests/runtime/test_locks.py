"""Two writers at once: one at a time, or a sentence; the dead hold nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from etils import epath
from fsspec.implementations import memory

from ijepa_jax.runtime import locks

HOLD = (
  'import sys, time; from ijepa_jax.runtime import locks\n'
  'with locks.only_writer(sys.argv[1]):\n'
  '  print("held", flush=True); sys.stdin.read()\n'
)


@pytest.fixture
def other(tmp_path):
  """Another process that writes to tmp_path until its input ends."""
  with subprocess.Popen(
    [sys.executable, '-c', HOLD, str(tmp_path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout.readline() == 'held\n'
    yield process
    process.stdin.close()


def test_the_second_is_refused(other, tmp_path):
  words = f'process {other.pid} on {socket.gethostname()} writes to {tmp_path}'
  with pytest.raises(locks.Busy, match=words), locks.only_writer(tmp_path):
    pass
  # Saying so took nothing from the first.
  assert json.loads((tmp_path / '.lock').read_text())[1] == other.pid


def test_the_second_waits(other, tmp_path):
  threading.Timer(0.2, other.stdin.close).start()
  with locks.only_writer(tmp_path, wait=True):
    assert other.wait() == 0
    assert json.loads((tmp_path / '.lock').read_text())[1] == os.getpid()
  assert not (tmp_path / '.lock').exists()


def test_the_lock_of_a_dead_process_is_free(other, tmp_path):
  other.send_signal(signal.SIGKILL)
  other.wait()
  assert (tmp_path / '.lock').exists()
  with locks.only_writer(tmp_path, job=True):
    pass


def test_many_threads_one_at_a_time(tmp_path):
  """Each finds the file of the one before removed, and takes its own."""
  inside, most = [], []

  def work():
    with locks.only_writer(tmp_path, wait=True):
      inside.append(1)
      most.append(len(inside))
      inside.pop()

  threads = [threading.Thread(target=work) for _ in range(20)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert most == [1] * 20


class Bucket(memory.MemoryFileSystem):
  """gs:// in the memory of this process."""

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(str(path).removeprefix('gs:/'))


def test_where_there_are_no_locks(monkeypatch):
  """A bucket: who writes the file again and again is alive."""
  bucket = Bucket()
  backend = type(epath.Path('gs://b')._backend)
  monkeypatch.setattr(backend, 'fs', lambda self, path: bucket)
  monkeypatch.setattr(locks, 'BEAT', 0.1)
  lock = epath.Path('gs://bucket/run/.lock')
  with locks.only_writer('gs://bucket/run'):
    assert json.loads(lock.read_text().rsplit(' ', 1)[0])[1] == os.getpid()
    with pytest.raises(locks.Busy), locks.only_writer('gs://bucket/run'):
      pass
  assert not lock.exists()
  lock.write_text('["gone", 1, "x"] 7')  # its owner was killed
  with locks.only_writer('gs://bucket/run'):
    pass
  assert not lock.exists()


def test_nothing_is_left(tmp_path):
  with locks.only_writer(tmp_path / 'a' / 'b'):
    assert (tmp_path / 'a' / 'b').exists()
  assert not list(tmp_path.iterdir())
  with locks.only_writer(tmp_path / 'a' / 'b'):
    (tmp_path / 'a' / 'kept').touch()
  assert [p.name for p in (tmp_path / 'a').iterdir()] == ['kept']


def test_the_folder_of_the_one_before_may_go(tmp_path):
  """Each removes its empty folder, for which the others wait."""
  place, done = tmp_path / 'a' / 'b', []

  def work():
    with locks.only_writer(place, wait=True):
      done.append(place.exists())

  threads = [threading.Thread(target=work) for _ in range(20)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert done == [True] * 20
