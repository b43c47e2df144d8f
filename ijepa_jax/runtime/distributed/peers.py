"""Ends all processes of a job when one of them is gone, each with a sentence.

Process 0 listens, the others are connected to it, and all send a sign of life
again and again. A connection that closes is a process that was killed, a silent
one a process that was stopped or cut off: whatever computes with it would wait
for ever. One that ends by an error tells the others why.
"""

import atexit
import contextlib
import dataclasses
import json
import os
import selectors
import socket
import sys
import threading
import time
import traceback
import uuid

from absl import logging

from ijepa_jax.runtime.distributed import environment

LOST = os.EX_TEMPFAIL  # by which launch/slurm.sh queues the job again
_BEATS = 10  # signs of life in the time after which silence is loss
_GRACE = 5.0  # seconds for the main thread to end by itself
_FAREWELL = 1.0  # seconds for the others to read the last words
# Of process 0: JAX aborts the others, with a dump of stacks, once it is gone.
_LAST_ONE = _GRACE + 2 * _FAREWELL
_CONNECT = 30.0  # seconds for process 0 to answer at the start
_KEY = 'ijepa_jax/peers'
_GOES_ON = 'so this one ends; the same command goes on from what is saved.'


@dataclasses.dataclass
class _Peer:
  """Another process; `rank` is -1 until it has said who it is."""

  socket: socket.socket
  heard: float
  rank: int = -1
  host: str = ''
  rest: bytes = b''  # of a line that is not complete
  left: bool = False  # it is done


