"""The parts of a real step, and the lines that its instructions come from."""

import pytest

from configs import tiny
from ijepa_jax.models import functions
from ijepa_jax.plan import chips
from ijepa_jax.plan.program import cost, hlo, lines, parts
from ijepa_jax.train import compile
from ijepa_jax.train.run import make_run
from tests.close import close


@pytest.fixture(scope='module')
def text(cpus):
  c = tiny.get_config()
  c.model.depth, c.batch_size = 1, 8
  run = make_run(c, cpus[:1], open_images=False)
  abstract, _ = compile.abstract_state(run)
  (step,) = compile.compile_steps(run, abstract).values()
  return step.as_text()


def test_parts_of_a_step(text):
  """Each is there, and together they are all that the step takes."""
  module, chip = hlo.parse(text), chips.CHIPS['h100']
  costs = cost.seconds_by_instruction(module, chip)
  seconds = {part.name: part.seconds for part in parts.of_step(costs)}
  for name in (
    *('patch embedding', 'target encoder', 'context encoder', 'predictor'),
    *('optimizer', 'EMA of the target', 'loss'),
  ):
    assert seconds[name] > 0
  assert 'other encoders' not in seconds
  close(sum(seconds.values()), cost.step_seconds(module, chip, 1), 1e-9)


def test_dearest_instructions(text):
  module, chip = hlo.parse(text), chips.CHIPS['h100']
  costs = cost.seconds_by_instruction(module, chip)
  dearest = parts.dearest(costs, text, 5)
  seconds = [part.seconds for part in dearest]
  assert len(seconds) == 5 and seconds == sorted(seconds, reverse=True)


def test_lines_of_instructions(text):
  """Of attention's products, the line that calls it."""
  source = lines.Lines(text)
  with open(functions.__file__) as f:
    (line,) = [i for i, x in enumerate(f, 1) if "einsum('bhqk" in x]
  of = {
    source.of(x)
    for computation in hlo.parse(text).computations.values()
    for x in computation.values()
    if 'bhqk,bhkd' in x.op_name
  }
  assert f'models/functions.py:{line}' in of


def test_lines_of_older_versions():
  x = hlo.Instruction('a', 'add', (), (), '', '', '', False)
  assert lines.Lines('').of(x) == ''

  def of(name):
    metadata = f'metadata={{op_name="f" source_file="{name}" source_line=7}}'
    x = hlo.Instruction('a', 'add', (), (), '', '', metadata, False)
    return lines.Lines('').of(x)

  assert of('/x/ijepa_jax/models/vit.py') == 'models/vit.py:7'
  assert of('/x/flax/linen/linear.py') == ''
