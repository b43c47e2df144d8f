"""The search of small recipes: its trials are valid, and it goes on."""

import json

import pytest

from benchmarks import recipe_search
from ijepa_jax.errors import UserError
from ijepa_jax.methods import from_config
from ijepa_jax.runtime.config_checks import check_numbers, check_void


@pytest.mark.parametrize('recipe', recipe_search.LABELS)
def test_trials(recipe, caplog):
  seen = []
  for changes in recipe_search.TRIALS.values():
    config = recipe_search.make_config(recipe, changes, 100, 'images')
    check_numbers(config)
    check_void(config)
    from_config.make_method(config, 100)
    assert config.data.path != 'images' or config.probe.split == ''
    seen.append(config.to_json_best_effort())
  assert len(set(seen)) == len(seen)
  assert not caplog.text
  start, twice = (
    recipe_search.make_config(recipe, recipe_search.TRIALS[name], 100, '')
    for name in ('start', 'twice the learning rate')
  )
  assert twice.optim.peak_lr == 2 * start.optim.peak_lr


def test_what_is_finished_is_not_made_again(tmp_path, monkeypatch):
  trained = []

  def run(config, workdir):
    trained.append((workdir.name[:-9], config.total_steps))
    if len(trained) == 2:
      raise KeyboardInterrupt
    row = {'probe/class': 0.5, 'knn/class': 0.25, 'rankme': 10.0}
    workdir.mkdir(parents=True, exist_ok=True)
    report = {'target encoder, trained': row}
    (workdir / 'report.json').write_text(json.dumps(report))

  seconds = iter([(0.2, 0.2), (0.2, 0.1)])
  monkeypatch.setattr(recipe_search.pretrain, 'run', run)
  monkeypatch.setattr(
    recipe_search.method_costs,
    'seconds',
    lambda configs, turns: dict(zip(configs, next(seconds), strict=True)),
  )
  arguments = 'tiny', ['start', 'small MLP'], 20.0, '', tmp_path
  with pytest.raises(KeyboardInterrupt):
    recipe_search.run(*arguments)
  table = recipe_search.run(*arguments)
  assert trained == [('start', 100), ('small-MLP', 200), ('small-MLP', 200)]
  assert table.splitlines()[2:] == [
    '| start | 1.00 | 100 | 50.0 | 25.0 | 10.0 |',
    '| small MLP | 0.50 | 200 | 50.0 | 25.0 | 10.0 |',
  ]
  assert (tmp_path / 'tiny-20/trials.md').read_text() == table + '\n'
  with pytest.raises(UserError, match="The trial is 'smal': take"):
    recipe_search.run('tiny', ['smal'], 20.0, '', tmp_path)
