"""Eight virtual CPU devices for every test; a GPU, if there, stays the default.

The flags are read when JAX first looks for devices, so they are set before any
import of it. What one test compiled, the others and the processes that they
start find in a folder of this session. LLVM's passes and XLA's newer way to
write kernels are left out (tests/xla_flags.py):
XLA_FLAGS=--xla_backend_optimization_level=3 has both, and so has
`make test-portable`, which compares the numbers.
"""

import atexit
import contextlib
import gc
import os
import shutil
import signal
import tempfile

from tests import xla_flags

os.environ['XLA_FLAGS'] = (
  xla_flags.quick()
  + os.environ.get('XLA_FLAGS', '')
  + ' --xla_force_host_platform_device_count=8'
)
# Several processes of tests share a GPU.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
# Processes that pytest-xdist starts have the folder of the first one.
os.environ['JAX_COMPILATION_CACHE_DIR'] = (
  os.environ['JAX_COMPILATION_CACHE_DIR']
  if 'PYTEST_XDIST_WORKER' in os.environ
  else tempfile.mkdtemp()
)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import jax
import numpy as np
import PIL.Image
import pytest
from absl import flags

from configs import tiny

if 'PYTEST_XDIST_WORKER' not in os.environ:
  atexit.register(
    shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True
  )
# A shell that starts the tests in the background has them ignore Ctrl-C, which
# some of them send.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Grain reads absl's flags, which nobody parses under pytest.
flags.FLAGS.mark_as_parsed()


def pytest_collection_finish():
  """Searching all objects for garbage took 6% of the time of the tests."""
  gc.disable()


@pytest.fixture(autouse=True, scope='module')
def forget_programs():
  """What a file compiled takes memory, and parts of its map that run out."""
  yield
  jax.clear_caches()
  gc.collect(1)  # of what is new since the last file


@pytest.fixture(scope='session')
def cpus() -> list[jax.Device]:
  """The eight of them."""
  return jax.devices('cpu')


@pytest.fixture(scope='session')
def on_one_device(cpus):
  """A context in which a mesh without devices of its own has one.

  For whole jobs that claim nothing of several: a checkpoint of arrays that
  eight devices hold compiles a program for every shape.
  """
  from ijepa_jax.runtime import sharding

  make_mesh = sharding.make_mesh

  @contextlib.contextmanager
  def context():
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(
        sharding,
        'make_mesh',
        lambda devices=None, **axes: make_mesh(
          devices=devices or cpus[:1], **axes
        ),
      )
      yield

  return context


@pytest.fixture
def one_device(on_one_device):
  with on_one_device():
    yield


@pytest.fixture(scope='session')
def untrained_run(cpus):
  """(config, workdir) -> the state: what a run leaves, without the training."""
  from ijepa_jax.runtime.checkpoint import checkpointer
  from ijepa_jax.runtime.config import write_config
  from ijepa_jax.train import compile
  from ijepa_jax.train.run import make_run

  def make(config, workdir):
    run = make_run(config, cpus[:1], open_images=False)
    _, make_state = compile.abstract_state(run)
    state = make_state(jax.random.key(config.seed))
    write_config(workdir, config.to_json_best_effort())
    with checkpointer.Checkpointer(workdir / 'checkpoints') as checkpoints:
      checkpoints.save(1, state)
    return state

  return make


@pytest.fixture(scope='session')
def images(tmp_path_factory):
  """Folders: red and blue noise, 40 for training and 24 to test."""
  path = tmp_path_factory.mktemp('images')
  r = np.random.default_rng(0)
  for split, count in (('train', 20), ('test', 12)):
    for i, name in enumerate(('blue', 'red')):
      (path / split / name).mkdir(parents=True)
      for k in range(count):
        pixels = r.integers(0, 120, (48, 48, 3), np.uint8)
        pixels[..., 2 - 2 * i] += 100
        PIL.Image.fromarray(pixels).save(path / split / name / f'{k:02}.png')
  return path


@pytest.fixture(scope='session')
def small_run(tmp_path_factory, untrained_run):
  """A workdir: `tiny` with two blocks, untrained."""
  c = tiny.get_config()
  c.model.depth, c.batch_size = 2, 16
  path = tmp_path_factory.mktemp('run')
  untrained_run(c, path)
  return path
