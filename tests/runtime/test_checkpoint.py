"""What is saved comes back bit for bit, whatever happens in between."""

import concurrent.futures
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ijepa_jax.errors import UserError
from ijepa_jax.methods import train_step
from ijepa_jax.runtime import sharding
from ijepa_jax.runtime.checkpoint import checkpointer

# Orbax's event loop complains on its way out of a read that failed.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


def make_state(step=0, mesh=None, width=64):
  """Dicts and named tuples with odd bits: -0.0, 1e-45, bfloat16, int32."""
  keys = jax.random.split(jax.random.key(step))
  params = {
    'kernel': jax.random.normal(keys[0], (width, width)),
    'bias': jnp.array([-0.0, 1e-45, 1.0]),
  }
  state = {
    'step': jnp.int32(step),
    'params': params,
    'opt_state': optax.adamw(0.1).init(params),
    'half': jax.random.normal(keys[1], (8,), jnp.bfloat16),
  }
  if mesh is None:
    return state
  return jax.device_put(
    state, sharding.state_sharding(state, mesh, min_size=64)
  )


def abstract(state, mesh=None):
  shardings = jax.tree.map(lambda x: x.sharding, state)
  if mesh is not None:
    shardings = sharding.state_sharding(state, mesh, min_size=64)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state,
    shardings,
  )


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save_steps(directory, *steps, **rules):
  with checkpointer.Checkpointer(directory, **rules) as checkpoints:
    for step in steps:
      checkpoints.save(step, make_state(step))


@pytest.fixture
def errors(monkeypatch):
  """What was logged as an error."""
  lines = []
  monkeypatch.setattr(
    checkpointer.logging, 'error', lambda words, *v: lines.append(words % v)
  )
  return lines


def test_round_trip(tmp_path):
  state = make_state(7)
  with checkpointer.Checkpointer(tmp_path / 'new' / 'run') as checkpoints:
    assert checkpoints.restore(abstract(state)) is None
    assert checkpoints.steps() == []
    assert not (tmp_path / 'new').exists()  # looking makes no folder
    checkpoints.save(7, state)
    checkpoints.wait()
    assert checkpoints.steps() == [7]
    restored, step = checkpoints.restore(abstract(state))
  assert step == 7
  assert_same_bits(restored, state)


def test_relative_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  save_steps('here', 1)
  assert checkpointer.Checkpointer('here').steps() == [1]


@pytest.mark.parametrize(
  ('other', 'width', 'shard'),
  [
    ((8, 1), 64, (16, 64)),
    ((1, 8), 64, (16, 64)),
    ((2, 2), 64, (16, 64)),
    ((1, 1), 64, (16, 64)),
    ((2, 2), 10, (5, 5)),  # along both axes, and onto one
  ],
)
def test_onto_another_mesh(tmp_path, cpus, other, width, shard):
  mesh = sharding.make_mesh(fsdp=4, devices=cpus)
  state = make_state(1, mesh, width)
  kernel = state['params']['kernel']
  assert kernel.sharding.shard_shape(kernel.shape) == shard
  new_mesh = sharding.make_mesh(
    data=other[0], fsdp=other[1], devices=cpus[: other[0] * other[1]]
  )
  with checkpointer.Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(1, state)
    checkpoints.wait()
    for abstract_state in (abstract(state), abstract(state, new_mesh)):
      restored, _ = checkpoints.restore(abstract_state)
      assert_same_bits(restored, state)
      assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(
        lambda x: x.sharding, abstract_state
      )


@pytest.mark.parametrize('spread', [False, True])
def test_donated_right_after(tmp_path, cpus, spread):
  """The next step overwrites the buffers while the save goes on."""
  mesh = Mesh(cpus, ('data',), axis_types=(AxisType.Auto,))
  spec = PartitionSpec('data') if spread else PartitionSpec()
  place = NamedSharding(mesh, spec)
  step = jax.jit(
    lambda tree: jax.tree.map(lambda x: x * 2 + 1, tree),
    donate_argnums=0,
    out_shardings=place,
  )
  # A megabyte each that does not compress, so that writing takes a while.
  state = {
    str(i): jax.random.normal(jax.random.key(i), (512, 512)) for i in range(8)
  }
  state = step(jax.device_put(state, place))
  expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
  abstract_state = abstract(state)
  with checkpointer.Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(1, state)
    for _ in range(3):
      state = step(state)
    jax.block_until_ready(state)
    checkpoints.wait()
    restored, _ = checkpoints.restore(abstract_state)
    assert_same_bits(restored, expected)
    # And what was restored may be donated in turn.
    again = step(restored)
    assert_same_bits(
      again, jax.tree.map(lambda x: np.float32(x * 2 + 1), expected)
    )


