"""JPEGs of ImageNet's size, cut out of photographs that packages bring."""

import io
import pathlib

import matplotlib
import numpy as np
import sklearn
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from ijepa_jax.data import sources
from ijepa_jax.data.pack import encoding, pack

WIDTH, HEIGHT = 500, 375


def make(count: int, quality: int) -> list[bytes]:
  """Different JPEGs of 500 x 375 pixels, none of them enlarged."""
  paths = [
    *pathlib.Path(matplotlib.__file__).parent.rglob('grace_hopper.jpg'),
    *sorted(pathlib.Path(sklearn.__file__).parent.rglob('images/*.jpg')),
  ]
  originals = [Image.open(path).convert('RGB') for path in paths]
  rng, files = np.random.default_rng(0), []
  for i in range(count):
    image = originals[i % len(originals)]
    left = rng.integers(image.width - WIDTH + 1)
    top = rng.integers(image.height - HEIGHT + 1)
    image = image.crop((left, top, left + WIDTH, top + HEIGHT))
    image = ImageOps.mirror(image) if rng.random() < 0.5 else image
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=quality)
    files.append(file.getvalue())
  return files


def store(root: pathlib.Path, files: list[bytes]) -> dict[str, tuple[str, str]]:
  """The files in each way -> the kind of its source, and the path."""
  tfds.disable_progress_bar()
  folder = root / 'folder/photo'
  folder.mkdir(parents=True)
  for i, file in enumerate(files):
    (folder / f'{i:05}.jpg').write_bytes(file)

  class Photos(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      image = tfds.features.Image(encoding_format='jpeg')
      label = tfds.features.ClassLabel(num_classes=1)
      features = tfds.features.FeaturesDict({'image': image, 'label': label})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for i, file in enumerate(files):
        yield i, {'image': io.BytesIO(file), 'label': 0}

  builder = Photos(data_dir=root / 'tfds', file_format='array_record')
  builder.download_and_prepare()
  for name, resize in ('packed', 0), ('packed256', 256):
    pack.pack(
      sources.make_source('folder', path=str(root / 'folder')),
      str(root / name),
      description='photographs',
      encoding=encoding.Encoding(resize),
    )
  return {
    'folder': ('folder', str(root / 'folder')),
    'arrayrecord': ('arrayrecord', str(root / 'packed')),
    'tfds': ('tfds', str(builder.data_path)),
    '--resize=256': ('arrayrecord', str(root / 'packed256')),
  }
