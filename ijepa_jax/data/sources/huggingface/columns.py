"""Which columns of a Hugging Face data set are the image and the labels."""

import numpy as np

from ijepa_jax.data.sources.base import choose_image, features_of_type

# Columns that are the image or the label if no feature says so, as in parquet
# files that pyarrow, pandas or Spark wrote; the best name first.
IMAGE_COLUMNS = (
  *('image', 'img', 'picture', 'photo', 'jpg', 'jpeg', 'png', 'webp'),
  *('image_bytes', 'bytes', 'content', 'image_path', 'path', 'file_name'),
)
LABEL_COLUMNS = (
  *('label', 'labels', 'class', 'target', 'category', 'label_id', 'class_id'),
  *('cls', 'y', 'class_name', 'label_name'),
)
_MAX_CLASSES = 100_000  # that a column of numbers may stand for


def _dtype(feature) -> str | None:
  return getattr(feature, 'dtype', None)


def _holds_bytes(feature) -> bool:
  if isinstance(feature, dict):
    return feature.keys() == {'bytes', 'path'}
  return _dtype(feature) in ('binary', 'large_binary')


def _describe(data) -> str:
  """Returns the names and types of all columns."""
  return ', '.join(
    f'{name} ({_dtype(feature) or type(feature).__name__})'
    for name, feature in data.features.items()
  )


def read_column(data, name):
  """Returns a column as pyarrow's ChunkedArray."""
  return data.select_columns(name).with_format('arrow')[:][name]


def image_column(data, path) -> str:
  """Returns the name of the column of images.

  It is a feature Image, or else bytes, or else paths in a column with a name of
  IMAGE_COLUMNS.

  Raises:
    UserError: there is no such column, or several.
  """
  import datasets

  features = data.features
  names = (
    features_of_type(features, datasets.Image)
    or [n for n, f in features.items() if _holds_bytes(f)]
    or [
      n
      for n, f in features.items()
      if _dtype(f) in ('string', 'large_string') and n.lower() in IMAGE_COLUMNS
    ]
  )
  return choose_image(names, IMAGE_COLUMNS, path, _describe(data))


class Labels:
  """The labels of one split of several.

  Attributes:
    counts: name of each label -> number of its classes.
    names: of the classes, if there is one label and they are known.
    values_NL: int32 [N, L]; None if there is no label.
    missing: why there is no label, or ''.
  """

  def __init__(self, data, splits):
    import datasets

    self.missing = ''
    names = features_of_type(data.features, datasets.ClassLabel)
    if not names:
      lower = {name.lower(): name for name in reversed(data.column_names)}
      names = [lower[name] for name in LABEL_COLUMNS if name in lower][:1]
    if not names:
      self.missing = (
        f'of the columns {_describe(data)} none is a ClassLabel or called '
        f'{", ".join(LABEL_COLUMNS[:5])}, ...'
      )
    try:
      columns = [_classes(name, data, splits) for name in names]
    except _NoClassesError as error:
      self.missing, names, columns = str(error), [], []
    if len(names) == 1:
      names = ['label']
    self.counts = {n: c for n, (_, c, _) in zip(names, columns, strict=True)}
    self.names = columns[0][2] if len(columns) == 1 else ()
    values = [values for values, _, _ in columns]
    self.values_NL = np.stack(values, -1) if values else None


class _NoClassesError(Exception):
  """A column that can't be a label; the message says why."""


def _classes(name, data, splits) -> tuple[np.ndarray, int, tuple[str, ...]]:
  """Reads a column as classes.

  Args:
    name: of the column.
    data: the split to read.
    splits: all splits; the classes are those of all of them.

  Returns:
    Labels int32 [N], the number of classes, and their names or ().

  Raises:
    _NoClassesError: it is neither strings nor small whole numbers.
  """
  import datasets
  import pyarrow as pa
  import pyarrow.compute as pc

  feature = data.features[name]
  column = read_column(data, name)
  if isinstance(feature, datasets.ClassLabel):
    names = tuple(feature.names or ())
    return _to_numpy(column), feature.num_classes, names
  title = f'the column {name!r} of {feature}'
  try:
    values = [_unchunked(pc.unique(read_column(s, name))) for s in splits]
    values = pc.unique(pa.concat_arrays(values).drop_null())
    if pa.types.is_boolean(values.type):
      return _to_numpy(column.cast(pa.int8())), 2, ('False', 'True')
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
      names = values.sort()
      labels = _to_numpy(pc.index_in(column, names))
      return labels, len(names), tuple(names.to_pylist())
    # pandas stores whole numbers with gaps as floats.
    if pa.types.is_floating(values.type):
      column = pc.if_else(pc.is_nan(column), None, column)
      values = values.filter(pc.invert(pc.is_nan(values)))
    column, values = column.cast(pa.int64()), values.cast(pa.int64())
  except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
    raise _NoClassesError(
      f'{title} is neither words nor whole numbers'
    ) from error
  if not len(values):
    raise _NoClassesError(f'{title} is empty')
  low, high = (f(values).as_py() for f in (pc.min, pc.max))
  if low < -1 or high >= _MAX_CLASSES:
    raise _NoClassesError(
      f'{title} goes from {low} to {high}, and classes are numbered from 0 up '
      f'to {_MAX_CLASSES - 1}'
    )
  return _to_numpy(column), high + 1, ()


def _unchunked(array):
  import pyarrow as pa

  chunked = isinstance(array, pa.ChunkedArray)
  return array.combine_chunks() if chunked else array


def _to_numpy(column) -> np.ndarray:
  """Returns int32, with -1 for nulls."""
  import pyarrow.compute as pc

  return pc.fill_null(column, -1).to_numpy().astype(np.int32)
