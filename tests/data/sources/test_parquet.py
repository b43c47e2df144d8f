"""Parquet files as pyarrow, pandas, Spark and the Hub have them."""

import pickle

import numpy as np
import pytest

from ijepa_jax.data import sources
from ijepa_jax.data.sources import make_source
from ijepa_jax.errors import UserError
from tests.data.sources.test_identity import exchange
from tests.data.sources.test_sources import cache_folder, png  # noqa: F401


def parquet(path, name='part-00000.parquet', **columns):
  """A file as pyarrow writes it, with no features of `datasets`."""
  pytest.importorskip('datasets').disable_progress_bars()
  import pyarrow as pa
  import pyarrow.parquet

  path.mkdir(parents=True, exist_ok=True)
  table = pa.table({k: pa.array(v) for k, v in columns.items()})
  pyarrow.parquet.write_table(table, path / name)
  return str(path)


PNGS = [png(i) for i in range(4)]
ROWS = [{'bytes': p, 'path': f'{i}.png'} for i, p in enumerate(PNGS)]


@pytest.fixture
def hf_cache(tmp_path, monkeypatch):
  datasets = pytest.importorskip('datasets')
  path = tmp_path / 'hf'
  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', path)
  return path


@pytest.mark.parametrize(
  ('columns', 'labels', 'names'),
  [
    ({'image': ROWS, 'label': [0, 2, 1, 2]}, [0, 2, 1, 2], ()),
    ({'img': PNGS, 'label': ['b', 'a', None, 'b']}, [1, 0, -1, 1], ('a', 'b')),
    ({'jpg': PNGS, 'target': [0.0, float('nan'), 1.0, 1.0]}, [0, -1, 1, 1], ()),
    ({'content': PNGS, 'Class': [True, False, True, True]}, [1, 0, 1, 1], None),
    ({'image': PNGS, 'label': [-1, 1, 1, 0]}, [-1, 1, 1, 0], ()),
  ],
)
def test_plain_parquet(tmp_path, hf_cache, columns, labels, names):
  """Numbers and words are classes, however the columns are called."""
  path = parquet(tmp_path / 'x', **columns)
  for name in '_SUCCESS', '._SUCCESS.crc', '.part-00000.parquet.crc':
    (tmp_path / 'x' / name).write_text('x')  # as Spark leaves them
  source = make_source('huggingface', path=path)
  assert [e['image'] for e in source] == PNGS
  assert [e['label'].tolist() for e in source] == [[x] for x in labels]
  assert source[0]['label'].dtype == np.int32
  assert source.labels == {'label': max(labels) + 1}
  if names is not None:
    assert source.class_names == names
  again = pickle.loads(pickle.dumps(source))
  assert again[1]['label'].tolist() == source[1]['label'].tolist()


@pytest.mark.parametrize(
  ('columns', 'message'),
  [
    ({'label': [0.5] * 4}, 'is neither words nor whole numbers'),
    ({'label': [[1]] * 4}, 'is neither words nor whole numbers'),
    ({'label': [-2, 0, 1, 1]}, 'goes from -2 to 1, and classes'),
    ({'label': [0, 0, 1, 10**6]}, 'goes from 0 to 1000000, and classes'),
    ({'label': [None] * 4}, 'is empty'),
    ({'caption': ['a'] * 4}, r'caption \(string\) none is a ClassLabel or'),
  ],
)
def test_columns_that_are_no_labels(tmp_path, hf_cache, columns, message):
  """The images can be trained on, and a task says why it can't."""
  source = make_source(
    'huggingface', path=parquet(tmp_path / 'x', image=PNGS, **columns)
  )
  assert source.labels == {} and source[0]['label'].shape == (0,)
  with pytest.raises(AssertionError, match=message):
    raise AssertionError(sources.labels_in_words(source))


def test_words_are_numbered_over_all_splits(tmp_path, hf_cache):
  for split, letters in (('train', 'abab'), ('test', 'acca')):
    path = parquet(tmp_path / 'x' / split, image=ROWS, label=list(letters))
  path = str(tmp_path / 'x')
  train, test = (
    make_source('huggingface', path=path, split=s) for s in ('train', 'test')
  )
  assert train.class_names == test.class_names == ('a', 'b', 'c')
  assert [e['label'].tolist() for e in test] == [[0], [2], [2], [0]]
  parquet(tmp_path / 'x', 'more.parquet', image=ROWS, label=list('abab'))
  with pytest.raises(UserError, match=r'more\.parquet .* none of the splits'):
    make_source('huggingface', path=path)


def test_parquet_replaced_in_place(tmp_path, hf_cache):
  """Is read anew, also with the time that it had."""
  path = parquet(tmp_path / 'x', image=ROWS, label=[0, 1, 0, 1])
  parquet(tmp_path / 'y', image=ROWS[::-1], label=[0, 1, 0, 1])
  before = make_source('huggingface', path=path)
  identity = before.identity
  assert make_source('huggingface', path=path).identity == identity
  name = 'part-00000.parquet'
  exchange(tmp_path / 'x' / name, tmp_path / 'y' / name)
  after = make_source('huggingface', path=path)
  assert after[0]['image'] == PNGS[3] and after.identity != identity