def test_retention(tmp_path):
  save_steps(tmp_path, *range(1, 10), keep_last=2, keep_every=4)
  assert checkpointer.Checkpointer(tmp_path).steps() == [4, 8, 9]
  # Multiples stay in later runs with other rules too, as long as they ask.
  save_steps(tmp_path, 10, keep_last=1, keep_every=8)
  assert checkpointer.Checkpointer(tmp_path).steps() == [8, 10]


@pytest.mark.parametrize(('mode', 'kept'), [('max', [2, 5]), ('min', [3, 5])])
def test_the_best_is_kept(tmp_path, mode, kept):
  """Of those saved with the metric, over restarts too."""
  rules = {'keep_last': 1, 'keep_best': 'probe', 'keep_best_mode': mode}
  values = {1: 0.4, 2: 0.9, 3: 0.1, 4: None, 5: 0.5}
  for part in ([1, 2], [3, 4, 5]):
    with checkpointer.Checkpointer(tmp_path, **rules) as checkpoints:
      for step in part:
        actual = {} if values[step] is None else {'probe': values[step]}
        checkpoints.save(step, make_state(), actual)
  assert checkpointer.Checkpointer(tmp_path).steps() == kept


def test_by_steps():
  checkpoints = checkpointer.Checkpointer('unused', every_steps=3)
  assert [s for s in range(1, 10) if checkpoints.should_save(s)] == [3, 6, 9]
  assert not checkpointer.Checkpointer('unused').should_save(1)


def test_by_minutes(tmp_path, monkeypatch):
  now = [1000.0]
  monkeypatch.setattr(checkpointer.time, 'monotonic', lambda: now[0])
  state = make_state()
  saved = []
  with checkpointer.Checkpointer(tmp_path, every_minutes=1.5) as checkpoints:
    for step in range(1, 11):
      now[0] += 40
      if checkpoints.should_save(step):
        checkpoints.save(step, state)
        saved.append(step)
  assert saved == [3, 6, 9]  # 120 s each, the first multiple of 40 over 90
  assert checkpointer.Checkpointer(tmp_path).steps() == [3, 6, 9]


def test_by_minutes_on_several_processes(monkeypatch):
  """Process 0's clock decides, and it is asked every tenth step only."""
  asked = []
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(
    checkpointer.multihost_utils,
    'broadcast_one_to_all',
    lambda mine: asked.append(mine) or np.int32(1),
  )
  checkpoints = checkpointer.Checkpointer('unused', every_minutes=60)
  assert [s for s in range(1, 31) if checkpoints.should_save(s)] == [10, 20, 30]
  assert asked == [0, 0, 0]  # this process alone would not have saved


@pytest.mark.parametrize(
  'rules',
  [
    {'every_steps': -1},
    {'every_minutes': -1},
    {'keep_last': 0},
    {'keep_best_mode': 'most'},
  ],
)
def test_nonsense_rules(rules):
  with pytest.raises(UserError, match=r'1 or more|max or min'):
    checkpointer.Checkpointer('unused', **rules)


def biggest(path):
  return max(path.rglob('d/*'), key=lambda p: p.stat().st_size)


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


DAMAGE = {
  'cut data': lambda path: cut(biggest(path)),
  'no data': lambda path: biggest(path).unlink(),
  'flipped bit': lambda path: flip(biggest(path)),
  'cut manifest': lambda path: cut(path / 'state' / 'manifest.ocdbt'),
  'cut tree': lambda path: cut(path / 'state' / '_METADATA'),
  'no tree': lambda path: (path / 'state' / '_METADATA').unlink(),
  'cut metadata': lambda path: cut(path / '_CHECKPOINT_METADATA'),
  'no metadata': lambda path: (path / '_CHECKPOINT_METADATA').unlink(),
  'empty': lambda path: (shutil.rmtree(path), path.mkdir()),
}


