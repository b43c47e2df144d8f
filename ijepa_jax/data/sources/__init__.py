"""Sources of images: random access to an image by its index.

May import data and runtime.

A source has a length, is picklable at little cost, and gives by index
  {'image': bytes (encoded) or uint8 [H, W, C], 'label': int32 [L], 'key': str}
with the key naming the image for a person and -1 for a label that is not known.
An image that can't be read raises OSError.

`source.labels` maps the name of each of the L labels to its number of values;
it is empty if there are none. `source.class_names` has the names of those
values if there is one label and they are known, and is () otherwise.
`source.unlabelled` says why there are no labels, if that may be a mistake.
`source.every_label()`, which not every source has, returns int32 [N, L] of all
images at next to no cost, or None.
`source.keys()` returns the keys of all images without decoding one.
`source.listing` is a text that stands for the images and their order, the same
wherever they lie: a run that resumes with another one sees other images.
`source.identity` is a text that changes if the images or labels may have, as
far as can be known without reading them: it covers where files lie and when
they changed, which may ask the disk for each of them. Features of the images
are kept by it.
"""

from ijepa_jax.data.sources.arrayrecord import ArrayRecord
from ijepa_jax.data.sources.folder import Folder
from ijepa_jax.data.sources.huggingface import HuggingFace
from ijepa_jax.data.sources.scenes import Scenes
from ijepa_jax.data.sources.subset import filter_by_list
from ijepa_jax.data.sources.tfds import TFDS
from ijepa_jax.errors import UserError, one_of

_OF_FILES = {
  'folder': Folder,
  'tfds': TFDS,
  'arrayrecord': ArrayRecord,
  'huggingface': HuggingFace,
}


def labels_in_words(source) -> str:
  """Returns the names of a source's labels, or why it has none."""
  reason = getattr(source, 'unlabelled', '')
  return ', '.join(source.labels) or f'none{reason and f" ({reason})"}'


def make_source(
  kind: str,
  *,
  path: str = '',
  split: str = 'train',
  list_file: str = '',
  flavour: str = 'scenes',
  count: int = 20_000,
  seed: int = 0,
  rules=None,
):
  """Opens the source of this kind.

  Args:
    kind: 'scenes' (drawn here, takes `flavour`, `count`, `seed`), 'folder' (of
      images), 'arrayrecord' (packed by pack/pack.py), 'huggingface' (saved or
      parquet) or 'tfds'; all but the first take `path` and `split`.
    path: of a folder, for 'arrayrecord' of a bucket too; for 'tfds' a name
      ('cifar10', 'name/config:1.0.0') or the directory of a prepared data set.
    list_file: names the images to take, see `indices_from_list`; '': all.
    rules: of 'tfds', see there.

  Raises:
    UserError: there is no such source, or it can't be read.
  """
  one_of('The data source', kind, ('scenes', *_OF_FILES))
  if kind == 'scenes':
    source = Scenes(flavour, seed, count)
  elif not path:
    raise UserError(f'The data source {kind!r} needs a path: set data.path.')
  elif '://' in path and kind in ('folder', 'huggingface'):
    raise UserError(
      f'The data source {kind!r} cannot read {path}: pack its images with '
      'python -m ijepa_jax.data.pack and take arrayrecord, or mount the bucket.'
    )
  else:
    options = {'rules': rules} if kind == 'tfds' else {}
    source = _OF_FILES[kind](path, split, **options)
  return filter_by_list(source, list_file) if list_file else source
