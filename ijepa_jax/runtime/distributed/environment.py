"""What the environment of a process says of its place in a job."""

import dataclasses
import json
import re
import zlib

from ijepa_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Place:
  """Of one process in its job, as a launcher tells it.

  Attributes:
    launcher: its name.
    count: processes of the job.
    rank: of this process, from 0.
    here: processes on this node; 0: not told.
    local: of this process among them; -1: not told.
    most: processes on the fullest node.
    address: 'host:port' at which process 0 can listen; '': not told.
  """

  launcher: str
  count: int
  rank: int
  here: int = 0
  local: int = -1
  most: int = 0
  address: str = ''


def number_in(env, name: str) -> int | None:
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
  """The same on every node for the same job, most likely another for another.

  Above the ports that Linux gives away.
  """
  return number_in(env, 'JAX_COORDINATOR_PORT') or (
    61440 + zlib.crc32(' '.join(names).encode()) % 4095
  )


def host_of(name: str) -> str:
  return f'[{name}]' if ':' in name and name[0] != '[' else name


def count_listed(text: str) -> int:
  """Machines in the JSON of SageMaker, TensorFlow and Vertex AI."""
  try:
    found = json.loads(text or '[]')
  except ValueError:
    return 0
  if isinstance(found, dict):
    cluster = found.get('cluster')
    lists = cluster.values() if isinstance(cluster, dict) else ()
    found = [x for part in lists if isinstance(part, list) for x in part]
  return len(found) if isinstance(found, list) else 0