@pytest.mark.parametrize('how', DAMAGE)
def test_damaged_newest(tmp_path, errors, how):
  save_steps(tmp_path, 1, 2)
  DAMAGE[how](tmp_path / '2')
  with checkpointer.Checkpointer(tmp_path) as checkpoints:
    state, step = checkpoints.restore(abstract(make_state()))
    assert step == 1
    assert_same_bits(state, make_state(1))
    assert any(f'{tmp_path / "2"} is damaged: ' in line for line in errors)
    assert checkpoints.steps() == [1]
    assert (tmp_path / '2.corrupt').is_dir()
    # The run goes on from 1 and comes by 2 again.
    checkpoints.save(2, make_state(2))
  checkpoints = checkpointer.Checkpointer(tmp_path)
  assert checkpoints.steps() == [1, 2]
  state, step = checkpoints.restore(abstract(make_state()))
  assert step == 2
  assert_same_bits(state, make_state(2))


def test_all_damaged(tmp_path, errors):
  """Neither starts over nor moves anything: it may be the disk's bad day."""
  save_steps(tmp_path, 1, 2)
  cut(biggest(tmp_path / '1'))
  cut(biggest(tmp_path / '2'))
  for _ in range(2):
    with (
      checkpointer.Checkpointer(tmp_path) as checkpoints,
      pytest.raises(UserError, match=r'None of the checkpoints \[1, 2\]'),
    ):
      checkpoints.restore(abstract(make_state()))
  assert sorted(p.name for p in tmp_path.iterdir()) == ['1', '2']
  assert len(errors) == 4


@pytest.mark.parametrize('fault', [MemoryError('m'), PermissionError('p')])
def test_faults_of_the_machine_are_no_damage(tmp_path, monkeypatch, fault):
  save_steps(tmp_path, 1, 2)

  def fail(*_):
    raise RuntimeError('incompatible handler') from fault

  monkeypatch.setattr(checkpointer.ocp, 'load', fail)
  with (
    checkpointer.Checkpointer(tmp_path) as checkpoints,
    pytest.raises(RuntimeError, match='incompatible'),
  ):
    checkpoints.restore(abstract(make_state()))
  assert checkpoints.steps() == [1, 2]


def test_a_field_that_is_none_is_not_stored(tmp_path):
  """Of a method without a target; its name is in no checkpoint."""
  one = jnp.ones(3)
  state = train_step.State(jnp.int32(1), {'head': one}, None, {'mu': one})
  with checkpointer.Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(1, state)
    checkpoints.wait()
    names = {'step', 'params/head', 'opt_state/mu'}
    assert checkpoints.names() == names
    restored, step = checkpoints.restore(abstract(state))
  assert step == 1 and restored.target is None
  np.testing.assert_array_equal(restored.params['head'], one)


def test_of_another_model(tmp_path, errors):
  save_steps(tmp_path, 1, 2)
  abstract_state = abstract(make_state(width=32))
  abstract_state['params']['extra'] = jax.ShapeDtypeStruct((3,), jnp.float32)
  del abstract_state['half']
  with (
    checkpointer.Checkpointer(tmp_path) as checkpoints,
    pytest.raises(UserError, match=r'Checkpoint 2 in .* another model') as info,
  ):
    checkpoints.restore(abstract_state)
  message = str(info.value)
  for part in (
    'params/kernel is float32[64, 64] there and float32[32, 32] in the model',
    'opt_state/0/mu/kernel is float32[64, 64]',
    'params/extra is missing there and float32[3] in the model',
    'half is bfloat16[8] there and missing in the model',
  ):
    assert part in message
  assert '\n' not in message
  assert checkpoints.steps() == [1, 2]
  assert not errors


def test_many_mismatches_are_counted(tmp_path):
  state = {str(i): jnp.ones(i + 1) for i in range(20)}
  other = {str(i): jnp.ones(i + 2) for i in range(20)}
  with checkpointer.Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(1, state)
    checkpoints.wait()
    with pytest.raises(UserError, match='and 15 more') as info:
      checkpoints.restore(abstract(other))
  assert len(str(info.value)) < 700


def test_remains_of_a_killed_save(tmp_path):
  save_steps(tmp_path, 1)
  remains = tmp_path / '2.orbax-checkpoint-tmp'
  shutil.copytree(tmp_path / '1', remains)
  (remains / '_CHECKPOINT_METADATA').unlink()
  with checkpointer.Checkpointer(tmp_path) as checkpoints:
    assert checkpoints.steps() == [1]
    assert checkpoints.restore(abstract(make_state()))[1] == 1
    assert remains.exists()  # looking clears nothing: it may be under way
    checkpoints.save(2, make_state(2))
  assert sorted(p.name for p in tmp_path.iterdir()) == ['1', '2']


