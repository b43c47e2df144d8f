"""Random-access image sources.

May import data and runtime.

A source has a length, is picklable at little cost, and gives by index
  {'image': bytes (encoded) or uint8 [H, W, C], 'label': int32 [L], 'key': str}
with the key naming the image for a person and -1 for a label that is not known.
An image that can't be read raises OSError.

`source.labels` maps the name of each of the L labels to its number of values;
it is empty when there are none. `source.class_names` has the names of those
values where there is one label and they are known, and is () otherwise.
`source.every_label()`, where there is one, gives int32 [N, L] of all images at
next to no cost, or None.
`source.keys()` lists the keys of all images without decoding one.
`source.identity` is text that differs where the images or labels may do, as far
as can be known without reading them: it also holds where files lie and when
they changed, which may ask the disk for each of them. What is computed of the
images is kept by it.
`source.listing` is text of which images there are and of their order, the same
wherever they lie: a run that goes on with another one sees other images.
`source.unlabelled` says why there are no labels, where that may be a mistake.
"""

from ijepa_jax.data.sources.arrayrecord import ArrayRecord
from ijepa_jax.data.sources.folder import Folder
from ijepa_jax.data.sources.huggingface import HuggingFace
from ijepa_jax.data.sources.scenes import Scenes
from ijepa_jax.data.sources.subset import filter_by_list
from ijepa_jax.data.sources.tfds import TFDS
from ijepa_jax.errors import UserError

_OF_FILES = {
  'folder': Folder,
  'tfds': TFDS,
  'arrayrecord': ArrayRecord,
  'huggingface': HuggingFace,
}


def labels_in_words(source) -> str:
  """The names of a source's labels, or why it has none."""
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
  """A source by name.

  Args:
    kind: 'scenes' (made here, takes `flavour`, `count`, `seed`), 'folder' (of
      images), 'arrayrecord' (packed by pack/pack.py), 'huggingface' (saved or
      parquet) or 'tfds'; all but the first take `path` and `split`.
    path: of a folder, for 'arrayrecord' of a bucket too; for 'tfds' a name
      ('cifar10', 'name/config:1.0.0') or the directory of a prepared data set.
    list_file: of the images that are taken, see `indices_from_list`; '': all.
    rules: of 'tfds', see there.

  Raises:
    UserError: what is asked for can't be had; the message says what to do.
  """
  if kind == 'scenes':
    source = Scenes(flavour, seed, count)
  elif kind not in _OF_FILES:
    raise UserError(
      f'There is no data source {kind!r}: take scenes, '
      f'{", ".join(list(_OF_FILES)[:-1])} or {list(_OF_FILES)[-1]}.'
    )
  elif not path:
    raise UserError(f'The data source {kind!r} needs a path: set data.path.')
  elif '://' in path and kind in ('folder', 'huggingface'):
    raise UserError(
      f'The data source {kind!r} can not read {path}: pack its images with '
      'python -m ijepa_jax.data.pack and take arrayrecord, or mount the bucket.'
    )
  else:
    more = {'rules': rules} if kind == 'tfds' else {}
    source = _OF_FILES[kind](path, split, **more)
  return filter_by_list(source, list_file) if list_file else source
