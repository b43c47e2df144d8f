"""A plan as a person reads it."""

from ijepa_jax.plan import cost
from ijepa_jax.plan.plan import Plan


def table(plan: Plan, title: str) -> str:
  """A line for each figure, and a sentence on what the estimate is made of.

  Args:
    title: what was planned, for which chips.
  """
  rows = {
    'chips': f'{plan.chips} of {plan.kind} ({plan.platform})',
    'mesh': ', '.join(f'{k} {v}' for k, v in plan.mesh.items()),
    'images': _images(plan),
    'batch': plan.shapes,
    'state': f'{gib(plan.state_bytes_per_chip)} a chip',
    'activations': f'{gib(plan.temporary_bytes_per_chip)} a chip, with all '
    'else that a step makes',
    'peak': fit(plan),
    'compiled in': f'{plan.compile_seconds:.0f} s',
    'sent': _collectives(plan),
    'operations': f'{plan.flops / 1e12:.3g} TFLOP of the model a step',
    'estimate': _estimate(plan),
    'whole run': _whole_run(plan),
  }
  width = max(map(len, rows))
  lines = [f'{k:<{width}}  {v}' for k, v in rows.items()]
  return '\n'.join([title, *lines, '', made_of(plan)])


def gib(count: float | None) -> str:
  return 'unknown' if count is None else f'{count / 2**30:.2f} GiB'


def fit(plan: Plan) -> str:
  """Whether it fits, in words."""
  need, limit = gib(plan.peak_bytes_per_chip), gib(plan.memory_per_chip)
  if plan.fits:
    return f'{need} of {limit} a chip: fits'
  return f'does not fit: needs {need} of {limit} a chip'


def made_of(plan: Plan) -> str:
  """One sentence on the estimate."""
  if plan.estimated_step_seconds is None:
    return 'There is no estimate of time for these chips.'
  text = cost.MADE_OF[plan.platform]
  if plan.uncounted_loops:
    text += (
      f' ({plan.uncounted_loops} loops that do not tell how often they run are '
      'counted once)'
    )
  return (
    f'The estimate is {text}; it is no measurement, and knows nothing of the '
    'input pipeline, checkpoints or slow hosts.'
  )


def _images(plan: Plan) -> str:
  text = f'{plan.batch_size} a step, {plan.images_per_chip} a chip'
  if plan.accumulate > 1:
    pieces = plan.images_per_chip // plan.accumulate
    text += f' in {plan.accumulate} micro-batches of {pieces}'
  return text


def _collectives(plan: Plan) -> str:
  if not plan.collectives:
    return 'nothing'
  parts = [f'{k} {gib(v)}' for k, v in plan.collectives.items()]
  return f'{", ".join(parts)} a chip a step'


def _estimate(plan: Plan) -> str:
  if plan.estimated_step_seconds is None:
    return 'none'
  return (
    f'{1e3 * plan.estimated_step_seconds:.4g} ms a step, '
    f'{plan.images_per_second:.4g} images/s, MFU {100 * plan.mfu:.0f}%'
  )


def _whole_run(plan: Plan) -> str:
  text = f'{plan.total_steps} steps'
  if plan.hours is None:
    return text
  return (
    f'{text}: {plan.hours:.3g} hours, {plan.hours * plan.chips:.4g} chip-hours'
  )


def candidate(flags, result: Plan | str) -> str:
  """One line of a search: what was tried, and what came of it."""
  if not isinstance(result, Plan):
    return f'{flags}: {result}'
  return f'{flags}: {fit(result)}; {_estimate(result)}'
