"""Which mesh, remat and accumulation of a recipe is the fastest that fits."""

import dataclasses
from collections.abc import Callable, Iterator

from ijepa_jax.errors import UserError
from ijepa_jax.models.transformer import REMAT
from ijepa_jax.plan.plan import Plan, state_bytes
from ijepa_jax.train import compile
from ijepa_jax.train.run import make_run

_MAX_ACCUMULATE = 16


@dataclasses.dataclass(frozen=True)
class Candidate:
  """What a search changes of a config."""

  fsdp: int
  remat: str
  accumulate: int

  def __str__(self) -> str:
    """As flags to paste."""
    return (
      f'--config.mesh.data=-1 --config.mesh.fsdp={self.fsdp} '
      f'--config.model.remat={self.remat} --config.accumulate={self.accumulate}'
    )

  def applied(self, config):
    """The config with it."""
    config = config.copy_and_resolve_references()
    config.mesh.data, config.mesh.fsdp = -1, self.fsdp
    config.model.remat, config.accumulate = self.remat, self.accumulate
    return config


def search(
  config, devices: list, plan: Callable, memory: int | None, largest_fsdp: int
) -> Iterator[tuple[Candidate, Plan | str]]:
  """Yields every candidate with its plan, or with why there is none.

  For each mesh and each remat, accumulation is doubled until the step fits.

  Args:
    config: of a recipe; its batch stays as it is.
    devices: of the plan.
    plan: config -> Plan.
    memory: bytes that a program can have on a device; None: unknown.
    largest_fsdp: devices over which a state may be split.
  """
  for fsdp in meshes(len(devices), largest_fsdp, config.mesh.fsdp):
    first = Candidate(fsdp, 'none', 1)
    if (
      memory and (held := _state_bytes(first.applied(config), devices)) > memory
    ):
      yield first, f'the state alone takes {held / 2**30:.2f} GiB a chip'
      continue
    for remat in REMAT:
      accumulate = 1
      while accumulate <= _MAX_ACCUMULATE:
        candidate = Candidate(fsdp, remat, accumulate)
        try:
          result = plan(candidate.applied(config))
        except UserError as error:  # such as a batch that doesn't divide
          yield candidate, str(error)
          break
        yield candidate, result
        if result.fits:
          break
        accumulate *= 2


def fastest(results: list[tuple[Candidate, Plan | str]]):
  """The candidate and plan with the shortest step that fits; None: none does.

  Without an estimate the first that fits, which computes nothing again.
  """
  fitting = [(c, p) for c, p in results if isinstance(p, Plan) and p.fits]
  return min(
    fitting, key=lambda cp: cp[1].estimated_step_seconds or 0, default=None
  )


def meshes(count: int, largest: int, own: int) -> list[int]:
  """Sizes of 'fsdp' to try: none, a host's, all, and the recipe's own."""
  own = count if own == -1 else own
  sizes = {n for n in (1, 8, largest, own) if count % n == 0 and n <= largest}
  return sorted(sizes)


def _state_bytes(config, devices) -> int:
  run = make_run(config, devices, open_images=False)
  return state_bytes(compile.abstract_state(run)[0])
