"""The model that is looked at: any I-JEPA, with its masks, on the devices."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from absl import logging
from etils import epath

from ijepa_jax.data import sources
from ijepa_jax.data.scenes import scene
from ijepa_jax.data.transforms import crop
from ijepa_jax.errors import UserError
from ijepa_jax.methods import from_config, ijepa, masks
from ijepa_jax.models import functions, vit
from ijepa_jax.pretrained import load
from ijepa_jax.pretrained.formats import weights
from ijepa_jax.runtime import sharding


@dataclasses.dataclass(frozen=True)
class Subject:
  """Attributes:
  method: with the sampler of its masks.
  params: {'encoder', 'predictor'} on the devices; the predictor may lack.
  target: parameters of the target encoder.
  image_size: (H, W) in pixels.
  channels: of its images.
  name: for titles and logs.
  run_config: the ConfigDict of a run or an export to orbax; None: a file's.
  """

  method: ijepa.IJEPA
  params: dict[str, Any]
  target: Any
  image_size: tuple[int, int]
  channels: int
  name: str
  run_config: Any

  @property
  def grid(self) -> tuple[int, int]:
    p = self.method.encoder.patch_size
    return self.image_size[0] // p, self.image_size[1] // p

  @property
  def has_predictor(self) -> bool:
    return 'predictor' in self.params

  @property
  def num_blocks(self) -> int:
    """Target blocks of an image."""
    return self.method.sampler.num_targets

  @property
  def train_transform(self) -> crop.RandomResizedCrop:
    """The crops that it was trained on; of a file the release's."""
    if self.run_config is None or 'crop_scale' not in self.run_config.data:
      return crop.RandomResizedCrop(self.image_size)
    d = self.run_config.data
    return crop.RandomResizedCrop(
      self.image_size, tuple(d.crop_scale), tuple(d.crop_ratio), d.flip
    )

  def one_size(self, batch_size: int) -> 'OneSize':
    """Its masks, all of one size; `batch_size` is that of the pipeline."""
    return OneSize(self.method.sampler, batch_size)


@dataclasses.dataclass(frozen=True)
class OneSize:
  """Masks of a sampler whose blocks have one size, the one of its first step.

  A sampler draws a size for each step; so arrays of all images have one shape.

  Attributes:
    sampler: see methods/masks.py.
    batch_size: rows of a step.
  """

  sampler: Any
  batch_size: int

  def __call__(self, seed: int, step: int, row: int):
    return self.sampler(seed, 0, step * self.batch_size + row)


def load_subject(
  path, mesh, *, step: int | None = None, mask_settings: dict | None = None
) -> Subject:
  """Loads all parts of a model.

  Where there is one encoder alone it is taken for both.

  Args:
    path: of a workdir, an export, a .pth.tar file or a Hugging Face folder.
    mesh: devices that hold the parameters.
    step: of a workdir's checkpoint; None: the newest that can be read.
    mask_settings: of masks.make_sampler, with `sampler`; None: the run's, or
      the release's.

  Raises:
    UserError: there is nothing of the kind, or it does not fit.
  """
  loaded = load.read_weights(path, step=step)
  loaded.log_notes(path)
  method = _make_method(loaded)
  platform = mesh.devices.flat[0].platform
  attention = functions.inference_attention(method.encoder.attention, platform)
  computation = dict(
    attention=attention, product_dtype=functions.product_dtype(platform)
  )
  method = dataclasses.replace(
    method,
    encoder=method.encoder.clone(**computation),
    predictor=method.predictor.clone(**computation),
  )
  image_size = tuple(loaded.config['image_size'])
  settings = dict(mask_settings or _mask_settings(loaded.run_config))
  p = method.encoder.patch_size
  sampler = masks.make_sampler(
    settings.pop('sampler'),
    grid=(image_size[0] // p, image_size[1] // p),
    **settings,
  )
  parts = loaded.params
  target = parts.get('target', parts.get('encoder'))
  params = {'encoder': parts.get('encoder', target)}
  if 'predictor' in parts and _is_ijepa(loaded):
    params['predictor'] = parts['predictor']
  else:
    logging.warning(
      'There is no predictor of features in %s: pictures of the encoder alone.',
      path,
    )

  def place(tree):
    return jax.device_put(tree, sharding.state_sharding(tree, mesh))

  return Subject(
    dataclasses.replace(method, sampler=sampler),
    place(params),
    place(target),
    image_size,
    loaded.config['channels'],
    epath.Path(path).name + (f', step {loaded.step}' if loaded.step else ''),
    loaded.run_config,
  )


def _is_ijepa(loaded: weights.Weights) -> bool:
  """Whether features are what it predicts; files hold I-JEPA alone."""
  config = loaded.run_config
  return config is None or config.get('method', 'ijepa') == 'ijepa'


def _make_method(loaded: weights.Weights) -> ijepa.IJEPA:
  """The method; of another one, I-JEPA with its encoder."""
  config = loaded.run_config
  if config is not None and 'loss' in config:
    if _is_ijepa(loaded):
      return from_config.make_method(config)
    encoder, predictor = vit.make_models(**config.model.to_dict())
    mean, std = config.data.mean, config.data.std
  else:
    encoder, predictor = weights.models(loaded.config)
    mean = loaded.config.get('mean', vit.IMAGENET_MEAN)
    std = loaded.config.get('std', vit.IMAGENET_STD)
  return ijepa.IJEPA(encoder, predictor, mean=tuple(mean), std=tuple(std))


def _mask_settings(run_config) -> dict:
  if run_config is not None and 'mask' in run_config:
    return run_config.mask.to_dict()
  return {'sampler': 'release'}


class Images(NamedTuple):
  """Images to look at, and others to learn from.

  Attributes:
    gallery: a source of images that the model was not trained on, where there
      are such.
    open_train: opens those that it was trained on, or all of the same folder.
  """

  gallery: Any
  open_train: Callable[[], Any]


def open_images(subject: Subject, data, count: int) -> Images:
  """Opens the images of a run, or those of the config.

  Args:
    subject: whose run_config says where its images are.
    data: section of the config; an empty source asks for the run's own.
    count: of scenes in the gallery.

  Raises:
    UserError: a file does not say which images it was trained on.
  """
  if data.path and not data.source:
    raise UserError(
      f'data.path is {data.path!r}, and nothing without data.source: say what '
      'it is, such as folder, or leave it.'
    )
  if data.source:
    kind, path, split, flavour = data.source, data.path, data.split, 'scenes'
    train = {'path': path, 'split': split}
  elif subject.run_config is None or 'source' not in subject.run_config.data:
    raise UserError(
      f'{subject.name} does not say on which images: set data.source and '
      'data.path.'
    )
  else:
    d = subject.run_config.data
    kind, path, split, flavour = d.source, d.path, d.split, d.flavour
    train = {'path': path, 'split': split, 'list_file': d.list_file}
    split = subject.run_config.health.split or split
  if kind == 'scenes':
    gallery = {'flavour': flavour, 'count': count, 'seed': scene.TEST_SEED}
    train = {'flavour': flavour}
    if not data.source:
      train['count'] = subject.run_config.data.count
  else:
    gallery = train | {'split': split}
    if split != train['split']:
      gallery.pop('list_file', None)  # which is of the other split
  return Images(
    sources.make_source(kind, **gallery),
    functools.partial(sources.make_source, kind, **train),
  )
