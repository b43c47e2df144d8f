"""The embedded data set: pure and well labelled."""

import colorsys

import numpy as np
import pytest

from ijepa_jax.data.scenes import rendered, scene
from ijepa_jax.errors import UserError
from tests.close import close

# Seed 0, images 0 to 2: labels, and means over 16 x 16 blocks and channels.
GOLDEN = {
  'scenes': [
    ([6, 1], [[112, 115, 113], [155, 99, 129], [189, 164, 175]]),
    ([4, 2], [[78, 84, 127], [91, 90, 143], [161, 166, 186]]),
    ([6, 2], [[67, 79, 71], [74, 50, 101], [78, 54, 63]]),
  ],
  'crowd': [
    ([2, 5], [[68, 68, 68], [123, 132, 131], [148, 149, 150]]),
    ([3, 1], [[112, 112, 112], [180, 123, 102], [213, 205, 212]]),
    ([0, 5], [[63, 62, 63], [125, 142, 148], [149, 146, 148]]),
  ],
}


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
  """600 images of each flavour, made by two processes."""
  with pytest.MonkeyPatch.context() as patch:
    folder = tmp_path_factory.mktemp('cache')
    patch.setenv('IJEPA_JAX_CACHE', str(folder))
    return {
      f: rendered.rendered_images(f, 3, 600, processes=2)
      for f in scene.FLAVOURS
    }


@pytest.mark.parametrize('flavour', scene.FLAVOURS)
def test_golden_images(flavour):
  """The pixels are those of this version, on any machine."""
  for index, (labels, blocks) in enumerate(GOLDEN[flavour]):
    image, drawn = scene.render(flavour, 0, index)
    means = image.reshape(3, 16, 3, 16, 3).mean((1, 3, 4))
    assert drawn.tolist() == labels
    close(means, blocks, within=1)


@pytest.mark.parametrize('flavour', scene.FLAVOURS)
def test_an_image_is_a_function_of_its_index(flavour):
  forward = [scene.render(flavour, 7, i) for i in range(6)]
  backward = [scene.render(flavour, 7, i) for i in reversed(range(6))][::-1]
  for (image, labels), (again, labels_again) in zip(
    forward, backward, strict=True
  ):
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(labels, labels_again)
  of_other_seed = [scene.render(flavour, 8, i) for i in range(6)]
  assert len({image.tobytes() for image, _ in forward + of_other_seed}) == 12


@pytest.mark.parametrize('flavour', scene.FLAVOURS)
def test_workers_make_the_same_bytes(flavour, sets):
  images, labels = sets[flavour]
  for index in (0, 1, 299, 300, 599):
    image, label = scene.render(flavour, 3, index)
    np.testing.assert_array_equal(images[index], image)
    np.testing.assert_array_equal(labels[index], label)


@pytest.mark.parametrize('flavour', scene.FLAVOURS)
def test_shapes_and_every_label_value_occurs(flavour, sets):
  images, labels = sets[flavour]
  assert images.shape == (600, 48, 48, 3) and images.dtype == np.uint8
  assert labels.shape == (600, 2) and labels.dtype == np.int32
  for column, values in enumerate(scene.LABELS[flavour].values()):
    counts = np.bincount(labels[:, column], minlength=values)
    assert len(counts) == values
    assert counts.min() > 0.6 * 600 / values  # about equally filled
  assert images.std((1, 2, 3)).min() > 5  # none is blank
  assert len(scene.CLASS_NAMES) == scene.LABELS['scenes']['class']
  assert len(scene.HUE_NAMES) == scene.LABELS['scenes']['hue']


def test_hue_is_that_of_the_saturated_pixels(sets):
  images, labels = sets['scenes']
  right = 0
  for image, (_, hue) in zip(images[:100], labels, strict=False):
    pixels = image[8:44, 8:40].reshape(-1, 3) / 255
    hues, saturation, value = np.array(
      [colorsys.rgb_to_hsv(*p) for p in pixels]
    ).T
    weight = (saturation > 0.6) * (saturation * value) ** 2
    votes = np.bincount(np.rint(hues * 6).astype(int) % 6, weight, 6)
    right += votes.argmax() == hue
  assert right > 80  # chance: 17


def test_the_class_is_in_the_pixels(sets):
  """Ridge regression on 16 x 16 images does better than chance."""
  images, labels = sets['scenes']
  x = images.reshape(600, 16, 3, 16, 3, 3).mean((2, 4)).reshape(600, -1)
  x -= x.mean(0)
  train, test = np.s_[:500], np.s_[500:]
  y = np.eye(10)[labels[:, 0]]
  gram = x[train] @ x[train].T + 1e5 * np.eye(500)
  scores = x[test] @ x[train].T @ np.linalg.solve(gram, y[train] - 0.1)
  assert (scores.argmax(1) == labels[test, 0]).mean() > 0.2  # chance: 0.1


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('scene', 0, 0), "flavour is 'scene': take .* scenes, crowd"),
    (('scenes', -1, 0), 'seed is -1'),
    (('scenes', 0, -2), 'index is -2'),
    (('scenes', 0.5, 0), 'seed is 0.5'),
  ],
)
def test_mistakes_are_named(arguments, message):
  with pytest.raises(UserError, match=message):
    scene.render(*arguments)
