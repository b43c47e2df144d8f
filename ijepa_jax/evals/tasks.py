"""What can be evaluated on, as data, with the paper's numbers beside it.

Splits, classes and schedules are the paper's and, for its transfers, those of
the VISSL configurations that it used. `cifar10`, `fashion_mnist`, `scenes_*`,
`crowd_*` and `folder` are ours: nothing is published for them.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging

from ijepa_jax import augment, scenes, sources, vit
from ijepa_jax.errors import UserError
from ijepa_jax.evals import labels, online


@dataclasses.dataclass(frozen=True)
class Rule:
  """A label that has to be worked out of a record of a data set.

  Attributes:
    classes: labels are from 0 to one less.
    function: record -> label; a ValueError where there is none.
  """

  classes: int
  function: Callable[[Mapping[str, Any]], int]


def clevr_count(record) -> int:
  """3 to 10 objects -> 0 to 7; `record` is one of TFDS's `clevr`."""
  count = len(_pixel_coords(record))
  if not 3 <= count <= 10:
    raise UserError(
      f'{count} objects in a picture of Clevr: the task has 3 to 10.'
    )
  return count - 3


# Of the nearest object, up to and including.
CLEVR_DISTANCES = (8.0, 8.5, 9.0, 9.5, 10.0, 100.0)


def clevr_distance(record) -> int:
  """The bin, 0 to 5, of the nearest object's depth; as `clevr_count`."""
  nearest = float(_pixel_coords(record)[:, 2].min())
  label = int(np.searchsorted(CLEVR_DISTANCES, nearest))
  if not 0 < nearest <= CLEVR_DISTANCES[-1]:
    raise UserError(
      f'The nearest object of Clevr is {nearest:g} away: the task has 0 to '
      f'{CLEVR_DISTANCES[-1]:g}.'
    )
  return label


def _pixel_coords(record) -> np.ndarray:
  """[objects, 3]: x, y in pixels, and depth."""
  coords = np.asarray(record['objects']['pixel_coords'], np.float32)
  if not coords.size:
    raise UserError(
      'A picture of Clevr has no objects noted: its test split has none, take '
      'train and validation.'
    )
  return coords.reshape(-1, 3)


# One source for both tasks, so that they share features.
CLEVR = {'count': Rule(8, clevr_count), 'distance': Rule(6, clevr_distance)}


def unlike(train, test) -> str | None:
  """A class that only one of two sources has.

  A folder numbers its own classes: one missing would shift the rest.
  """
  names = [getattr(source, 'class_names', ()) for source in (train, test)]
  if names[0] != names[1]:
    return min(set(names[0]) ^ set(names[1]), default='in another order')


@dataclasses.dataclass(frozen=True)
class Task:
  """A data set, a label and how it is evaluated.

  Attributes:
    train, test: arguments of sources.make_source.
    label: which of the sources' labels.
    classes: its number of values; None: what the training source says.
    protocol: of the linear sweep: 'imagenet' (LARS), 'transfer' (SGD, steps)
      or 'clevr' (SGD, cosine).
    batch_size: images a step of the sweep.
    epochs: of the sweep.
    milestones: epochs after which its learning rate is divided by 10.
    whole: the image is stretched to the encoder's size; else cut out.
    flip: training images are mirrored at random.
    paper: (size, patch, pixels) -> {what `table` calls it: accuracy in %}.
    note: what is to know about the paper's numbers.
  """

  train: Mapping[str, Any]
  test: Mapping[str, Any]
  label: str = 'label'
  classes: int | None = None
  protocol: str = 'transfer'
  batch_size: int = 256
  epochs: int = 28
  milestones: tuple[int, ...] = (8, 16, 24)
  whole: bool = False
  flip: bool = True
  paper: Mapping[tuple[str, int, int], Mapping[str, float]] = dataclasses.field(
    default_factory=dict
  )
  note: str = ''

  def read_from(self, kind: str, path: str, train: str, test: str) -> 'Task':
    """The same task on the same images that lie elsewhere.

    Args:
      kind: 'folder', 'tfds', 'arrayrecord' or 'huggingface'.
      path: see sources.make_source.
      train, test: names of the splits; '' of the second: as by default.
    """
    test = test or self.test.get('split', 'test')
    train, test = (
      {'kind': kind, 'path': path, 'split': split} for split in (train, test)
    )
    return dataclasses.replace(self, train=train, test=test)

  def transforms(self, size: tuple[int, int]):
    """Of training images, with randomness, and of test images.

    Args:
      size: (H, W) that the encoder takes.
    """
    if self.whole:
      return augment.Whole(size, self.flip), augment.Whole(size)
    return (
      # Of torchvision's defaults, which VISSL took.
      augment.RandomCrop(
        size, scale=(0.08, 1.0), flip=self.flip, resample='bicubic'
      ),
      augment.evaluation_crop(size),
    )

  def open(self, list_file: str = ''):
    """-> training source, test source, the label's column, its classes.

    Args:
      list_file: of the training images to take, see sources.from_list; '': all.

    Raises:
      UserError: the data is not there, is of another task, or its labels are
        known to be no classes.
    """
    if self.train['kind'] == 'folder' and not self.train.get('path'):
      raise UserError(
        'This task has no data set that is known by name: give the path of a '
        f'folder that holds {self.train["split"]}/ and {self.test["split"]}/, '
        'each with one folder a class.'
      )
    train = sources.make_source(**self.train)
    test = sources.make_source(**self.test)
    for source, which in ((train, 'training'), (test, 'test')):
      if self.label not in source.labels:
        raise UserError(
          f'The {which} images have no label {self.label!r}: they have '
          f'{sources.labels_in_words(source)}.'
        )
    if one := unlike(train, test):
      raise UserError(
        f'Only one of the training and the test images has a class {one!r}: '
        'give both the same folders.'
      )
    classes = self.classes or train.labels[self.label]
    for source, which in ((train, 'training'), (test, 'test')):
      if source.labels[self.label] != classes:
        raise UserError(
          f'The {which} images are of {source.labels[self.label]} classes and '
          f'the task has {classes}: check path and split.'
        )
    if list_file:
      train = sources.restrict(train, list_file)
    if train.identity == test.identity:
      logging.warning('The test images are the training images.')
    column = list(train.labels).index(self.label)
    for source, which in ((train, 'training'), (test, 'test')):
      # Others are looked at as they are read.
      if (known := labels.known(source, column)) is not None:
        labels.check(known, which, classes)
    return train, test, column, classes


