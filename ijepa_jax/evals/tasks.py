"""The tasks of the evaluations, as a table, with the paper's numbers.

Splits, classes and schedules are the paper's and, for its transfers, those of
the VISSL configurations that it used. `cifar10`, `fashion_mnist`, `scenes_*`,
`crowd_*` and `folder` are additions: the paper has no numbers for them.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from absl import logging

from ijepa_jax.data import sources
from ijepa_jax.data.scenes import scene
from ijepa_jax.data.sources import base, clevr, subset
from ijepa_jax.data.transforms import crop
from ijepa_jax.errors import UserError
from ijepa_jax.probes import labels

# Of the heads of a few images of a folder: as many steps, and epochs at most.
_FOLDER_STEPS, _FOLDER_EPOCHS = 2500, 100


@dataclasses.dataclass(frozen=True)
class Task:
  """A data set, a label and how it is evaluated.

  Attributes:
    train, test: arguments of sources.make_source.
    label: name of one of the sources' labels.
    classes: of this label; None: as many as the training source has.
    protocol: of the linear sweep: 'imagenet' (LARS), 'transfer' (SGD, steps),
      'clevr' or 'folder' (SGD, cosine, of one rate or of several).
    batch_size: images a step of the sweep.
    epochs: of the sweep, at least; see `epochs_of`.
    milestones: epochs after which its learning rate is divided by 10.
    stretch: the image is stretched to the encoder's size, else cropped.
    flip: training images are mirrored at random.
    paper: (size, patch, pixels) -> {metric: accuracy in %}.
    note: on the paper's numbers.
  """

  train: Mapping[str, Any]
  test: Mapping[str, Any]
  label: str = 'label'
  classes: int | None = None
  protocol: str = 'transfer'
  batch_size: int = 256
  epochs: int = 28
  milestones: tuple[int, ...] = (8, 16, 24)
  stretch: bool = False
  flip: bool = True
  paper: Mapping[tuple[str, int, int], Mapping[str, float]] = dataclasses.field(
    default_factory=dict
  )
  note: str = ''

  def read_from(self, kind: str, path: str, train: str, test: str) -> 'Task':
    """Returns the same task on a copy of its images at another place.

    Args:
      kind: 'folder', 'tfds', 'arrayrecord' or 'huggingface'.
      path: see sources.make_source.
      train, test: names of the splits; test '': the task's own name.
    """
    test = test or self.test.get('split', 'test')
    train, test = (
      {'kind': kind, 'path': path, 'split': split} for split in (train, test)
    )
    return dataclasses.replace(self, train=train, test=test)

  def epochs_of(self, examples: int) -> int:
    """Returns the epochs of a sweep: of few images of a folder more."""
    if self.protocol != 'folder':
      return self.epochs
    few = _FOLDER_STEPS * self.batch_size // max(examples, 1)
    return max(self.epochs, min(few, _FOLDER_EPOCHS))

  def transforms(self, size: tuple[int, int]):
    """Returns the random transform of training images and that of test images.

    Args:
      size: (H, W) that the encoder takes.
    """
    if self.stretch:
      return crop.Resize(size, self.flip), crop.Resize(size)
    return (
      # torchvision's defaults, which VISSL uses.
      crop.RandomResizedCrop(
        size, scale=(0.08, 1.0), flip=self.flip, resample='bicubic'
      ),
      crop.evaluation_crop(size),
    )

  def open(self, list_file: str = ''):
    """Opens the images.

    Args:
      list_file: of the training images to take, see data/sources/subset.py;
        '': all.

    Returns:
      training source, test source, column of the label, number of classes.

    Raises:
      UserError: the images are not there, belong to another task, or have
        labels that are known to be no classes.
    """
    if self.train['kind'] == 'folder' and not self.train.get('path'):
      raise UserError(
        'This task has no data set that is known by name: give the path of a '
        f'folder that holds {self.train["split"]}/ and {self.test["split"]}/, '
        'each with one folder a class.'
      )
    train = sources.make_source(**self.train)
    test = sources.make_source(**self.test)
    self._check_labels(train, test)
    classes = self.classes or train.labels[self.label]
    for split, source in (('training', train), ('test', test)):
      if source.labels[self.label] != classes:
        raise UserError(
          f'The {split} images are of {source.labels[self.label]} classes and '
          f'the task has {classes}: check path and split.'
        )
    if list_file:
      train = subset.filter_by_list(train, list_file)
    if train.identity == test.identity:
      logging.warning('The test images are the training images.')
    column = list(train.labels).index(self.label)
    for split, source in (('training', train), ('test', test)):
      # Labels that are not known yet are checked as the images are read.
      if (labels_N := labels.known(source, column)) is not None:
        labels.check(labels_N, split, classes)
    return train, test, column, classes

  def _check_labels(self, train, test) -> None:
    for split, source in (('training', train), ('test', test)):
      if self.label not in source.labels:
        raise UserError(
          f'The {split} images have no label {self.label!r}: they have '
          f'{sources.labels_in_words(source)}.'
        )
    if name := base.class_of_one_only(train, test):
      raise UserError(
        f'Only one of the training and the test images has a class {name!r}: '
        'give both the same folders.'
      )


def _tfds(path, train='train', test='test', **kwargs):
  return {
    'train': {'kind': 'tfds', 'path': path, 'split': train, **kwargs},
    'test': {'kind': 'tfds', 'path': path, 'split': test, **kwargs},
  }


def _folder(**kwargs):
  return {
    'train': {'kind': 'folder', 'split': 'train', **kwargs},
    'test': {'kind': 'folder', 'split': 'val', **kwargs},
  }


def _scenes(flavour, label):
  source = {'kind': 'scenes', 'flavour': flavour}
  return Task(
    train=source | {'seed': 0, 'count': 20_000},
    test=source | {'seed': scene.TEST_SEED, 'count': 2000},
    label=label,
    classes=scene.LABELS[flavour][label],
    stretch=True,
    flip=False,
  )


B16, L16 = ('base', 16, 224), ('large', 16, 224)
H14, H16_448 = ('huge', 14, 224), ('huge', 16, 448)
# An I-JEPA of ImageNet-22K that V-JEPA's paper evaluates (2404.08471, 5.2).
H16_512 = ('huge', 16, 512)


def _linear(b16, l16, h14):
  return {B16: {'linear': b16}, L16: {'linear': l16}, H14: {'linear': h14}}


TASKS = {
  'imagenet': Task(
    **_tfds('imagenet2012', test='validation'),
    classes=1000,
    protocol='imagenet',
    batch_size=16_384,
    epochs=50,
    milestones=(15, 30, 45),
    # 'linear' is Table 1, the best head; the numbers of each input are in the
    # StoP paper, which reports the same checkpoints again.
    paper={
      B16: {'linear': 72.9, 'linear_last': 70.9, 'linear_last4': 72.9},
      L16: {'linear': 77.5, 'linear_last': 76.1, 'linear_last4': 77.5},
      H14: {'linear': 79.3, 'linear_last': 78.2, 'linear_last4': 79.3},
      H16_448: {'linear': 81.1, 'linear_last4': 81.1, 'finetune': 87.1},
      H16_512: {'attentive': 84.4},
    },
  ),
  'imagenet_1pct': Task(
    # The usual list of 12,811 images.
    **_tfds('imagenet2012_subset/1pct', test='validation'),
    classes=1000,
    protocol='imagenet',
    paper={
      B16: {'logistic': 57.1},
      L16: {'logistic': 64.2, 'finetune': 69.4},
      H14: {'logistic': 62.9, 'finetune': 73.3},
      H16_448: {'finetune': 77.3},
    },
    note="The paper's fine-tuning is its best of a probe and fine-tuning.",
  ),
  'cifar10': Task(**_tfds('cifar10'), classes=10, stretch=True),
  'cifar100': Task(
    **_tfds('cifar100'),
    classes=100,
    stretch=True,
    paper=_linear(69.2, 83.6, 87.5),
  ),
  'places205': Task(
    **_folder(),  # TFDS has only Places365
    classes=205,
    epochs=14,
    milestones=(4, 8, 12),
    paper=_linear(53.4, 56.5, 58.4) | {H16_512: {'attentive': 66.5}},
  ),
  'inat18': Task(
    **_tfds('i_naturalist2018', test='validation'),
    classes=8142,
    epochs=84,
    milestones=(24, 48, 72),
    paper=_linear(43.4, 48.4, 47.6),
  ),
  'clevr_count': Task(
    # Its test split has no labels.
    **_tfds('clevr', test='validation', rules=clevr.CLEVR),
    label='count',
    classes=8,
    protocol='clevr',
    epochs=50,
    milestones=(),
    stretch=True,
    paper=_linear(82.2, 85.6, 86.7),
  ),
  'clevr_dist': Task(
    **_tfds('clevr', test='validation', rules=clevr.CLEVR),
    label='distance',
    classes=6,
    protocol='clevr',
    epochs=100,
    milestones=(),
    stretch=True,
    paper=_linear(70.7, 71.2, 72.4),
  ),
  'fashion_mnist': Task(**_tfds('fashion_mnist'), classes=10, stretch=True),
  'scenes_class': _scenes('scenes', 'class'),
  'scenes_hue': _scenes('scenes', 'hue'),
  'crowd_count': _scenes('crowd', 'count'),
  'crowd_distance': _scenes('crowd', 'distance'),
  'folder': Task(**_folder(), protocol='folder', milestones=()),
}


def get(name: str) -> Task:
  """Returns a task by name.

  Raises:
    UserError: there is no such task; the sentence lists all.
  """
  if name not in TASKS:
    close = difflib.get_close_matches(name, TASKS, 1)
    hint = f'did you mean {close[0]!r}? There are' if close else 'take one of'
    raise UserError(f'There is no task {name!r}: {hint} {", ".join(TASKS)}.')
  return TASKS[name]
