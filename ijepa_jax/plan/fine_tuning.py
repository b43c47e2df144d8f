"""Fine-tuning as it would run, without a checkpoint and without images."""

import dataclasses

import jax
from etils import epath

from ijepa_jax.errors import UserError
from ijepa_jax.evals import finetune, tasks
from ijepa_jax.evals.evaluation import Evaluation
from ijepa_jax.methods import from_config
from ijepa_jax.pretrained.frozen_encoder import FrozenEncoder
from ijepa_jax.runtime import sharding
from ijepa_jax.train.run import Run

# Training images of the tasks that are planned.
IMAGES = {'imagenet': 1_281_167, 'imagenet_1pct': 12_811}


@dataclasses.dataclass(frozen=True)
class UnopenedImages:
  """So many images with one label, none of which is there."""

  count: int
  labels: tuple[str, ...] = ('label',)

  def __len__(self) -> int:
    return self.count


def make_run(config, recipe, devices: list) -> Run:
  """Makes everything static of a fine-tuning.

  Args:
    config: see configs/evals/finetune_full.py.
    recipe: of the pre-training of the encoder, see configs/base.py.
    devices: to train on.

  Raises:
    UserError: the task is not one of IMAGES, or finetune.make_run refuses.
  """
  task = config.task or 'imagenet'
  if task not in IMAGES:
    raise UserError(
      f'task is {task!r}: fine-tuning is planned for '
      f'{" and ".join(IMAGES)}, whose number of images is known.'
    )
  method, data = from_config.make_method(recipe), recipe.data
  shape = (*data.image_size, data.channels)
  params = jax.eval_shape(
    lambda key: method.init_params(key, shape)['encoder'], jax.random.key(0)
  )
  frozen = FrozenEncoder(
    method.encoder,
    params,
    *(method.mean, method.std, tuple(data.image_size), data.channels),
    name='a recipe',
  ).adapted(None, config.image_size, config.pos_embed, None)
  images = UnopenedImages(IMAGES[task])
  evaluation = Evaluation(
    *(frozen, tasks.get(task), images, images),
    column=0,
    classes=1000,
    mesh=sharding.make_mesh(
      data=config.mesh.data, fsdp=config.mesh.fsdp, devices=devices
    ),
    workdir=epath.Path('.'),
  )
  return finetune.make_run(config, evaluation)
