"""What was compiled once is found, whole and the same; and stops no run."""

import time
import warnings

import jax
import numpy as np
import pytest
from absl import logging
from jax.experimental.compilation_cache import compilation_cache

from configs import base, tiny
from configs.evals import common
from ijepa_jax.evals import evaluation
from ijepa_jax.runtime.compilation import cache
from ijepa_jax.train import compile
from ijepa_jax.train.run import make_run

FLAGS = (
  'jax_compilation_cache_dir',
  'jax_persistent_cache_enable_xla_caches',
  'jax_persistent_cache_min_entry_size_bytes',
  'jax_persistent_cache_min_compile_time_secs',
)
_hits = []
jax.monitoring.register_event_listener(
  lambda event, **_: event.endswith('cache_hits') and _hits.append(event)
)


@pytest.fixture(autouse=True)
def flags():
  """Off until the test says otherwise; afterwards as before."""
  before = {name: getattr(jax.config, name) for name in FLAGS}
  jax.config.update('jax_compilation_cache_dir', None)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture
def warned(monkeypatch):
  lines = []
  monkeypatch.setattr(
    logging, 'warning', lambda words, *values: lines.append(words % values)
  )
  return lines


def computed() -> tuple[np.ndarray, int]:
  """-> what a new program says, and how many it took from the cache."""
  before = len(_hits)
  x = jax.device_put(np.arange(5.0, dtype=np.float32))
  y = jax.jit(lambda x: (x * 3 + 1) / 7, donate_argnums=0)(x)
  assert x.is_deleted()
  return np.asarray(y), len(_hits) - before


def entries(path):
  return sorted(path.glob('*-cache'))


def trained(run):
  """Two steps of a new state."""
  abstract, make_state = compile.abstract_state(run)
  (step,) = compile.compile_steps(run, abstract).values()
  state, rows = make_state(jax.random.key(0)), []
  random = np.random.default_rng(0)
  for _ in range(2):
    batch = {
      k: jax.device_put(
        random.integers(0, 9, x.shape, x.dtype),
        jax.sharding.NamedSharding(
          run.mesh, jax.sharding.PartitionSpec(('data', 'fsdp'))
        ),
      )
      for k, x in run.method.batch_shapes(run.batch_size, run.image_shape)[
        0
      ].items()
    }
    taken = jax.tree.leaves(state)[1]
    state, metrics = step(state, batch)
    assert taken.is_deleted()
    rows.append(metrics)
  return jax.device_get((state, rows))


def test_training_is_bit_for_bit_the_same(tmp_path, cpus):
  """Compiled, and then taken from the cache, with donated buffers."""
  c = tiny.get_config()
  c.batch_size, c.model.depth, c.data.count = 8, 1, 8
  run = make_run(c, cpus[:1])
  cache.use(str(tmp_path / 'new' / 'folder'))
  hits = len(_hits)
  compiled = trained(run)
  assert len(_hits) == hits
  loaded = trained(run)
  assert len(_hits) > hits
  jax.tree.map(np.testing.assert_array_equal, compiled, loaded)


@pytest.mark.parametrize('damage', ['cut', 'empty', 'garbled'])
def test_a_damaged_entry_is_compiled_again(tmp_path, damage, warned):
  """Cut short by a kill, it is replaced; JAX alone would keep it forever."""
  cache.use(str(tmp_path))
  expected, hits = computed()
  assert hits == 0
  (path,) = entries(tmp_path)
  data = path.read_bytes()
  garbled = data[:50] + bytes([data[50] ^ 255]) + data[51:]
  path.write_bytes(
    {'cut': data[: len(data) // 2], 'empty': b'', 'garbled': garbled}[damage]
  )
  cache.use(str(tmp_path))
  assert len(warned) == 1 and f'{path} is damaged' in warned[0]
  found, hits = computed()
  np.testing.assert_array_equal(found, expected)
  assert hits == 0
  cache.use(str(tmp_path))
  found, hits = computed()
  np.testing.assert_array_equal(found, expected)
  assert hits == 1 and len(warned) == 1


def test_an_entry_damaged_later_is_warned_of(tmp_path):
  cache.use(str(tmp_path))
  expected, _ = computed()
  (path,) = entries(tmp_path)
  path.write_bytes(path.read_bytes()[:99])
  with pytest.warns(UserWarning, match='persistent compilation cache'):
    found, hits = computed()
  np.testing.assert_array_equal(found, expected)
  assert hits == 0


def test_a_folder_that_can_not_be_written(warned):
  """For root, too."""
  cache.use('/proc/self')
  assert len(warned) == 1 and '/proc/self is only read: ' in warned[0]
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    computed()


def test_a_cache_that_can_not_be_had(tmp_path, warned, monkeypatch):
  (tmp_path / 'file').write_text('')
  cache.use(str(tmp_path / 'file' / 'folder'))
  cache.use('nowhere://bucket/folder')
  monkeypatch.setattr(cache, '_PATIENCE', 0.01)
  monkeypatch.setattr(cache, '_open', lambda path: time.sleep(1))
  cache.use(str(tmp_path / 'slow'))
  assert len(warned) == 3 and all('is not used: ' in x for x in warned)
  assert 'no answer' in warned[2]
  assert jax.config.jax_compilation_cache_dir is None
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    computed()


def test_which_folder(tmp_path):
  """The knob's, else the environment's, else none."""
  cache.use('')
  assert jax.config.jax_compilation_cache_dir is None
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'by hand'))
  cache.use('')
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'by hand')
  cache.use(str(tmp_path / 'knob'))
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'knob')
  assert base.get_config().compilation_cache == ''


def test_an_evaluation_is_the_same_with_it():
  """Its result has the name of one that was made without."""
  config = common.get_config('knn').to_dict()
  changed = config | {'compilation_cache': '/cache'}
  before = {k: v for k, v in config.items() if k != 'compilation_cache'}
  key = evaluation._result_key
  assert key(config) == key(changed) == key(before)