def _tfds(path, train='train', test='test', **more):
  return {
    'train': {'kind': 'tfds', 'path': path, 'split': train, **more},
    'test': {'kind': 'tfds', 'path': path, 'split': test, **more},
  }


def _folder(**more):
  return {
    'train': {'kind': 'folder', 'split': 'train', **more},
    'test': {'kind': 'folder', 'split': 'val', **more},
  }


def _scenes(flavour, label):
  made = {'kind': 'scenes', 'flavour': flavour}
  test = {'seed': online.TEST_SEED, 'count': 2000}
  return Task(
    train=made | {'seed': 0, 'count': 20_000},
    test=made | test,
    label=label,
    classes=scenes.LABELS[flavour][label],
    whole=True,
    flip=False,
  )


B16, L16 = ('base', 16, 224), ('large', 16, 224)
H14, H16_448 = ('huge', 14, 224), ('huge', 16, 448)


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
    # 'linear' is Table 1, the best head; the two inputs are told apart in the
    # StoP paper, which reports the same checkpoints again.
    paper={
      B16: {'linear': 72.9, 'linear_last': 70.9, 'linear_last4': 72.9},
      L16: {'linear': 77.5, 'linear_last': 76.1, 'linear_last4': 77.5},
      H14: {'linear': 79.3, 'linear_last': 78.2, 'linear_last4': 79.3},
      H16_448: {'linear': 81.1, 'linear_last4': 81.1, 'finetune': 87.1},
    },
  ),
  'imagenet_1pct': Task(
    # The list of 12,811 images that everybody takes.
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
  'cifar10': Task(**_tfds('cifar10'), classes=10, whole=True),
  'cifar100': Task(
    **_tfds('cifar100'),
    classes=100,
    whole=True,
    paper=_linear(69.2, 83.6, 87.5),
  ),
  'places205': Task(
    **_folder(),  # TFDS has only Places365
    classes=205,
    epochs=14,
    milestones=(4, 8, 12),
    paper=_linear(53.4, 56.5, 58.4),
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
    **_tfds('clevr', test='validation', rules=CLEVR),
    label='count',
    classes=8,
    protocol='clevr',
    epochs=50,
    milestones=(),
    whole=True,
    paper=_linear(82.2, 85.6, 86.7),
  ),
  'clevr_dist': Task(
    **_tfds('clevr', test='validation', rules=CLEVR),
    label='distance',
    classes=6,
    protocol='clevr',
    epochs=100,
    milestones=(),
    whole=True,
    paper=_linear(70.7, 71.2, 72.4),
  ),
  'fashion_mnist': Task(**_tfds('fashion_mnist'), classes=10, whole=True),
  'scenes_class': _scenes('scenes', 'class'),
  'scenes_hue': _scenes('scenes', 'hue'),
  'crowd_count': _scenes('crowd', 'count'),
  'crowd_distance': _scenes('crowd', 'distance'),
  'folder': Task(**_folder()),
}


def get(name: str) -> Task:
  """A task by name.

  Raises:
    UserError: there is none; the message lists them.
  """
  if name not in TASKS:
    near = difflib.get_close_matches(name, TASKS, 1)
    hint = f'did you mean {near[0]!r}? There are' if near else 'take one of'
    raise UserError(f'There is no task {name!r}: {hint} {", ".join(TASKS)}.')
  return TASKS[name]


def paper(
  task: Task, model: Mapping[str, Any], image_size: tuple[int, int]
) -> dict[str, float]:
  """The paper's accuracies in % for this model; {} where it has none.

  Args:
    model: a config's: size and patch_size, and what was changed by hand.
    image_size: (H, W) in pixels.
  """
  size, patch = model.get('size'), model.get('patch_size')
  changed = any(
    model.get(name) not in (None, value)
    for name, value in vit.SIZES.get(size, {}).items()
  )
  if changed or image_size[0] != image_size[1]:
    return {}
  return dict(task.paper.get((size, patch, image_size[0]), {}))


def table(
  name: str,
  ours: Mapping[str, float],
  theirs: Mapping[str, float],
  note: str = '',
  chosen: str = '',
) -> str:
  """This checkpoint beside the paper, accuracies in %.

  Args:
    name: of the task.
    ours: what was measured -> accuracy in [0, 1].
    theirs: see `paper`; rows that were not measured are left out.
    note: on the paper's numbers, below the table where there are such.
    chosen: how ours were chosen among several, below the table.
  """
  rows = [(f'{name}, %', 'this checkpoint', 'paper')]
  for key, value in ours.items():
    published = f'{theirs[key]:.1f}' if key in theirs else '-'
    rows.append((key, f'{100 * value:.1f}', published))
  wide = max(len(row[0]) for row in rows)
  lines = [f'{a:{wide}}  {b:>15}  {c:>5}' for a, b, c in rows]
  below = [chosen, note if theirs else '']
  return '\n'.join([*lines, *filter(None, below)])
