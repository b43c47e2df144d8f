"""A bucket on this machine that can be taken away, for benchmarks/faults.py.

gcp-storage-emulator answers Google's JSON API, as gcsfs, google-cloud-storage
and TensorStore speak it; a proxy before it can refuse all connections.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time

from fault_runs import free_port

_BUFFER = 2**16


class Bucket:
  """gs://faults behind a proxy; a context.

  Attributes:
    env: what a process needs to find it; also set in this one.
  """

  def __init__(self, folder):
    self._folder = folder
    self._port, self._behind = free_port(), free_port()
    self._connections, self._listener = [], None
    url = f'http://localhost:{self._port}'
    self.env = {
      'STORAGE_EMULATOR_HOST': url,  # gcsfs and google-cloud-storage
      'TENSORSTORE_GCS_HTTP_URL': url,
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none',  # TensorStore
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
      'FSSPEC_GCS_TOKEN': 'anon',
      'FSSPEC_GS_TOKEN': 'anon',
    }

  def __enter__(self):
    os.environ |= self.env
    self._folder.mkdir(parents=True, exist_ok=True)
    self._emulator = subprocess.Popen(
      [
        *(sys.executable, '-m', 'gcp_storage_emulator', 'start'),
        f'--port={self._behind}',
        '--host=localhost',
        '--in-memory',
        '--default-bucket=faults',
      ],
      stdout=(self._folder / 'emulator').open('w'),
      stderr=subprocess.STDOUT,
    )
    while True:
      with contextlib.suppress(OSError):
        socket.create_connection(('localhost', self._behind)).close()
        break
      assert self._emulator.poll() is None, 'the emulator did not start'
      time.sleep(0.1)
    self.answer()
    return self

  def __exit__(self, *_):
    self.refuse()
    self._emulator.kill()
    self._emulator.wait()

  def answer(self) -> None:
    """Passes everything on, from now on."""
    self._listener = socket.create_server(('localhost', self._port))
    threading.Thread(
      target=self._serve, args=(self._listener,), daemon=True
    ).start()

  def refuse(self) -> None:
    """Breaks all connections and refuses new ones, from now on."""
    # close() alone would leave accept() waiting, and the port open.
    for s in (self._listener, *self._connections):
      with contextlib.suppress(OSError):
        s.shutdown(socket.SHUT_RDWR)
      s.close()
    self._connections = []

  def _serve(self, listener) -> None:
    with contextlib.suppress(OSError):
      while True:
        near, _ = listener.accept()
        far = socket.create_connection(('localhost', self._behind))
        self._connections += [near, far]
        for a, b in ((near, far), (far, near)):
          threading.Thread(target=self._copy, args=(a, b), daemon=True).start()

  def _copy(self, source, target) -> None:
    with contextlib.suppress(OSError):
      while data := source.recv(_BUFFER):
        target.sendall(data)
    for s in source, target:
      with contextlib.suppress(OSError):
        s.shutdown(socket.SHUT_RDWR)
