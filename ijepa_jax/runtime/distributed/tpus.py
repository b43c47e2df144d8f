"""What GKE says of a worker of TPU slices: its place in the job."""

from ijepa_jax.errors import UserError
from ijepa_jax.runtime.distributed import environment


def on_tpu(env) -> bool:
  """Returns whether JAX has TPU chips here and may use them."""
  # JAX leaves this mark on import where it found TPU chips and libtpu.
  platforms = env.get('JAX_PLATFORMS')
  return env.get('TPU_ML_PLATFORM') == 'JAX' and 'tpu' in (platforms or 'tpu')


def place(env) -> environment.Place | None:
  """Returns the place of a worker, by the environment alone.

  Workers count slice by slice, as JAX counts them. JAX itself would ask the
  metadata server for what one slice has no variable for, and GKE's may not
  answer.

  Returns:
    None: no TPU, one worker alone, or no names of workers in the environment,
    as on TPU VMs outside of GKE.

  Raises:
    UserError: there are several workers, and which one this is is missing.
  """
  names = env.get('TPU_PROCESS_ADDRESSES', env.get('TPU_WORKER_HOSTNAMES'))
  if names is None or not on_tpu(env):
    return None
  hosts = names.split(',')
  slices = environment.number_in(env, 'MEGASCALE_NUM_SLICES') or 1
  if len(hosts) * slices == 1:
    return None
  worker = _number_below(env, 'TPU_WORKER_ID', len(hosts), 'workers of a slice')
  slice_id = (
    _number_below(env, 'MEGASCALE_SLICE_ID', slices, 'slices')
    if slices > 1
    else 0
  )
  # Worker 0 of slice 0, in both.
  first = env.get('MEGASCALE_COORDINATOR_ADDRESS') or hosts[0]
  if slices > 1 and not env.get('MEGASCALE_COORDINATOR_ADDRESS'):
    raise UserError(
      f'MEGASCALE_NUM_SLICES is {slices} and MEGASCALE_COORDINATOR_ADDRESS is '
      'not set: set it to the host of worker 0 of slice 0.'
    )
  host = first.partition(':')[0]
  return environment.Place(
    f'TPU slices ({slices} of {len(hosts)} workers)',
    len(hosts) * slices,
    worker + slice_id * len(hosts),
    address=f'{host}:{environment.port_in(env, host)}',
  )


def _number_below(env, name: str, limit: int, kind: str) -> int:
  number = environment.number_in(env, name)
  if number is None or not 0 <= number < limit:
    raise UserError(
      f'{name} is {number} in the environment, and there are {limit} {kind}: '
      f'set it to the number of this one, from 0 to {limit - 1}.'
    )
  return number
