"""An encoder to look through, from what a training run left.

Which model it is stands in the run's config.json; nothing has to be said twice.
Beside the trained ones there are two to compare with: the same encoder
untrained, and none at all.
"""

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from ijepa_jax import checkpoint, ijepa, recipe, sharding, vit

LAST = 4  # layers that the paper's wider features concatenate
WHICH = 'target', 'context', 'untrained', 'pixels'


@dataclasses.dataclass(frozen=True)
class Frozen:
  """An encoder, its parameters, and what it expects.

  Attributes:
    encoder: the Linen module.
    params: its parameters, float32, on the devices.
    mean, std: per channel, of pixels in [0, 1].
    image_size: (H, W) in pixels that it was trained with.
    channels: of its images.
    fingerprint: changes with any parameter and anything above.
    name: for tables and logs.
    model: the size's name, patch_size and so on.
  """

  encoder: vit.Encoder
  params: dict
  mean: tuple[float, ...]
  std: tuple[float, ...]
  image_size: tuple[int, int]
  channels: int
  fingerprint: str
  name: str
  model: dict

  def normalize(self, image_BHWC: jax.Array) -> jax.Array:
    return ijepa.normalize(image_BHWC, self.mean, self.std)

  def pooled(self, params, image_BHWC) -> tuple[jax.Array, jax.Array]:
    """The features that the paper probes, in one pass; for `jax.jit`.

    Average pool over the tokens of the last layer, and the concatenation of
    those of the last 4 layers, each after the encoder's last norm.

    Args:
      params: of the encoder.
      image_BHWC: uint8, or float32 already normalised.

    Returns:
      float32 [B, D] and [B, 4 D] (fewer where there are fewer layers).
    """
    tokens, layers_LBD = self.encoder.apply(
      {'params': params}, self.normalize(image_BHWC), layers='pooled'
    )
    last = jnp.moveaxis(layers_LBD[-LAST:], 0, 1)
    return tokens.mean(1), last.reshape(len(tokens), -1)


@dataclasses.dataclass(frozen=True)
class Pixels:
  """Raw pixels in the place of features; see `Frozen`."""

  image_size: tuple[int, int]
  channels: int
  params: dict = dataclasses.field(default_factory=dict)
  fingerprint: str = 'pixels'
  name: str = 'raw pixels'
  model: dict = dataclasses.field(default_factory=dict)

  def pooled(self, params, image_BHWC) -> tuple[jax.Array, jax.Array]:
    """float32 [B, H W C] in [0, 1], twice."""
    x = image_BHWC.reshape(len(image_BHWC), -1).astype(jnp.float32) / 255
    return x, x


def load(
  path: str, *, mesh=None, which: str = 'target', step: int | None = None
) -> Frozen | Pixels:
  """Loads an encoder from a training workdir.

  Args:
    path: of the workdir: config.json and checkpoints/.
    mesh: devices that hold the parameters, split by the rule of sharding.py;
      None: all, each with a copy.
    which: 'target', which the paper evaluates; 'context'; or to compare with
      'untrained', as the run began, or 'pixels'.
    step: of the checkpoint; None: the newest that can be read.

  Raises:
    UserError: there is no such run, or its checkpoint is of another model.
  """
  if which not in WHICH:
    raise recipe.UserError(
      f'which is {which!r}: take one of {", ".join(WHICH)}.'
    )
  mesh = mesh or sharding.make_mesh()
  with recipe.told():
    config = read_config(path)
    d = config.data
    model = recipe.build_model(config)
    if which == 'pixels':
      return Pixels(tuple(d.image_size), d.channels)
    params, words = _params(path, config, model, mesh, which, step)
  sums = checkpoint.checksums(params)
  identity = json.dumps([sums, repr(model), d.to_dict()])
  return Frozen(
    encoder=model.encoder,
    params=params,
    mean=model.mean,
    std=model.std,
    image_size=tuple(d.image_size),
    channels=d.channels,
    fingerprint=hashlib.sha256(identity.encode()).hexdigest()[:16],
    name=f'{epath.Path(path).name}, {words}',
    model=config.model.to_dict(),
  )


def _params(path, config, model, mesh, which, step):
  """The encoder's parameters, and which they are in words."""

  def init(key):
    d = config.data
    shape = *d.image_size, d.channels
    return ijepa.init_params(model, key, image_shape=shape)['encoder']

  key = jax.random.key(config.seed)
  wanted = sharding.abstract(jax.eval_shape(init, key), mesh)
  if which == 'untrained':
    shardings = jax.tree.map(lambda x: x.sharding, wanted)
    return jax.jit(init, out_shardings=shardings)(key), 'untrained encoder'
  # As the names are in ijepa.State; nothing else is read from the disk.
  tree = {'target': wanted}
  if which == 'context':
    tree = {'params': {'encoder': wanted}}
  folder = epath.Path(path) / 'checkpoints'
  with checkpoint.Checkpointer(folder) as checkpoints:
    tree, step = checkpoints.read(tree, step)
  params = tree['target'] if which == 'target' else tree['params']['encoder']
  return params, f'step {step}, {which} encoder'


def read_config(workdir) -> ConfigDict:
  """The config that a run was started with.

  Raises:
    ValueError: there is none.
  """
  path = epath.Path(workdir) / 'config.json'
  try:
    return ConfigDict(json.loads(path.read_text()))
  except (OSError, json.JSONDecodeError) as error:
    raise ValueError(
      f'{workdir} is no training workdir, its config.json can not be read '
      f'({type(error).__name__}): set init_from to the --workdir of a run.'
    ) from error
