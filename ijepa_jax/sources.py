"""Random-access image sources.

A source has a length, is picklable at little cost, and gives by index
  {'image': bytes (encoded) or uint8 [H, W, C], 'label': int32 [L], 'key': str}
with the key naming the image for a person. `source.labels` maps the name of
each of the L labels to its number of values; it is empty when there are none.
`source.identity` is text that differs where the images or labels do, as far as
can be known without reading them.
"""

import difflib
import functools
import hashlib
import os
import re

import numpy as np

from ijepa_jax import gallery, scenes

ENDINGS = (
  *('.bmp', '.gif', '.jpeg', '.jpg', '.pgm'),
  *('.png', '.ppm', '.tif', '.tiff', '.webp'),
)
_NO_LABEL = np.zeros(0, np.int32)


def make_source(
  kind: str,
  *,
  path: str = '',
  split: str = 'train',
  flavour: str = 'scenes',
  count: int = 20_000,
  seed: int = 0,
  rules=None,
):
  """A source by name.

  Args:
    kind: 'scenes' (made here, takes `flavour`, `count`, `seed`), 'folder' (of
      images) or 'tfds'; these take `path` and `split`.
    path: of a folder; for 'tfds' a name ('cifar10', 'name/config:1.0.0') or
      the directory of a prepared data set.
    rules: of 'tfds', see there.

  Raises:
    ValueError: what is asked for can't be had; the message says what to do.
  """
  if kind == 'scenes':
    return Scenes(flavour, seed, count)
  if kind not in ('folder', 'tfds'):
    raise ValueError(
      f'There is no data source {kind!r}: take scenes, folder or tfds.'
    )
  if not path:
    raise ValueError(f'The data source {kind!r} needs a path: set data.path.')
  if kind == 'folder':
    return Folder(path, split)
  return TFDS(path, split, rules)


class _Opened:
  """Leaves what it has opened behind when pickled, and opens it again."""

  def __getstate__(self):
    return {k: v for k, v in vars(self).items() if k != '_data'}


class Scenes(_Opened):
  """The embedded pictures; made at first use, then kept on disk."""

  def __init__(self, flavour: str, seed: int, count: int):
    self._key = flavour, seed, count
    # Here rather than in every worker, should they have to be made.
    self._data  # noqa: B018
    self.labels = dict(scenes.LABELS[flavour])
    self.identity = f'scenes {scenes.VERSION} {flavour} {seed} {count}'

  @functools.cached_property
  def _data(self):
    return gallery.load(*self._key)

  def __len__(self):
    return self._key[2]

  def __getitem__(self, index):
    images, labels = self._data
    flavour, seed, _ = self._key
    return {
      'image': images[index],
      'label': labels[index],
      'key': f'{flavour}/{seed}/{index}',
    }


