"""Where the time went: parts that sum to the wall time, over all starts."""

import json
import threading
import time

import jax
import numpy as np
import pytest

from ijepa_jax import goodput
from ijepa_jax.errors import UserError
from ijepa_jax.runtime import metrics
from ijepa_jax.runtime.timing import clock as clocks
from ijepa_jax.runtime.timing import starts, summary
from tests.close import FLOAT64, close


@pytest.fixture
def now(monkeypatch):
  """Time stands still but for `now[0] += seconds`."""
  value = [100.0]
  for name in ('perf_counter', 'monotonic'):
    monkeypatch.setattr(time, name, lambda: value[0])
  return value


def parts(clock):
  """Those that are not zero; all sum to the wall time."""
  return {k: round(v, 9) for k, v in clock.seconds().items() if v}


def test_each_moment_is_in_one_part(now):
  clock = clocks.Clock(age=2.0)
  now[0] += 1
  with clock.part('compile'):
    now[0] += 10
  with clock.loop():
    now[0] += 5
    with clock.part('evaluate'):
      now[0] += 3
      with clock.part('save'):
        now[0] += 4
    with pytest.raises(KeyError), clock.part('data'):
      now[0] += 0.5
      raise KeyError
  now[0] += 0.25
  assert parts(clock) == {
    'restart': 3,
    'compile': 10,
    'steps': 5,
    'evaluate': 3,
    'save': 4,
    'data': 0.5,
    'other': 0.25,
  }
  assert tuple(clock.seconds()) == clocks.PARTS


def test_what_is_compiled_anywhere_is_compile(now):
  clock = clocks.Clock()
  with clock.part('evaluate'):
    now[0] += 5
    jax.monitoring.record_event_duration_secs(clocks._COMPILED, 3.0)
    jax.monitoring.record_event_duration_secs('/jax/another', 1.0)
  assert parts(clock) == {'evaluate': 2, 'compile': 3}
  # On another thread it is no time of this one.
  thread = threading.Thread(
    target=jax.monitoring.record_event_duration_secs,
    args=(clocks._COMPILED, 1.0),
  )
  thread.start()
  thread.join()
  assert parts(clock) == {'evaluate': 2, 'compile': 3}
  assert clock.compilations == 2


class Results:
  """Of a step that is done when `event` is set."""

  def __init__(self):
    self.event = threading.Event()

  def block_until_ready(self):
    self.event.wait()


@pytest.mark.parametrize(
  'before, after, data', [(1.0, 0.5, 0.5), (1.0, None, 0.0), (0.0, 1.5, 1.5)]
)
def test_data_is_waited_for_where_no_step_computes(now, before, after, data):
  """Its step is done `before` seconds of the wait; None: not within it."""
  clock, results = clocks.Clock(), Results()
  with clock.loop():
    with clock.waiting_for_data():
      now[0] += 2  # nothing is under way
    clock.in_flight(results)
    with clock.waiting_for_data():
      now[0] += before
      if after is not None:
        results.event.set()
        while not clock._done:
          time.sleep(0.001)
        now[0] += after
  results.event.set()
  waited = before + (after or 0)
  expected = {'data': 2 + data, 'steps': waited - data}
  assert parts(clock) == {k: v for k, v in expected.items() if v}


def test_a_process_knows_its_age():
  assert 0 <= clocks.process_age() < clocks._MAX_AGE


def write(folder, began, wall, end='complete', **row):
  folder = folder / summary.FOLDER
  folder.mkdir(exist_ok=True)
  seconds = dict.fromkeys(clocks.PARTS, 0.0) | row.pop('seconds')
  seconds['other'] = wall - sum(seconds.values())
  row |= {'began': began, 'wall_seconds': wall, 'seconds': seconds, 'end': end}
  (folder / f'{began}.json').write_text(json.dumps(row))


