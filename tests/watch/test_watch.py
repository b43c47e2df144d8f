"""The page of runs while they train: what it says, sorts and refuses."""

import json
import re
import threading
import urllib.error
import urllib.request

import numpy as np
import PIL.Image
import pytest

from configs import tiny
from ijepa_jax.errors import UserError
from ijepa_jax.watch import page, runs, server

HEALTHY = {
  'health/rankme': 20.0,
  'health/rankme_share': 0.3,
  'health/feature_std': 0.6,
  'health/image_cosine': 0.2,
  'health/token_cosine': 0.8,
  'health/gap_share': 0.7,
}


def make_run(folder, steps=1000, **last):
  """A workdir of `tiny` after so many steps; `last` is of the last row."""
  folder.mkdir(parents=True)
  config = tiny.get_config()
  config.total_steps, config.batch_size = 11_000, 64
  config.optim.warmup_steps = 550
  (folder / 'config.json').write_text(config.to_json_best_effort())
  rows = [
    {'step': step, 'loss': 1 / step, 'images_per_second': 640.0}
    for step in range(1, steps + 1)
  ]
  rows[-1] |= last
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'metrics.jsonl').write_text(text)
  return folder


@pytest.fixture
def two(tmp_path):
  make_run(tmp_path / 'good', **HEALTHY, **{'probe/class': 0.75})
  collapsed = HEALTHY | {'health/token_cosine': 0.999}
  make_run(tmp_path / 'bad', 2000, **collapsed, **{'probe/class': 0.25})
  (tmp_path / 'empty').mkdir()
  opened = runs.open_runs([tmp_path / x for x in ('bad', 'good', 'empty')])
  for run in opened:
    run.refresh()
  return opened


def test_what_is_said_of_a_run(two):
  bad, good, empty = two
  # 10,000 steps of 64 images are left, at 640 a second.
  assert good.status() == 'step 1,000 of 11,000, about 17 minutes left'
  assert good.health() == ('good', ['Healthy: no alarm.'])
  grade, sentences = bad.health()
  assert grade == 'bad'
  assert [s.split(' is ')[0] for s in sentences] == ['token_cosine']
  assert empty.status().startswith('no step yet')
  assert empty.health() == ('poor', ['No signals of health yet.'])


def test_a_run_is_read_again_as_it_grows(two):
  _, good, _ = two
  with (good.path / 'metrics.jsonl').open('a') as file:
    file.write(json.dumps({'step': 11_000, 'loss': 0.1}) + '\n')
  good.refresh()
  assert good.status() == 'step 11,000 of 11,000: complete'
  assert good.latest()['probe/class'] == 0.75


def test_curves_are_drawn_again_with_the_report(two):
  """It comes after the last step, with the levels of the untrained encoder."""
  _, good, _ = two
  before = good.curves()
  assert good.curves() is before
  rows = {'encoder, untrained': {'probe/class': 0.3}}
  (good.path / 'report.json').write_text(json.dumps(rows))
  assert good.curves() != before


def test_rows_are_thinned_except_those_of_monitors():
  rows = [{'step': step} for step in range(100)]
  rows[51]['health/rankme'] = 1.0
  steps = [row['step'] for row in runs.thin(rows, 10)]
  assert steps == sorted([*range(0, 100, 10), 51])


def test_any_metric_sorts(two):

  def names(by, descending):
    return [run.name for run in page.sort(two, by, descending)]

  assert names('probe/class', True) == ['good', 'bad', 'empty']
  assert names('probe/class', False) == ['bad', 'good', 'empty']
  assert names('step', True) == ['bad', 'good', 'empty']
  assert names('run', False) == ['bad', 'empty', 'good']
  text = page.page(two, 'probe/class', True)
  assert '<td class="n">75.0</td>' in text and 'probe/class ↓' in text


def test_names_are_escaped(tmp_path):
  run = runs.open_runs([make_run(tmp_path / '<b>x', 3)])
  run[0].refresh()
  assert '<b>x' not in page.page(run)


@pytest.fixture
def address(two):
  with server.make_server(two, 'localhost', 0) as serving:
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield f'http://localhost:{serving.server_address[1]}'
    serving.shutdown()
    thread.join()


def get(url, **headers):
  with urllib.request.urlopen(
    urllib.request.Request(url, headers=headers)
  ) as answer:
    return answer.headers, answer.read()


def test_the_page_is_served_and_nothing_else(address, two):
  headers, content = get(f'{address}/?sort=loss')
  text = content.decode()
  assert "default-src 'none'" in headers['Content-Security-Policy']
  assert not re.findall('(?:src|href)="(?:https?:)?//', text)
  (image,) = re.findall(r'src="(curves/1[^"]*)"', text)
  assert get(f'{address}/{image}')[1].startswith(b'\x89PNG')
  folder = two[1].path / 'pictures'
  folder.mkdir()
  PIL.Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / 'tokens.png')
  assert 'src="picture/1?' in get(address)[1].decode()
  for path in '/curves/2', '/curves/9', '/picture/0', '/../config.json':
    with pytest.raises(urllib.error.HTTPError, match='404'):
      get(address + path)
  with pytest.raises(urllib.error.HTTPError, match='403'):
    get(address, Host='elsewhere.example:80')


def test_mistakes(tmp_path, two, address):
  with pytest.raises(UserError, match='There is no workdir'):
    runs.open_runs([tmp_path / 'nothing'])
  port = int(address.rpartition(':')[2])
  with pytest.raises(UserError, match='take another --port'):
    server.make_server(two, 'localhost', port)