class Folder:
  """A tree of image files, in the order of their paths.

  `path`/`split` is read where it exists, and `path` itself otherwise. Where
  every image lies below a first-level folder these are its classes, numbered
  in order of `class_names`. Hidden and other files are passed over.
  """

  def __init__(self, path: str, split: str = 'train'):
    root = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(root):
      raise ValueError(f'There is no folder {root}: check data.path.')
    if split and os.path.isdir(os.path.join(root, split)):
      root = os.path.join(root, split)
    elif split not in ('', 'train'):
      # Else one would test on what one trained on.
      raise ValueError(f'There is no folder {split!r} in {root}: check split.')
    names = []
    for folder, folders, files in os.walk(root, followlinks=True):
      folders[:] = [f for f in folders if not f.startswith('.')]
      below = os.path.relpath(folder, root)
      names.extend(
        os.path.normpath(os.path.join(below, f))
        for f in files
        if f.lower().endswith(ENDINGS) and not f.startswith('.')
      )
    if not names:
      raise ValueError(
        f'There is no image in {root} or below: looked for files ending in '
        f'{", ".join(ENDINGS)}.'
      )
    names.sort()
    self._root = root
    self._shown = os.path.relpath(root, os.path.dirname(root))
    classes = [n.split(os.sep, 1)[0] if os.sep in n else '' for n in names]
    self.class_names = () if '' in classes else tuple(sorted(set(classes)))
    self.labels = {'label': len(self.class_names)} if self.class_names else {}
    numbers = {name: i for i, name in enumerate(self.class_names)}
    # Arrays: a list of a million strings is slow to send to the workers.
    self._labels = np.array([numbers.get(c, 0) for c in classes], np.int32)
    self._names = np.array([os.fsencode(n) for n in names])
    digest = hashlib.sha256(self._names.tobytes() + self._labels.tobytes())
    # Sizes of all would be a million questions to a network disk.
    for i in range(0, len(names), -(-len(names) // 1000)):
      digest.update(b'%d' % os.stat(os.path.join(root, names[i])).st_size)
    self.identity = f'folder {root} {digest.hexdigest()}'

  def __len__(self):
    return len(self._names)

  def keys(self) -> list[str]:
    """The keys of all images, without reading one."""
    return [os.path.join(self._shown, os.fsdecode(n)) for n in self._names]

  def __getitem__(self, index):
    name = os.fsdecode(self._names[index])
    with open(os.path.join(self._root, name), 'rb') as file:
      image = file.read()
    label = self._labels[index : index + 1] if self.labels else _NO_LABEL
    return {
      'image': image,
      'label': label,
      'key': os.path.join(self._shown, name),
    }


class Subset:
  """Some images of another source, in the order of `indices`."""

  def __init__(self, source, indices):
    self._source, self._indices = source, np.asarray(indices)
    self.labels = source.labels
    self.class_names = getattr(source, 'class_names', ())
    digest = hashlib.sha256(self._indices.astype(np.int64).tobytes())
    self.identity = f'{source.identity} {digest.hexdigest()}'

  def __len__(self):
    return len(self._indices)

  def __getitem__(self, index):
    return self._source[int(self._indices[index])]


class TFDS(_Opened):
  """A data set prepared by TensorFlow Datasets as ArrayRecord.

  Read without TensorFlow, and the images still encoded. Every ClassLabel is a
  label; `TFDS_DATA_DIR` says where data sets lie.

  Args:
    rules: name -> rule of a label that no feature is, with its number of
      `classes` and a `function` of the record (evals/tasks.py has Clevr's); to
      be pickled. A rule that changes needs another name: features are kept by
      it.
  """

  def __init__(self, path: str, split: str = 'train', rules=None):
    self._key = path, split
    self._rules = dict(rules or {})
    data, info, _ = self._data
    import tensorflow_datasets as tfds

    self._length = len(data)
    self._shown = f'{info.full_name}/{split}'
    self.identity = ' '.join(
      ['tfds', self._shown, str(self._length), *self._rules]
    )
    self.labels = {
      name: feature.num_classes
      for name, feature in info.features.items()
      if isinstance(feature, tfds.features.ClassLabel)
    } | {name: rule.classes for name, rule in self._rules.items()}

  @functools.cached_property
  def _data(self):
    return _open_tfds(*self._key)

  def __len__(self):
    return self._length

  def __getitem__(self, index):
    data, _, image = self._data
    example = data[index]
    labels = [
      self._rules[name].function(example)
      if name in self._rules
      else example[name]
      for name in self.labels
    ]
    return {
      'image': example[image],
      'label': np.array(labels, np.int32),
      'key': f'{self._shown}/{index}',
    }


def _open_tfds(path, split):
  """-> the data source, its info and the name of its image."""
  # Here since it takes half a second, and most runs don't need it.
  import tensorflow_datasets as tfds

  if os.path.exists(os.path.join(path, 'dataset_info.json')):
    builder = tfds.builder_from_directory(path)
  else:
    try:
      builder = tfds.builder(path)
    except (ValueError, AssertionError) as error:
      known = tfds.list_builders(with_community_datasets=False)
      near = difflib.get_close_matches(path, known, 1)
      hint = f'Did you mean {near[0]!r}?' if near else ''
      if re.split('[/:]', path)[0] in known:  # but no such config or version
        hint = str(error).splitlines()[0]
      raise ValueError(
        f'{path!r} is neither a TFDS data set nor the directory of a prepared '
        f'one, which holds dataset_info.json. {hint}'.rstrip()
      ) from None
  info = builder.info
  how = (
    f'on a machine with TensorFlow: `tfds build {info.name} '
    '--file_format=array_record`, and bring its directory here.'
  )
  if not info.splits:
    raise ValueError(
      f'{info.full_name} is not prepared in {builder.data_path}: prepare it, '
      f'once, {how}'
    )
  formats = {f.value for f in info.available_file_formats()}
  if 'array_record' not in formats:
    raise ValueError(
      f'{info.full_name} in {builder.data_path} is stored as '
      f'{", ".join(sorted(formats))}, and only array_record can be read at '
      f'random: prepare it again {how}'
    )
  images = [
    name
    for name, feature in info.features.items()
    if isinstance(feature, tfds.features.Image)
  ]
  if 'image' not in images and len(images) != 1:
    raise ValueError(
      f'{info.full_name} has no one image feature: it has '
      f'{", ".join(info.features)}.'
    )
  try:
    data = builder.as_data_source(
      split,
      decoders={name: tfds.decode.SkipDecoding() for name in images},
      file_format='array_record',
    )
  except ValueError as error:
    raise ValueError(
      f'{info.full_name} has no split {split!r}: take one of '
      f'{", ".join(info.splits)}, or a slice of one.'
    ) from error
  return data, info, 'image' if 'image' in images else images[0]
