"""benchmarks/tiny_seeds.py: seeds of the toy, and their mean."""

import json

import pytest

from benchmarks import tiny_seeds
from ijepa_jax.errors import UserError


def test_mean_and_going_on(tmp_path, monkeypatch):
  """A run that is finished is not made again, nor taken for another one."""
  made = []

  def run(config, workdir):
    made.append((config.method, config.seed, config.total_steps))
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / 'config.json').write_text(config.to_json_best_effort())
    report = {
      'encoder, untrained': {'probe/class': 0.3},
      'encoder, trained': {'probe/class': 0.5 + config.seed / 10},
      'seconds_since_last_start': 10.0,
    }
    (workdir / 'report.json').write_text(json.dumps(report))

  monkeypatch.setattr(tiny_seeds.pretrain, 'run', run)
  text = tiny_seeds.run('mae', 2, 100, tmp_path)
  assert made == [('mae', 0, 100), ('mae', 1, 100)]
  assert text.startswith('Mean of 2 seeds, 10 s each:')
  rows = {
    line[:20].strip(): line.split()[-1] for line in text.splitlines() if line
  }
  assert rows['encoder, trained'] == '55.0'
  assert rows['trained, seed 1'] == '60.0'
  assert tiny_seeds.run('mae', 2, 100, tmp_path) == text and len(made) == 2
  with pytest.raises(UserError, match='was of another total_steps, optim'):
    tiny_seeds.run('mae', 1, 0, tmp_path)


def test_shorter_runs_are_whole_recipes():
  config = tiny_seeds.make_config('vicreg', 1, 4000)
  assert config.method == 'vicreg' and config.seed == 1
  assert config.optim.warmup_steps == 200
  assert config.probe.every_steps == config.checkpoint.every_steps == 4000
  assert tiny_seeds.make_config('ijepa', 0, 0).total_steps == 20_000
