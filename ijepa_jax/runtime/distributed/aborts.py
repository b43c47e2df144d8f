"""A sentence where JAX's client of several processes would call abort().

It does so, after a dump of its stack, where it can't reach the service in
process 0, and where that says that a process has failed. For another end it has
an argument that jax.distributed does not pass on, and that takes no function of
Python (0.8 to 0.12): calling one is a C++ error. While jax.distributed connects
that error arrives in Python; later it is caught as C++ gives up.
"""

import contextlib
import ctypes
import functools
import socket
import time

from jax._src import distributed

from ijepa_jax.runtime.distributed import environment, peers

_kept = []  # C++ has the address alone


@contextlib.contextmanager
def replaced():
  """A context in which jax.distributed may connect; abort() is `_end` later."""
  module, name = distributed._jax, 'get_distributed_runtime_client'
  make = getattr(module, name)
  callback = {'missed_heartbeat_callback': lambda *_: _end()}
  setattr(module, name, functools.partial(make, **callback))
  try:
    yield
  finally:
    setattr(module, name, make)
  with contextlib.suppress(OSError, AttributeError):  # another C++ library
    function = ctypes.CFUNCTYPE(None)(_end)
    _kept.append(function)
    ctypes.CDLL('libstdc++.so.6')._ZSt13set_terminatePFvvE(function)


def disconnect() -> None:
  """Ends what is left of a connection that failed.

  Else JAX does at the exit of the process, and logs more than is worth it.
  """
  state = distributed.global_state
  for part in 'client', 'service':
    with contextlib.suppress(Exception):
      getattr(state, part).shutdown()
    setattr(state, part, None)


def unreachable() -> str:
  """Says why process 0 can't be reached; '': it can."""
  try:
    address = environment.split_address(
      distributed.global_state.coordinator_address
    )
    with socket.create_connection(address, peers.GRACE):
      return ''
  except (OSError, ValueError, AttributeError) as error:
    return f'process 0 can not be reached ({error})'


def _end() -> None:
  # The thread that watches the others may know more, and ends it sooner.
  time.sleep(2 * peers.GRACE)
  reason = unreachable() or 'JAX has given up, as it says above'
  address = distributed.global_state.coordinator_address
  peers.exit_with(
    f'The job of {address} is broken: {reason}, {peers.GOES_ON}', 1
  )
