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
from collections.abc import Callable

_kept = []  # C++ has the address alone


@contextlib.contextmanager
def replaced(end: Callable[[], None]):
  """A context in which jax.distributed may connect.

  Args:
    end: is called later in place of abort(), in any thread; it ends the
      process.
  """
  from jax._src import distributed

  module, name = distributed._jax, 'get_distributed_runtime_client'
  make = getattr(module, name)
  callback = {'missed_heartbeat_callback': lambda *_: end()}
  setattr(module, name, functools.partial(make, **callback))
  try:
    yield
  finally:
    setattr(module, name, make)
  with contextlib.suppress(OSError, AttributeError):  # another C++ library
    function = ctypes.CFUNCTYPE(None)(end)
    _kept.append(function)
    ctypes.CDLL('libstdc++.so.6')._ZSt13set_terminatePFvvE(function)
