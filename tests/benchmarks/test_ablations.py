"""The paper's ablations: as configs, and small, beside the paper's numbers."""

import importlib
import json
import pathlib

import pytest

from benchmarks import ablations
from configs import base
from ijepa_jax.errors import UserError
from ijepa_jax.methods import from_config
from ijepa_jax.runtime.config_checks import check_numbers, check_void

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs/ablations'


def differences(config) -> set[str]:
  """Knobs that differ from configs/base.py, without sizes and lengths."""
  expected = dict(base.get_config().items())
  found = set()
  for name in 'mask', 'loss':
    for knob, value in config[name].items():
      if value != expected[name][knob] and knob != 'group':
        found.add(f'{name}.{knob}')
  return found | ({'method'} if config.method != 'ijepa' else set())


def test_all_are_known():
  stems = {path.stem for path in CONFIGS.glob('*.py')} - {'common', '__init__'}
  assert stems == set(ablations.TABLES)


@pytest.mark.parametrize('table', ablations.TABLES)
def test_a_row_changes_what_it_is_about(table, caplog):
  module = importlib.import_module(f'configs.ablations.{table}')
  seen = []
  for row, (published, changes) in module.ROWS.items():
    config = module.get_config(row)
    check_numbers(config)
    check_void(config)
    from_config.make_method(config)
    assert differences(config) <= changes.keys()
    assert f' {published} ' in module.__doc__
    seen.append(config.to_json_best_effort())
  assert not caplog.text
  assert len(set(seen)) == len(seen)
  # Without a row it is the paper's choice, the best.
  best = max(module.ROWS, key=lambda row: module.ROWS[row][0])
  expected = module.get_config(best).to_json_best_effort()
  assert module.get_config().to_json_best_effort() == expected
  with pytest.raises(UserError, match=r"row of the ablation is 'bst': take"):
    module.get_config('bst')


@pytest.mark.parametrize('recipe', ablations.LABELS)
def test_small_rows(recipe):
  """Every row fits the small grid, and the reference is trained once."""
  tables = ablations.plan(recipe, 100, 'images')
  reference = tables['masks']['multi_block'][1]
  for table, row in (
    ('num_targets', '4'),
    ('target_scale', '0.15-0.2'),
    ('context_scale', '0.85-1'),
    ('targets', 'encoder'),
    ('target_masking', 'output'),
    ('predictor_depth', '6'),
  ):
    assert tables[table][row][1] == reference
  rows = [x for rows in tables.values() for x in rows.values()]
  assert len({name for _, name, _ in rows}) == 18
  for _, _, config in rows:
    check_numbers(config)
    from_config.make_sampler(config)


def test_tables_and_going_on(tmp_path, monkeypatch):
  """A run that is finished is not made again, and one that is not is."""
  made = []

  def train(place, config):
    made.append((place.parent.name, config.seed))
    if len(made) == 2:
      raise KeyboardInterrupt
    score = {'masks-multi_block': 0.6, 'masks-random': 0.5}
    trained = {'probe/class': score.get(place.parent.name, 0.4)}
    trained['knn/class'] = 0.3
    place.mkdir(parents=True)
    (place / 'config.json').write_text(config.to_json_best_effort())
    report = {'encoder, untrained': {}, 'target encoder, trained': trained}
    (place / 'report.json').write_text(json.dumps(report))

  monkeypatch.setattr(ablations, 'train', train)
  arguments = 'tiny', ['masks'], 100, 2, '', tmp_path
  with pytest.raises(KeyboardInterrupt):
    ablations.run(*arguments)
  text = ablations.run(*arguments)
  assert len(made) == len(set(made)) + 1 == 9  # the second one twice
  assert '| multi_block | 54.2 | 60.0 ± 0.0 | 30.0 ± 0.0 | 2 |' in text
  assert '| random | 17.6 | 50.0 ± 0.0 | 30.0 ± 0.0 | 2 |' in text
  # The paper's ranks 4 1 3 2 and these, 4 1.5 1.5 3.
  assert 'with the paper: 0.63; of single seeds 0.63 to 0.63.' in text
  assert (tmp_path / 'tiny-100/tables.md').read_text() == text + '\n'
  monkeypatch.setattr(ablations, 'SMALL', ablations.SMALL | {'batch_size': 16})
  with pytest.raises(UserError, match='of another batch_size: take another'):
    ablations.run(*arguments)


@pytest.mark.slow
def test_it_trains(tmp_path, monkeypatch):
  """One table with two steps a row, and then without any."""
  small = {'batch_size': 16, 'data.count': 64, 'model.depth': 1}
  small |= {'probe.train_count': 60, 'probe.test_count': 30}
  monkeypatch.setattr(ablations, 'SMALL', ablations.SMALL | small)
  arguments = 'tiny', ['target_masking'], 2, 1, '', tmp_path
  text = ablations.run(*arguments)
  monkeypatch.delattr(ablations, 'train')
  assert ablations.run(*arguments) == text
  # All runs are named by the first table that has them.
  runs = {path.name for path in (tmp_path / 'tiny-2').iterdir()}
  assert runs == {'masks-multi_block', 'target_masking-input', 'tables.md'}
  assert text.count(' | 1 |') == 2