def run_python(code, *arguments, **env):
  return subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(code), *map(str, arguments)],
    cwd=pathlib.Path(__file__).parents[2],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', **env},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def test_killed_while_saving(tmp_path):
  process = run_python(
    """
    import os, signal, sys
    import jax
    from ijepa_jax.runtime.checkpoint import checkpointer

    state = {'w': jax.random.normal(jax.random.key(0), (2000, 2000))}
    checkpoints = checkpointer.Checkpointer(sys.argv[1])
    checkpoints.save(1, state)
    checkpoints.save(2, state)
    os.kill(os.getpid(), signal.SIGKILL)
    """,
    tmp_path,
  )
  process.communicate(timeout=60)
  assert process.returncode == -signal.SIGKILL
  assert [p.name for p in tmp_path.glob('2*')] == ['2.orbax-checkpoint-tmp']
  state = {'w': jax.random.normal(jax.random.key(0), (2000, 2000))}
  with checkpointer.Checkpointer(tmp_path) as checkpoints:
    restored, step = checkpoints.restore(abstract(state))
    assert step == 1
    checkpoints.save(2, restored)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['1', '2']


def test_full_disk(tmp_path):
  """A limit on the size of files fails the write, as a full disk does."""
  state = {'w': jax.random.normal(jax.random.key(0), (1000, 1000))}
  checkpoints = checkpointer.Checkpointer(tmp_path)
  checkpoints.save(1, {'w': state['w'][:9]})
  checkpoints.wait()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    checkpoints.save(2, state)
    with pytest.raises(checkpointer.CheckpointError) as info:
      checkpoints.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  message = str(info.value)
  assert message.startswith('Checkpoint 2 could not be written to ')
  assert 'File too large' in message and '\n' not in message
  assert 'what can be loaded: 1.' in message
  checkpoints.close()


def test_folder_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').write_text('x')
  checkpoints = checkpointer.Checkpointer(tmp_path / 'file' / 'checkpoints')
  with pytest.raises(
    checkpointer.CheckpointError, match='could not be written'
  ):
    checkpoints.save(1, make_state())
  checkpoints.close()


def test_a_failed_save_hides_no_other_error(tmp_path, errors):
  with (
    pytest.raises(ZeroDivisionError),
    checkpointer.Checkpointer(tmp_path) as checkpoints,
  ):
    checkpoints.save(1, make_state())
    checkpoints.wait()
    checkpoints._pending = 2, None
    checkpoints._orbax.wait = lambda: 1 / 0
    raise ZeroDivisionError('the run')
  assert 'Checkpoint 2 could not be written' in errors[0]