@pytest.fixture
def crashed(tmp_path):
  """Killed at step 30 after a save at 20; again at 24; at 50 it was complete.

  In between a start that made no step.
  """
  write(
    *(tmp_path, 1000.0, 100.0, None),
    from_step=0,
    step=30,
    saved=[[10, 30.0], [20, 60.0]],
    seconds={'steps': 90.0, 'compile': 8.0},
  )
  write(
    *(tmp_path, 1110.0, 20.0, None),
    from_step=20,
    step=24,
    saved=[],
    seconds={'steps': 12.0, 'restart': 5.0},
  )
  write(
    *(tmp_path, 1130.0, 7.0, 'UserError'),
    from_step=None,
    step=None,
    saved=[],
    seconds={'restart': 7.0},
  )
  write(
    *(tmp_path, 1140.0, 60.0),
    from_step=20,
    step=50,
    saved=[[50, 45.0]],
    seconds={'steps': 45.0, 'data': 10.0},
  )
  return tmp_path


def test_what_counted_over_crashes(crashed):
  found = summary.read(crashed)
  assert [x['seconds']['steps'] for x in found] == [60, 0, 0, 45]
  assert [x['seconds']['redone'] for x in found] == [30, 12, 0, 0]
  sums = summary.total(found)
  assert sums['seconds']['between'] == 10 + 3
  assert sums['wall_seconds'] == 200  # 1000 to 1200
  close(sums['goodput'], 105 / 200, FLOAT64)
  assert sums['starts'] == 4 and sums['step'] == 50


def test_a_restart_between_two_saves(tmp_path):
  """Of an older checkpoint: the steps between two saves cost as much each."""
  write(
    *(tmp_path, 0.0, 100.0),
    from_step=0,
    step=30,
    saved=[[10, 30.0], [20, 70.0]],
    seconds={'steps': 90.0},
  )
  write(
    *(tmp_path, 100.0, 1.0),
    from_step=15,
    step=15,
    saved=[],
    seconds={'steps': 0.0},
  )
  first, _ = summary.read(tmp_path)
  assert first['seconds']['steps'] == 50 and first['seconds']['redone'] == 40


def test_the_command(crashed, capsys, monkeypatch):
  goodput.main(['goodput', str(crashed)])
  shown = capsys.readouterr().out
  assert 'killed or running' in shown and '20 to 50' in shown
  assert 'Goodput 52.5%; without the time between starts' in shown
  monkeypatch.setattr(goodput, 'flags', type('', (), {'FLAGS': Json}))
  goodput.main(['goodput', str(crashed)])
  (line,) = capsys.readouterr().out.splitlines()
  assert json.loads(line)['seconds']['redone'] == 42
  assert len(json.loads(line)['each']) == 4


class Json:
  json = True


def test_a_workdir_of_before(tmp_path, capsys):
  with pytest.raises(UserError, match='says nothing of the time of its run'):
    summary.read(tmp_path)
  with pytest.raises(SystemExit, match='says nothing of the time'):
    goodput.main(['goodput', str(tmp_path)])


def test_a_file_cut_short_is_passed_over(crashed):
  (crashed / summary.FOLDER / '999.json').write_text('{"began"')
  assert len(summary.read(crashed)) == 4


def test_a_refused_first_start_leaves_nothing(tmp_path):
  with pytest.raises(UserError), starts.this_start() as start:
    start.keep_in(tmp_path)
    raise UserError('no')
  assert not list(tmp_path.iterdir())
  with starts.this_start() as start:
    start.keep_in(tmp_path)
    start.begin(0)
  with pytest.raises(UserError), starts.this_start() as start:
    start.keep_in(tmp_path)
    raise UserError('no')
  assert [x['end'] for x in summary.read(tmp_path)] == ['complete', 'UserError']


def test_a_disk_that_is_full_stops_no_run(tmp_path, caplog):
  (tmp_path / 'file').write_text('')
  with starts.this_start() as start:
    start.keep_in(tmp_path / 'file')
    start.begin(0)
  assert 'goodput: ' in caplog.text


def test_rows_have_the_seconds_at_times(now, tmp_path):
  start = starts.Start(clocks.Clock())
  rows = []
  for step in range(1, 31):
    now[0] += 1
    rows.append(start.row(always=step == 13))
  filled = [i + 1 for i, row in enumerate(rows) if row]
  assert filled == [1, 11, 13, 23]
  assert set(rows[0]) == {f'seconds/{k}' for k in clocks.PARTS}
  close(sum(rows[22].values()), 23.0, FLOAT64)
  with metrics.MetricWriter(tmp_path, tensorboard=False) as writer:
    writer.write(1, {'loss': np.float32(1), **rows[0]})
  assert metrics.read(tmp_path)[0]['seconds/restart'] == 1
