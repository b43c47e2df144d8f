"""A plan as a person reads it."""

from ijepa_jax.plan.plan import Plan
from ijepa_jax.plan.program import cost


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
    'operations': f'{plan.flops / 1e12:.3g} TFLOP of the model a step',
    'compiled in': f'{plan.compile_seconds:.0f} s',
    'reckoned from': plan.reckoned,
    'state': f'{_amount(plan.state_bytes_per_chip)} a chip',
  }
  if plan.temporary_bytes_per_chip is not None:
    count = _amount(plan.temporary_bytes_per_chip)
    rows['activations'] = f'{count} a chip, with all else that a step makes'
    rows['sent'] = _collectives(plan)
  rows['peak'] = fit(plan)
  if plan.estimated_step_seconds is not None:
    rows['estimate'] = _estimate(plan)
    rows['whole run'] = _whole_run(plan)
  rows = {k: v for k, v in rows.items() if v}
  width = max(map(len, rows))
  lines = [f'{k:<{width}}  {v}' for k, v in rows.items()]
  return '\n'.join([title, *lines, '', made_of(plan)])


def parts(plan: Plan) -> str:
  """Where a step spends its time: by part, then the dearest instructions."""
  total = sum(part.seconds for part in plan.parts)
  if not total:
    return made_of(plan)

  def row(part):
    share = f'{100 * part.seconds / total:.1f}%'
    return f'{1e3 * part.seconds:10.4g} ms {share:>7}  '

  lines = [row(part) + part.name for part in plan.parts]
  if plan.dearest:
    lines += ['', 'The dearest instructions:']
  for part in plan.dearest:
    scopes = part.scopes.rpartition('closed_call/')[2].split('/')
    lines.append(f'{row(part)}{part.line or "-"}  {"/".join(scopes[-3:])}')
  return '\n'.join(lines)


def _amount(count: float | None) -> str:
  if count is None:
    return 'unknown'
  return (
    f'{count / 2**30:.2f} GiB' if count > 2**27 else f'{count / 2**20:.2f} MiB'
  )


def fit(plan: Plan) -> str:
  """Whether it fits, in words."""
  need, limit = _amount(plan.peak_bytes_per_chip), _amount(plan.memory_per_chip)
  if plan.fits:
    return f'{need} of {limit} a chip: fits'
  return f'does not fit: needs {need} of {limit} a chip'


def made_of(plan: Plan) -> str:
  """One sentence on the estimate."""
  if not plan.fits:
    return 'There is no estimate of what does not fit.'
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
  parts = [f'{k} {_amount(v)}' for k, v in plan.collectives.items()]
  return f'{", ".join(parts)} a chip a step'


def _estimate(plan: Plan) -> str:
  return (
    f'{1e3 * plan.estimated_step_seconds:.4g} ms a step, '
    f'{plan.images_per_second:.4g} images/s, MFU {100 * plan.mfu:.2g}%'
  )


def _whole_run(plan: Plan) -> str:
  return (
    f'{plan.total_steps} steps: {plan.hours:.3g} hours, '
    f'{plan.hours * plan.chips:.4g} chip-hours'
  )


def candidate(flags, result: Plan | str) -> str:
  """One line of a search: what was tried, and what came of it."""
  if not isinstance(result, Plan):
    return f'{flags}: {result}'
  text = f'{flags}: {fit(result)}'
  if result.estimated_step_seconds is not None:
    text += f'; {_estimate(result)}'
  return text
