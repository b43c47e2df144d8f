"""The place of a process in its job, and readers of environment variables."""

import dataclasses
import json
import re
import zlib

from ijepa_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Place:
  """The place of one process in its job, as a launcher gives it.

  Attributes:
    launcher: its name.
    count: processes of the job.
    rank: of this process, from 0.
    local_count: processes on this node; 0: unknown.
    local_rank: of this process among them; -1: unknown.
    max_local_count: processes on the fullest node; 0: unknown.
    address: 'host:port' at which process 0 can listen; '': unknown.
  """

  launcher: str
  count: int
  rank: int
  local_count: int = 0
  local_rank: int = -1
  max_local_count: int = 0
  address: str = ''


def number_in(env, name: str) -> int | None:
  """Returns a variable as a whole number; None if it is not set or empty.

  Raises:
    UserError: it is no whole number.
  """
  text = env.get(name, '').strip() if name else ''
  if not text:
    return None
  if not re.fullmatch(r'-?\d+', text):
    raise UserError(
      f'{name} is {text!r} in the environment: it should be a whole number, '
      'so correct it or unset it.'
    )
  return int(text)


def port_in(env, *names: str) -> int:
  """Returns a port for process 0: $JAX_COORDINATOR_PORT, else by `names`.

  Names of the job give the same port on every node, and other jobs most likely
  another one. It is above the ports that Linux assigns by itself.
  """
  return number_in(env, 'JAX_COORDINATOR_PORT') or (
    61440 + zlib.crc32(' '.join(names).encode()) % 4095
  )


def host_of(name: str) -> str:
  """Returns a host for 'host:port'; IPv6 addresses get their brackets."""
  return f'[{name}]' if ':' in name and name[0] != '[' else name


def split_address(address: str) -> tuple[str, int]:
  """Returns the host, without brackets, and the port of 'host:port'."""
  host, _, port = address.rpartition(':')
  return host.strip('[]'), int(port)


def count_listed(text: str) -> int:
  """Counts the machines in the JSON of SageMaker, TensorFlow and Vertex AI."""
  try:
    machines = json.loads(text or '[]')
  except ValueError:
    return 0
  if isinstance(machines, dict):
    cluster = machines.get('cluster')
    lists = cluster.values() if isinstance(cluster, dict) else ()
    machines = [x for part in lists if isinstance(part, list) for x in part]
  return len(machines) if isinstance(machines, list) else 0
