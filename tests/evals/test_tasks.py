"""Tasks: Clevr's labels, what the paper says, and data that is not as said."""

import pickle

import numpy as np
import pytest
from PIL import Image

from ijepa_jax.data.sources import clevr
from ijepa_jax.errors import UserError
from ijepa_jax.evals import evaluation, tasks
from ijepa_jax.models import vit


def record(*depths):
  """Of TFDS's `clevr`, as far as the rules look."""
  return {
    'objects': {
      'pixel_coords': np.array(
        [[240.0, 160.0, d] for d in depths], np.float32
      ).reshape(-1, 3)
    }
  }


def test_clevr_count():
  assert [clevr.clevr_count(record(*[9] * n)) for n in (3, 4, 10)] == [0, 1, 7]
  for n in (2, 11):
    with pytest.raises(UserError, match=f'{n} objects .* has 3 to 10'):
      clevr.clevr_count(record(*[9] * n))


def test_clevr_distance():
  """Bins hold their upper ends; the nearest counts wherever it stands."""
  ends = {7.9: 0, 8.0: 0, 8.01: 1, 8.5: 1, 8.51: 2, 9.0: 2, 9.5: 3, 9.51: 4}
  for depth, label in (ends | {10.0: 4, 10.01: 5, 99.0: 5}).items():
    assert clevr.clevr_distance(record(99.5, depth, 99.9)) == label, depth
  with pytest.raises(UserError, match='101 away: the task has 0 to 100'):
    clevr.clevr_distance(record(101, 102))


def test_clevr_without_objects():
  for rule in clevr.CLEVR.values():
    with pytest.raises(UserError, match='take train and validation'):
      rule.function(record())


def test_tasks_are_complete():
  """Whatever the issue names is there, with schedules that can be run."""
  assert set(tasks.TASKS) == {
    *('imagenet', 'imagenet_1pct', 'cifar10', 'cifar100', 'places205'),
    *('inat18', 'clevr_count', 'clevr_dist', 'fashion_mnist', 'folder'),
    *('scenes_class', 'scenes_hue', 'crowd_count', 'crowd_distance'),
  }
  for name, task in tasks.TASKS.items():
    assert task.train != task.test, name
    assert list(task.milestones) == sorted(task.milestones)
    assert all(0 < m < task.epochs for m in task.milestones)
    assert task.protocol in ('imagenet', 'transfer', 'clevr', 'folder')
    assert (task.protocol in ('clevr', 'folder')) == (not task.milestones)
    assert pickle.loads(pickle.dumps(task)) == task
    for size, patch, pixels in task.paper:
      assert size in vit.SIZES and pixels % patch == 0
  assert tasks.get('cifar10') is tasks.TASKS['cifar10']
  with pytest.raises(UserError, match="did you mean 'clevr_count'"):
    tasks.get('clever_count')
  with pytest.raises(UserError, match='take one of imagenet, imagenet_1pct'):
    tasks.get('xyz')


def test_paper_is_of_this_very_model():
  model = {'size': 'huge', 'patch_size': 14, 'width': None, 'depth': None}
  task = tasks.get('imagenet')
  expected = {'linear': 79.3, 'linear_last': 78.2, 'linear_last4': 79.3}
  assert evaluation.paper_accuracies(task, model, (224, 224)) == expected
  assert (
    evaluation.paper_accuracies(task, model | {'depth': 32}, (224, 224))
    == expected
  )
  for other in ({'depth': 31}, {'patch_size': 16}, {'size': 'small'}):
    assert evaluation.paper_accuracies(task, model | other, (224, 224)) == {}
  assert evaluation.paper_accuracies(task, model, (448, 448)) == {}
  assert evaluation.paper_accuracies(task, model, (224, 448)) == {}
  assert (
    evaluation.paper_accuracies(tasks.get('cifar10'), model, (224, 224)) == {}
  )
  assert evaluation.paper_accuracies(
    tasks.get('clevr_dist'), model, (224, 224)
  ) == {'linear': 72.4}


def test_table():
  text = evaluation.comparison_table(
    'imagenet_1pct',
    {'logistic': 0.6257, 'logistic_5_shot': 0.5},
    {'logistic': 62.9, 'finetune': 73.3},
    'A note.',
  )
  assert text.splitlines() == [
    'imagenet_1pct, %  this checkpoint  paper',
    'logistic                     62.6   62.9',
    'logistic_5_shot              50.0      -',
    'A note.',
  ]
  assert 'A note' not in evaluation.comparison_table(
    'cifar10', {'knn': 1.0}, {}, 'A note.'
  )


def picture(height=20, width=30):
  pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3))
  return Image.fromarray(pixels.astype(np.uint8))


def test_transforms():
  """Clevr's pictures whole, ImageNet's cut; only training ones at random."""
  image, r = picture(), np.random.default_rng(0)
  train, test = tasks.get('clevr_count').transforms((16, 24))
  whole = np.asarray(image.resize((24, 16), Image.Resampling.BILINEAR))
  np.testing.assert_array_equal(test(image), whole)
  np.testing.assert_array_equal(test(np.asarray(image)), whole)
  seen = {train(image, r).tobytes() for _ in range(20)}
  assert seen == {whole.tobytes(), whole[:, ::-1].tobytes()}
  train, test = tasks.get('imagenet').transforms((14, 14))
  assert test.resize == 16 and test(image).shape == (14, 14, 3)
  assert len({train(image, r).tobytes() for _ in range(20)}) == 20
  train, test = tasks.get('scenes_hue').transforms((20, 30))
  np.testing.assert_array_equal(train(image, r), np.asarray(image))


def test_folder(tmp_path):
  """Anybody's images: classes are those of the training folders."""
  with pytest.raises(UserError, match='folder that holds train/ and val/'):
    tasks.get('places205').open()
  for name in ('train/a', 'train/b', 'train/c', 'test/a', 'test/b'):
    (tmp_path / name).mkdir(parents=True)
    picture().save(tmp_path / name / '1.png')
  task = tasks.get('folder').read_from('folder', str(tmp_path), 'train', 'test')
  with pytest.raises(UserError, match="has a class 'c': give both the same"):
    task.open()
  (tmp_path / 'test/c').mkdir()
  picture().save(tmp_path / 'test/c/1.png')
  train, test, column, classes = task.open()
  assert (len(train), len(test), column, classes) == (3, 3, 0, 3)
  task = tasks.get('cifar10').read_from(
    'folder', str(tmp_path), 'train', 'test'
  )
  with pytest.raises(UserError, match='are of 3 classes and the task has 10'):
    task.open()
  with pytest.raises(UserError, match="no folder 'val'"):
    tasks.get('folder').read_from(
      'folder', str(tmp_path), 'train', 'val'
    ).open()
  flat = task.read_from('folder', str(tmp_path / 'train/a'), '', 'train')
  with pytest.raises(UserError, match="no label 'label': they have none"):
    flat.open()
