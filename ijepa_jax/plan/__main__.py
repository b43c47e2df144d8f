"""Compiles a recipe for chips that are not there, and says what it takes.

    python -m ijepa_jax.plan --config=configs/vit_l16.py --topology=v5e:8x8
    python -m ijepa_jax.plan --config=configs/vit_h14.py --topology=h100:2x8

See docs/plan.md.
"""

import json
import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from ijepa_jax import recipes
from ijepa_jax.errors import UserError
from ijepa_jax.runtime import cli

FLAGS = flags.FLAGS
recipes.define_flag('config', 'Name of a recipe, or a file that ends in .py.')
recipes.define_flag('encoder', 'Of an evaluation: recipe of its encoder.')
flags.DEFINE_string(
  'topology', '', "v5e:8x8, h100:2x8, cpu:8; '': the devices that are here."
)
flags.DEFINE_integer('slices', 1, 'TPU slices of that topology.')
flags.DEFINE_bool('json', False, 'End with one line, an object.')
flags.DEFINE_bool('parts', False, 'Say which parts of a step take how long.')
flags.DEFINE_bool('all_shapes', False, 'Compile every shape of masks.')
flags.DEFINE_bool('quick', False, 'Compile few blocks, and reckon the rest.')
flags.DEFINE_bool('search', False, 'Find the mesh, remat and accumulation.')


@cli.one_sentence()
def main(argv):
  if len(argv) > 1:
    sys.exit(f'{argv[1]!r} is not a flag: see --helpshort.')
  from ijepa_jax.plan import topologies

  topology = topologies.parse(FLAGS.topology, FLAGS.slices)
  _check(topology)
  os.environ.update(topologies.environment(topology))  # before JAX starts
  import jax

  # Else the seconds of a compilation are those of reading an earlier one.
  jax.config.update('jax_enable_compilation_cache', False)
  cli.reset_jax_flags()
  devices = topologies.devices(topology)
  plan = _search if FLAGS.search else _plan
  result = plan(topology, devices)
  if FLAGS.json:
    print(json.dumps(result.as_json()))


def _check(topology) -> None:
  """Refuses what can't be planned, before JAX starts."""
  job, recipe = FLAGS.config.job, FLAGS.config
  if job == 'visualize':
    raise UserError(f'job is {job!r}: pre-training and evals are planned.')
  if job != 'pretrain':
    recipe = FLAGS.encoder
    if recipe is None or FLAGS.search or FLAGS.quick:
      raise UserError(
        f'job is {job}: name the recipe of its encoder, as in '
        '--encoder=configs/vit_h14.py, and take no --search and no --quick.'
      )
  chip = topology.chip
  if chip and chip.platform == 'gpu' and recipe.model.attention == 'cudnn':
    raise UserError(
      "model.attention is 'cudnn', which JAX compiles only where a GPU is: "
      'plan with model.attention=xla, which takes no less memory.'
    )


def _plan(topology, devices):
  from ijepa_jax.plan import table

  logging.info('Compiling for %s: large models take minutes.', devices[0])
  plan = _planner(topology, devices)(FLAGS.config)
  print(table.table(plan, _title(topology)))
  if FLAGS.parts:
    print(f'\n{table.parts(plan)}')
  return plan


def _search(topology, devices):
  from ijepa_jax.plan import plan, search, table

  slices = topology.slices
  results = []
  for candidate, result in search.search(
    FLAGS.config,
    devices,
    _planner(topology, devices),
    plan.memory_per_chip(devices[0]),
    len(devices) // slices,
  ):
    results.append((candidate, result))
    print(table.candidate(candidate, result), flush=True)
  best = search.fastest(results)
  if best is None:
    raise UserError(
      f'Nothing that was tried fits {_title(topology)}: take more chips, or a '
      'smaller --config.batch_size.'
    )
  candidate, result = best
  print(f'\n{table.table(result, _title(topology))}\n\n{candidate}')
  return result


def _planner(topology, devices):
  from ijepa_jax.plan import evaluations, plan, topologies
  from ijepa_jax.train import run

  per_host = topologies.per_host(topology, devices)

  def make_plan(config):
    if config.job in evaluations.FROZEN:
      return evaluations.make_plan(config, FLAGS.encoder, devices, per_host)
    if config.job == 'finetune':
      training = evaluations.make_run(config, FLAGS.encoder, devices)
    else:
      training = run.make_run(config, devices, open_images=False)
    return plan.make_plan(
      training,
      per_host=per_host,
      all_shapes=FLAGS.all_shapes,
      quick=FLAGS.quick,
    )

  return make_plan


def _title(topology) -> str:
  names = config_flags.get_config_filename(FLAGS['config'])
  if FLAGS.config.job != 'pretrain':
    names += f' of {config_flags.get_config_filename(FLAGS["encoder"])}'
  return f'{names} on {topology if topology.name else "what is here"}'


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  logging.set_verbosity(logging.INFO)
  app.run(main, flags_parser=cli.parse)
