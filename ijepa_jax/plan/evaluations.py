"""Evaluations as they would run, without a checkpoint and without images."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from ijepa_jax.errors import UserError
from ijepa_jax.evals import attentive, features, finetune, linear, tasks
from ijepa_jax.evals.evaluation import Evaluation
from ijepa_jax.methods import from_config
from ijepa_jax.models import functions
from ijepa_jax.plan import flops, plan
from ijepa_jax.plan.program.compiled import compile_step
from ijepa_jax.pretrained.frozen_encoder import FrozenEncoder
from ijepa_jax.probes import train_heads
from ijepa_jax.runtime import sharding
from ijepa_jax.train.run import Run

# Training images of the tasks that are planned.
IMAGES = {'imagenet': 1_281_167, 'imagenet_1pct': 12_811}
TEST_IMAGES = 50_000
# Jobs of a frozen encoder; those that train heads on images of each epoch.
FROZEN = 'linear', 'attentive', 'knn', 'logistic'
_SWEEPS = {'linear': linear, 'attentive': attentive}


@dataclasses.dataclass(frozen=True)
class UnopenedImages:
  """So many images with one label, none of which is there."""

  count: int
  labels: tuple[str, ...] = ('label',)

  def __len__(self) -> int:
    return self.count


@dataclasses.dataclass(frozen=True)
class Pass:
  """The program that a frozen encoder's job spends its time in.

  Attributes:
    step: the jitted function.
    state: shapes of what it keeps: the encoder's parameters and the heads.
    inputs: shapes of what it takes besides.
    words: what a step is.
    batch_size: images of a step.
    total_steps: of the job.
  """

  step: Callable
  state: tuple
  inputs: tuple
  words: str
  batch_size: int
  total_steps: int


def make_evaluation(config, recipe, devices: list) -> Evaluation:
  """Makes what a job knows of its encoder and its images.

  Args:
    config: of the job, see configs/evals.
    recipe: of the pre-training of the encoder, see configs/base.py.
    devices: to run on.

  Raises:
    UserError: the task is not one of IMAGES, or no encoder is judged.
  """
  if config.which == 'pixels':
    raise UserError('which is pixels: the plan is of an encoder.')
  default = 'imagenet_1pct' if config.job == 'logistic' else 'imagenet'
  task = config.task or default
  if task not in IMAGES:
    raise UserError(
      f'task is {task!r}: evaluations are planned for '
      f'{" and ".join(IMAGES)}, whose number of images is known.'
    )
  data, platform = recipe.data, devices[0].platform
  method = from_config.make_method(recipe, platform=platform)
  shape = (*data.image_size, data.channels)
  params = jax.eval_shape(
    lambda key: method.init_params(key, shape)['encoder'], jax.random.key(0)
  )
  mesh = sharding.make_mesh(
    data=config.mesh.data, fsdp=config.mesh.fsdp, devices=devices
  )
  attention = functions.inference_attention(method.encoder.attention, platform)
  frozen = FrozenEncoder(
    method.encoder.clone(attention=attention),
    sharding.with_shardings(params, mesh),
    *(method.mean, method.std, tuple(data.image_size), data.channels),
    name='a recipe',
  ).adapted(None, config.image_size, config.pos_embed, None)
  return Evaluation(
    *(frozen, tasks.get(task)),
    *(UnopenedImages(IMAGES[task]), UnopenedImages(TEST_IMAGES)),
    column=0,
    classes=1000,
    mesh=mesh,
    workdir=epath.Path('.'),
  )


def make_run(config, recipe, devices: list) -> Run:
  """Makes everything static of a fine-tuning; see `make_evaluation`."""
  return finetune.make_run(config, make_evaluation(config, recipe, devices))


def make_plan(config, recipe, devices: list, per_host: int) -> plan.Plan:
  """Compiles the pass of a frozen encoder's job, and reads what it takes.

  Args:
    config, recipe, devices: see `make_evaluation`.
    per_host: devices that share a host.
  """
  evaluation = make_evaluation(config, recipe, devices)
  job = make_pass(config, evaluation)
  arguments = *job.state, *job.inputs
  jaxpr = jax.make_jaxpr(job.step)(*arguments)
  step = compile_step(
    lambda: job.step.lower(*arguments).compile(),
    *(evaluation.mesh.devices.flat[0], per_host),
    share=1.0,
    flops=flops.product_flops(jaxpr.jaxpr),
  )
  return plan.of_steps(
    [step],
    evaluation.mesh,
    shapes=job.words,
    state_bytes_per_chip=plan.state_bytes(job.state),
    accumulate=1,
    batch_size=job.batch_size,
    total_steps=job.total_steps,
  )


def make_pass(config, evaluation: Evaluation) -> Pass:
  """Returns the program of a job of FROZEN.

  It is the step of the heads, images and encoder included, of a job that trains
  them on images of each epoch; else the pass that computes all features once.
  """
  mesh, frozen = evaluation.mesh, evaluation.frozen
  sweeps = _SWEEPS.get(config.job)
  if sweeps and config[config.job].augment:
    sweep = sweeps.make_sweep(config, evaluation)
    encode = sweeps.make_encode(frozen)
    state = _shaped(
      jax.eval_shape(
        train_heads.compiled(sweep, mesh)[0], jax.random.key(config.seed)
      ),
      sharding.replicated(mesh),
    )
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return Pass(
      linear.make_update(config, evaluation, sweep, encode),
      (frozen.params, state),
      (_batch(evaluation, sweep.batch_size), step),
      f'crops for a step of {len(sweep.heads)} heads',
      sweep.batch_size,
      sweep.epochs * sweep.steps_per_epoch,
    )
  size = -(-config.batch_size // mesh.size) * mesh.size
  images = len(evaluation.train) + len(evaluation.test)
  return Pass(
    jax.jit(
      features.make_rows(frozen), out_shardings=sharding.replicated(mesh)
    ),
    (frozen.params,),
    (_batch(evaluation, size),),
    'features, computed once',
    size,
    -(-images // size),
  )


def _batch(evaluation: Evaluation, size: int) -> dict:
  frozen = evaluation.frozen
  image = size, *frozen.image_size, frozen.channels
  batch = {
    'image': jax.ShapeDtypeStruct(image, np.uint8),
    'label': jax.ShapeDtypeStruct((size, 1), np.int32),
  }
  return _shaped(batch, sharding.batch_sharding(evaluation.mesh))


def _shaped(shapes, of):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=of), shapes
  )
