"""Starts jax.distributed, and logs the devices of each process."""

import collections
import os
import re
import socket
import threading

import jax
from absl import logging

from ijepa_jax.errors import UserError
from ijepa_jax.runtime.distributed import environment, gpus, launchers, peers

_PATIENCE = 300.0  # seconds for all processes of the job to be there


def initialize(
  coordinator: str = '',
  num_processes: int = 0,
  process_id: int = -1,
  lost_after: float = 100.0,
) -> None:
  """Starts jax.distributed if this is one process of several.

  All three arguments, or none: then the environment decides, and without a
  launcher nothing is done. Call it before anything that touches a device.

  Args:
    coordinator: 'host:port' of process 0.
    num_processes: of the whole job.
    process_id: of this process, from 0.
    lost_after: seconds without a sign of life after which a process is lost,
      and all others end, see peers.py.

  Raises:
    UserError: arguments or variables that are incomplete or name no process of
      the job; several processes that do not say where they are, or cannot
      reach one another; GPUs that do not divide over them.
  """
  by_hand = None
  if coordinator or num_processes or process_id != -1:
    if (
      not re.fullmatch(r'.+:\d+', coordinator)
      or not 0 <= process_id < num_processes
    ):
      raise UserError(
        f'coordinator = {coordinator!r}, num_processes = {num_processes} and '
        f'process_id = {process_id} do not name a process: give all three, as '
        "'host:port', 1 or more, and 0 or more but less than num_processes."
      )
    by_hand = environment.Place(
      'arguments', num_processes, process_id, address=coordinator
    )
  cluster = launchers.detect_cluster(os.environ, gpus.count_gpus, by_hand)
  if cluster is None:
    return
  launcher, options = cluster
  logging.info('One process of several, says %s: %s.', launcher, options)
  _connect(options, lost_after)
  peers.watch(lost_after)
  _check_devices(options.get('num_processes'))
  logging.info(
    'Process %d of %d is connected.', jax.process_index(), jax.process_count()
  )


def _connect(options, lost_after: float, patience: float = _PATIENCE):
  failures = []
  options = {
    # At the end of its own patience JAX aborts, with a dump of its stack.
    'initialization_timeout': int(2 * patience),
    # Behind peers.py, which sees more: what it can't see this still ends.
    'heartbeat_timeout_seconds': int(2 * lost_after + 60),
    **options,
  }

  def call():
    try:
      jax.distributed.initialize(**options)
    except Exception as error:
      failures.append(error)

  # In a thread, since the main thread gets no signal while C++ code waits for
  # the other processes.
  thread = threading.Thread(target=call, daemon=True)
  thread.start()
  thread.join(patience)
  address = options.get('coordinator_address', 'the address of process 0')
  lost = f'The processes of the job did not find one another at {address}'
  if thread.is_alive():
    # Before JAX's service, which ends with this process, has the last words.
    peers.exit_with(
      f'{lost} in {patience:g} s: {_what_is_missing(address)}.', 1
    )
  for error in failures:
    if not isinstance(error, RuntimeError):
      raise error
    raise UserError(f'{lost}: {error}') from error


def _what_is_missing(address: str) -> str:
  try:
    with socket.create_connection(environment.split_address(address), 5.0):
      return 'process 0 is there, others are not; start all of them'
  except (OSError, ValueError) as error:
    return f'process 0 cannot be reached ({error})'


def _check_devices(count: int | None) -> None:
  """Refuses processes that would train several runs or can't split a batch."""
  if count not in (None, jax.process_count()):
    raise UserError(
      f'{count} processes were started and JAX joins {jax.process_count()}: '
      'the devices of the kind that is used cannot be joined.'
    )
  counts = collections.Counter(d.process_index for d in jax.devices())
  if len(set(counts.values())) > 1:
    raise UserError(
      f'The processes have {[counts[i] for i in sorted(counts)]} devices: '
      'start them so that each has as many, or set JAX_LOCAL_DEVICE_IDS.'
    )


def log_devices() -> None:
  """Logs the rank of this process, the number of processes, and its devices."""
  logging.info(
    'Process %d of %d, devices: %s',
    jax.process_index(),
    jax.process_count(),
    ', '.join(f'{d} ({d.device_kind})' for d in jax.local_devices()),
  )
