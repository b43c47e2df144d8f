"""A step reckoned from shallow ones is the deep one."""

import pytest

from configs import mae_b16, tiny, vicreg_s16, vit_h14
from ijepa_jax.errors import UserError
from ijepa_jax.plan import plan, shallow, table
from ijepa_jax.plan.program.compiled import Step
from ijepa_jax.plan.program.parts import Part
from ijepa_jax.train.run import make_run
from tests.close import close


def linear_step(run):
  """Of which everything is a line over the blocks."""
  e, p = run.method.encoder.depth, run.method.predictor.depth
  return Step(
    share=0.5,
    flops=7.0,
    compile_seconds=1.0,
    peak=100 + 10 * e + p,
    temporary=50 + 5 * e + p,
    collectives={'all-reduce': 8.0 * e} | ({'all-gather': 4.0} if p else {}),
    seconds=1 + 0.5 * e + 0.25 * p,
    parts=[Part('encoder', 0.5 * e), Part('predictor', 0.25 * p)],
    dearest=[Part('fusion', 1.0)],
  )


def test_lines_are_followed(cpus):
  run = make_run(vit_h14.get_config(), cpus[:1], open_images=False)
  assert shallow.blocks(run) == {'encoder': 32, 'predictor': 12}
  step, deep = shallow.step(run, linear_step), linear_step(run)
  assert step.compile_seconds == 3.0 and step.dearest == ()
  for name in 'share', 'flops', 'peak', 'temporary', 'collectives', 'seconds':
    assert getattr(step, name) == getattr(deep, name), name
  assert step.parts == deep.parts


def test_targets_of_several_layers(cpus):
  """The shallowest step still has the blocks that its targets are made of."""
  c = vit_h14.get_config()
  c.loss.target_layers = 4
  run = make_run(c, cpus[:1], open_images=False)
  assert shallow.step(run, linear_step).seconds == linear_step(run).seconds
  assert shallow.words(run).startswith('encoder 4 and 5 of 32 blocks')


def test_what_does_not_fit(cpus):
  run = make_run(vit_h14.get_config(), cpus[:1], open_images=False)

  def refused_with_three(run):
    fits = run.method.predictor.depth < 3
    return Step(share=1, flops=1, compile_seconds=1, fits=fits, peak=5, limit=4)

  step = shallow.step(run, refused_with_three)
  assert not step.fits and step.peak is None and step.limit == 4


def test_what_remat_saves_is_not_reckoned(cpus):
  c = vit_h14.get_config()
  c.model.remat = 'full'
  run = make_run(c, cpus[:1], open_images=False)
  with pytest.raises(UserError, match=r"remat is 'full'.*without --quick"):
    shallow.step(run, linear_step)


@pytest.mark.parametrize(
  ('recipe', 'networks'),
  [
    (mae_b16, {'encoder': 12, 'predictor': 8}),
    (vicreg_s16, {'encoder': 12}),
  ],
)
def test_networks_of_other_methods(cpus, recipe, networks):
  run = make_run(recipe.get_config(), cpus[:1], open_images=False)
  assert shallow.blocks(run) == networks
  few = shallow.with_blocks(run, dict.fromkeys(networks, 2))
  assert shallow.blocks(few) == dict.fromkeys(networks, 2)


def test_a_plan(cpus):
  """What a compiler makes of all blocks, to a few percent; bytes exactly."""
  c = tiny.get_config()
  c.model.depth = c.model.unroll = 6
  c.batch_size = 64
  run = make_run(c, cpus[:2], open_images=False)
  deep = plan.make_plan(run, per_host=2)
  quick = plan.make_plan(run, per_host=2, quick=True)
  for name in 'temporary_bytes_per_chip', 'peak_bytes_per_chip':
    close(getattr(quick, name), getattr(deep, name), 0.05)
  for name in 'collectives', 'state_bytes_per_chip', 'flops', 'fits':
    assert getattr(quick, name) == getattr(deep, name), name
  assert quick.reckoned == 'encoder 2 and 3 of 6 blocks'
  assert quick.reckoned in table.table(quick, 'tiny')
  assert 'reckoned' not in table.table(deep, 'tiny')
