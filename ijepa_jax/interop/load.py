"""An encoder to look through: of a training run, or of a file from elsewhere.

Which model it is stands in the run's config.json or in the file; nothing has to
be said twice. Beside the trained ones of a run there are two to compare with:
the same encoder untrained, and none at all.
"""

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from ijepa_jax import checkpoint, ijepa, recipe, sharding, vit
from ijepa_jax.interop import architecture, huggingface, torch_files

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
  """Loads an encoder.

  Args:
    path: of a training workdir (config.json and checkpoints/), a released
      .pth.tar file (which needs torch), or a Hugging Face folder.
    mesh: devices that hold the parameters, split by the rule of sharding.py;
      None: all, each with a copy.
    which: 'target', which the paper evaluates; 'context'; or of a run, to
      compare with, 'untrained', as it began, or 'pixels'. A Hugging Face folder
      holds one encoder only, which is taken, and said in words, whichever is
      asked for.
    step: of a run's checkpoint; None: the newest that can be read.

  Raises:
    UserError: there is nothing of the kind, or it is damaged or of another
      model.
  """
  if which not in WHICH:
    raise recipe.UserError(
      f'which is {which!r}: take one of {", ".join(WHICH)}.'
    )
  mesh = mesh or sharding.make_mesh()
  with recipe.told():
    if read := _reader(path):
      return _from_elsewhere(read(path), path, mesh, which)
    config = read_config(path)
    d = config.data
    model = recipe.build_model(config)
    if which == 'pixels':
      return Pixels(tuple(d.image_size), d.channels)
    params, words = _params(path, config, model, mesh, which, step)
  return _frozen(
    model.encoder,
    params,
    mean=model.mean,
    std=model.std,
    image_size=tuple(d.image_size),
    channels=d.channels,
    name=f'{epath.Path(path).name}, {words}',
    model=config.model.to_dict(),
  )


def _frozen(encoder, params, **kwargs) -> Frozen:
  identity = [checkpoint.checksums(params), repr(encoder)]
  identity += [kwargs[k] for k in ('mean', 'std', 'image_size', 'channels')]
  digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
  return Frozen(encoder, params, fingerprint=digest[:16], **kwargs)


def _reader(path):
  """What reads a file from elsewhere, or None where it is a workdir."""
  path = epath.Path(path)
  if path.is_file():
    return torch_files.read
  try:
    config = json.loads((path / 'config.json').read_text())
  except (OSError, ValueError):
    return None
  return huggingface.read if 'model_type' in config else None


def _from_elsewhere(found: architecture.Loaded, path, mesh, which) -> Frozen:
  name = {'target': 'target', 'context': 'encoder'}.get(which)
  if name is None:
    raise ValueError(f'which is {which!r}: only a training run can give that.')
  if name not in found.params:
    (name,) = found.params.keys() & {'encoder', 'target'}
  c, params = found.config, found.params[name]
  encoder, _ = architecture.models(c)
  words = {'target': 'target', 'encoder': 'context'}[name]
  size = [
    k for k, v in vit.SIZES.items() if all(c[name] == v[name] for name in v)
  ]
  return _frozen(
    encoder,
    jax.device_put(params, sharding.state_sharding(params, mesh)),
    mean=tuple(c.get('mean', ijepa.IMAGENET_MEAN)),
    std=tuple(c.get('std', ijepa.IMAGENET_STD)),
    image_size=tuple(c['image_size']),
    channels=c['channels'],
    name=f'{epath.Path(path).name}, {words} encoder',
    model={'size': size[0] if size else '', 'patch_size': c['patch_size']},
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