class Peers:
  """What a process knows of the others: of all in process 0, else of that one.

  Attributes:
    ending: the main thread ends this process.
    gone: set once another process is.
  """

  def __init__(self, rank: int, count: int, seconds: float):
    """Takes the place of this process, and how long silence may last."""
    self.ending, self.gone = False, threading.Event()
    self._rank, self._count, self._seconds = rank, count, seconds
    self._me = {'rank': rank, 'host': socket.gethostname()}
    self._token = uuid.uuid4().hex
    self._peers: dict[socket.socket, _Peer] = {}
    self._listener = None
    self._selector, self._lock = selectors.DefaultSelector(), threading.Lock()

  def open(self) -> str:
    """Listens, in process 0; returns what the others `join` by."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    self._listener = socket.create_server(
      ('', 0), family=family, backlog=self._count, dualstack_ipv6=dual
    )
    self._listener.setblocking(False)
    self._selector.register(self._listener, selectors.EVENT_READ)
    return f'{self._listener.getsockname()[1]} {self._token}'

  def join(self, host: str, words: str) -> None:
    """Connects to process 0.

    Raises:
      OSError: it can't be reached.
    """
    port, self._token = words.split()
    connection = socket.create_connection((host, int(port)), _CONNECT)
    self._add(connection, rank=0, host=host)
    self.say(**self._me, token=self._token)

  def start(self) -> None:
    """Watches from now on, in a thread, until this process ends."""
    threading.Thread(target=self._watch, daemon=True).start()
    atexit.register(self.leave)

  def leave(self) -> None:
    """Says that this process is done: its end is no loss."""
    self.ending = True
    self.say(left=True)

  def say(self, **message) -> None:
    """Sends a message to all peers; without one, a sign of life."""
    line = (json.dumps(message) if message else '') + '\n'
    with self._lock:
      for peer in self._peers.values():
        # Of one that does not read, the watching thread sees the silence.
        with contextlib.suppress(OSError):
          peer.socket.sendall(line.encode())

  def fail(self, error: BaseException) -> None:
    """Ends this process, whose main thread has failed, and tells the others.

    An error of what all compute together is most often another one's: then it
    is waited for what is known of the others.
    """
    if _is_of_all(error):
      if not self.gone.wait(_GRACE):
        logging.error('What all compute has failed: is one of them lost?')
      if self.gone.wait(self._seconds):
        time.sleep(2 * _GRACE)  # the watching thread ends this process
    self.tell(1, _one_line(error))
    time.sleep(_FAREWELL if self._rank else _LAST_ONE)
    sys.stdout.flush()
    # After what threads of libraries had to say: the last words count.
    if isinstance(error, SystemExit):
      exit_with(error.code, 1)
    exit_with(''.join(traceback.format_exception(error)).rstrip(), 1)

  def tell(self, status: int, words: str) -> None:
    """Says with what this process ends."""
    self.ending = True
    self.say(**self._me, words=words, status=status)

  def _add(self, connection, **known) -> None:
    connection.setblocking(False)
    peer = _Peer(connection, time.monotonic(), **known)
    with self._lock:
      self._peers[connection] = peer
    self._selector.register(connection, selectors.EVENT_READ)

  def _watch(self) -> None:
    spoken, beat = 0.0, self._seconds / _BEATS
    now = time.monotonic()
    while not self.ending:
      before = now
      for key, _ in self._selector.select(beat):
        if key.fileobj is self._listener:
          with contextlib.suppress(OSError):
            self._add(self._listener.accept()[0])
        else:
          self._receive(self._peers[key.fileobj])
      now = time.monotonic()
      if now - spoken >= beat:
        self.say()
        spoken = now
      if now - before > 3 * beat:
        continue  # it was this process that was stopped: what came meanwhile?
      for peer in list(self._peers.values()):
        if now - peer.heard > self._seconds:
          self._lose(
            peer,
            f'gives no sign of life for {self._seconds:g} s: it was stopped, '
            'or its machine or network is down',
          )

  def _receive(self, peer: _Peer) -> None:
    try:
      data = peer.socket.recv(2**16)
    except BlockingIOError:
      return
    except OSError:
      data = b''
    if not data:
      self._lose(peer, 'has gone: it was killed, or its machine went down')
      return
    peer.heard = time.monotonic()
    *lines, peer.rest = (peer.rest + data).split(b'\n')
    for line in filter(None, lines):
      try:
        self._hear(peer, json.loads(line))
      except (ValueError, KeyError, TypeError):  # none of this job
        self._forget(peer)
        return

  def _hear(self, peer: _Peer, message: dict) -> None:
    if peer.rank < 0:
      if message['token'] != self._token:
        raise ValueError
      peer.rank, peer.host = int(message['rank']), str(message['host'])
    elif 'left' in message:
      peer.left = True
    elif 'words' in message:
      self._end(**message)

  def _lose(self, peer: _Peer, words: str) -> None:
    if peer.rank >= 0 and not peer.left:
      self._end(peer.rank, peer.host, words)
    self._forget(peer)

  def _forget(self, peer: _Peer) -> None:
    with self._lock:
      self._peers.pop(peer.socket, None)
    with contextlib.suppress(KeyError):
      self._selector.unregister(peer.socket)
    peer.socket.close()

  def _end(self, rank: int, host: str, words: str, status: int = 0) -> None:
    """Ends this process, since another one is gone.

    Args:
      rank, host: of that one.
      words: what became of it.
      status: with which it ended by itself; 0: it is lost.
    """
    if self._rank == 0:
      self.say(rank=rank, host=host, words=words, status=status)
    self.gone.set()
    # After a signal, which all have heard, this one may still be saving. The
    # others read the words of process 0 first: JAX aborts them once it is gone.
    lost = 0.0 if self._rank else _FAREWELL
    until = time.monotonic() + {0: lost, 1: _GRACE}.get(status, self._seconds)
    while time.monotonic() < until:
      if self.ending:
        return
      time.sleep(0.1)
    who = f'Process {rank} of {self._count} on {host}'
    who = 'This process' if rank == self._rank else who
    words = f'has ended: {words.rstrip(".")}' if status else words
    exit_with(f'{who} {words}, {_GOES_ON}', status or LOST)


_active: Peers | None = None


def watch(seconds: float) -> None:
  """Watches the other processes, where jax.distributed is connected to them.

  Args:
    seconds: without a sign of life after which one is lost.
  """
  global _active
  # JAX has no public name for its store of keys and values.
  import jax
  from jax._src import distributed

  state = distributed.global_state
  if state.client is None:
    return
  peers = Peers(state.process_id, state.num_processes, seconds)
  try:
    if state.process_id == 0:
      state.client.key_value_set(_KEY, peers.open())
    else:
      words = state.client.blocking_key_value_get(_KEY, int(1000 * _CONNECT))
      peers.join(environment.split_address(state.coordinator_address)[0], words)
  except (OSError, jax.errors.JaxRuntimeError) as error:
    words = (
      'The other processes are not watched (%s): JAX will miss a lost one.'
    )
    logging.warning(words, error)
    return
  peers.start()
  _active = peers


def tell(status: int, words: str) -> None:
  """Says to the others with what this process ends, alone or as they do."""
  if _active:
    _active.tell(status, words)


def fail(error: BaseException) -> None:
  """Peers.fail; returns where this process is alone or done, or all stop."""
  done = isinstance(error, SystemExit) and not isinstance(error.code, str)
  if _active and not done:
    _active.fail(error)


def _is_of_all(error: BaseException | None) -> bool:
  """Whether a computation or a barrier of all processes has failed."""
  import jax

  seen = []  # a chain may be a ring
  while error is not None and error not in seen:
    seen.append(error)
    # Of the collectives of CPUs some fail with a ValueError.
    if isinstance(error, jax.errors.JaxRuntimeError) or 'Gloo' in str(error):
      return 'RESOURCE_EXHAUSTED' not in str(error)
    error = error.__cause__ or error.__context__
  return False


def _one_line(error: BaseException) -> str:
  if isinstance(error, SystemExit):
    return error.code
  return f'{type(error).__name__}: {error}'.splitlines()[0]


def exit_with(words: str, status: int) -> None:
  """Ends this process at once, from any thread."""
  os.write(2, f'\n{words}\n'.encode())
  os._exit(status)