def test_two_processes(tmp_path, cpus):
  """Two save their halves; clocks differ; one process takes it from there."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  code = """
    import pathlib, sys
    import jax, numpy as np
    from ijepa_jax.runtime import sharding
    from ijepa_jax.runtime.checkpoint import checkpointer
    from ijepa_jax.runtime.distributed import start

    process, port, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    start.initialize(f'localhost:{port}', 2, process)
    mesh = sharding.make_mesh(fsdp=4)
    # The 8 rows of the batch are split over the processes in order.
    rows = np.arange(4, dtype=np.float32)[:, None] + 4 * process
    batch = sharding.to_global({'x': np.tile(rows, 64)}, mesh)['x']
    w = jax.jit(lambda x: x * 2, out_shardings=sharding.state_sharding(
      batch, mesh, min_size=1))(batch)
    state = {'w': w}
    with checkpointer.Checkpointer(
      directory, every_minutes=1e-9 if process == 0 else 1e9
    ) as checkpoints:
      due = [s for s in range(1, 21) if checkpoints.should_save(s)]
      assert due == [10, 20], due
      for step in due:
        checkpoints.save(step, state)
      checkpoints.wait()
      if process == 0:
        path = max(
          pathlib.Path(directory, '20').rglob('d/*'),
          key=lambda p: p.stat().st_size,
        )
        path.write_bytes(b'')
      wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        state)
      restored, step = checkpoints.restore(wanted)
      assert step == 10
      assert checkpoints.steps() == [10]
      for a, b in zip(restored['w'].addressable_shards, w.addressable_shards):
        np.testing.assert_array_equal(a.data, b.data)
  """
  # Of several the last one counts.
  flags = os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=4'
  processes = [
    run_python(code, i, port, tmp_path, XLA_FLAGS=flags) for i in range(2)
  ]
  for process in processes:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
  expected = 2 * np.tile(np.arange(8, dtype=np.float32)[:, None], 64)
  mesh = sharding.make_mesh(devices=cpus)
  abstract_state = jax.ShapeDtypeStruct(
    (8, 64), jnp.float32, sharding=sharding.batch_sharding(mesh)
  )
  restored, step = checkpointer.Checkpointer(tmp_path).restore(
    {'w': abstract_state}
  )
  assert step == 10
  np.testing.assert_array_equal(restored['w'], expected)


def spoilt(step, part='params', number=jnp.nan):
  state = make_state(step)
  if part == 'params':
    state['params']['bias'] = jnp.array([0.0, number, 1.0])
  elif part == 'half':
    state['half'] = state['half'].at[3].set(number)
  else:
    moments = state['opt_state'][0]
    nu = moments.nu | {'bias': jnp.full(3, number)}
    state['opt_state'] = (moments._replace(nu=nu), *state['opt_state'][1:])
  return state


@pytest.mark.parametrize('number', [jnp.nan, -jnp.inf])
@pytest.mark.parametrize(
  ('part', 'name'),
  [
    ('params', 'params/bias'),
    ('half', 'half'),
    ('moments', 'opt_state/0/nu/bias'),
  ],
)
def test_what_is_not_finite_is_not_saved(part, name, number, tmp_path):
  """The last good checkpoint stays the newest, whatever part is spoilt."""
  with checkpointer.Checkpointer(tmp_path, keep_last=1) as checkpoints:
    checkpoints.save(1, make_state(1))
    with pytest.raises(
      checkpointer.NotFinite, match=f'step 2 .* as in {name}; .*checkpoint is 1'
    ):
      checkpoints.save(2, spoilt(2, part, number))
  assert checkpointer.Checkpointer(tmp_path).steps() == [1]


def test_parts_that_may_diverge_alone(tmp_path):
  with checkpointer.Checkpointer(tmp_path, finite=False) as checkpoints:
    checkpoints.save(1, spoilt(1))
  with checkpointer.Checkpointer(tmp_path, finite=False) as checkpoints:
    state, step = checkpoints.restore(abstract(make_state()))
  assert step == 1
  assert_same_bits(state, spoilt(1))


def test_what_is_not_finite_is_passed_over(tmp_path, errors):
  """As versions before this one have saved it."""
  with checkpointer.Checkpointer(tmp_path, finite=False) as checkpoints:
    checkpoints.save(1, make_state(1))
    checkpoints.save(2, spoilt(2))
  with checkpointer.Checkpointer(tmp_path) as checkpoints:
    state, step = checkpoints.restore(abstract(make_state()))
  assert step == 1
  assert_same_bits(state, make_state(1))
  assert 'not all numbers are finite, as in params/bias' in errors[0]
  assert (tmp_path / '2.corrupt').exists()


@pytest.mark.parametrize('mode', ['max', 'min'])
def test_a_metric_that_is_no_number_is_never_best(mode, tmp_path):
  rules = dict(keep_last=1, keep_best='a', keep_best_mode=mode)
  values = {1: 0.5, 2: float('nan'), 3: float('inf'), 4: 0.5, 5: -float('inf')}
  with checkpointer.Checkpointer(tmp_path, **rules) as checkpoints:
    for step, value in values.items():
      checkpoints.save(step, make_state(step), {'a': value})
  kept = checkpointer.Checkpointer(tmp_path).steps()
  assert kept[-1] == 5 and set(kept[:-1]) <= {1, 4} and len(kept) == 2


def test_a_save_that_failed_here_does_not_wait_for_others(
  tmp_path, monkeypatch
):
  """Orbax takes its barriers from here, and with an error none is waited at."""

  def save():
    try:
      raise OSError('of this process')
    finally:
      checkpointer._barrier(key='end', timeout_ms=1)

  with (
    monkeypatch.context() as patch,
    concurrent.futures.ThreadPoolExecutor() as thread,
  ):
    patch.setattr(checkpointer.multihost, 'get_barrier_sync_fn', None)
    assert str(thread.submit(save).exception()) == 'of this process'
  keys = []
  monkeypatch.setattr(
    checkpointer, '_barrier', lambda *, key, timeout_ms: keys.append(key)
  )
  save_steps(tmp_path, 1)
  assert keys
