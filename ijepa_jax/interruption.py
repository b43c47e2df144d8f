"""SIGTERM and Ctrl-C: a run saves before it goes."""

import signal

import jax
from jax.experimental import multihost_utils


class Interruption:
  """Whether SIGTERM or Ctrl-C asked the run to stop, alike on every process.

  Several processes agree through JAX's coordination service, which watches for
  SIGTERM itself; one process has a handler of its own.
  """

  def __enter__(self):
    self._asked = False
    self._many = jax.process_count() > 1
    self._before = {}
    for number in () if self._many else (signal.SIGINT, signal.SIGTERM):
      self._before[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _ask(self, number, frame):
    self._asked = True
    # A second signal does what it always did.
    signal.signal(number, self._before[number])

  def asked(self, step: int) -> bool:
    if self._many:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked
