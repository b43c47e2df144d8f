"""Encoders judged alike, for compare.py: by the jobs of ijepa_jax/evals."""

import importlib
import json
import pathlib
import shutil

import jax

from ijepa_jax.runtime import files

# Name in tables -> job, and what is changed in its config.
JUDGES = {
  'linear': (
    'logistic',
    {'logistic.l2': tuple(10.0**k for k in range(-5, 0))},
  ),
  'kNN': ('knn', {}),
  'attentive': (
    'attentive',
    {
      'attentive.augment': False,
      'attentive.epochs': 10,
      'attentive.lrs': (3e-3, 1e-3),
      'attentive.weight_decays': (0.01,),
    },
  ),
}
POOLED = 'linear', 'kNN'  # of them, those of the average pool
HELD_OUT = 'held out'  # accuracy of training images, to choose settings by


def judge(
  run: pathlib.Path,
  tasks: dict[str, str],
  *,
  path: str = '',
  which: str = 'target',
  step: int | None = None,
  names: tuple[str, ...] = POOLED,
) -> dict[str, float]:
  """Returns accuracies of an encoder, in [0, 1].

  Args:
    run: workdir of a pre-training.
    tasks: name in tables -> task, see evals/tasks.py.
    path: of a folder of images; '': the tasks' own.
    which, step: see configs/evals/common.py.
    names: of JUDGES.

  Returns:
    {'<task> <judge>': of test images}; and with 'linear' '<task> held out', of
    training images that its regression was not fitted to.
  """
  accuracies = {}
  for title, task in tasks.items():
    for name in names:
      job, changes = JUDGES[name]
      config = importlib.import_module(f'configs.evals.{job}').get_config()
      config.init_from, config.task = str(run), task
      config.which, config.step, config.data.workers = which, step, 0
      config.data.path, config.data.test = path, 'test' if path else ''
      config.update_from_flattened_dict(changes)
      result = importlib.import_module(f'ijepa_jax.evals.{job}').run(config, '')
      accuracies[f'{title} {name}'] = result['accuracy'][job]
      if name == 'linear':
        accuracies[f'{title} {HELD_OUT}'] = max(result['held_out'].values())
  for folder in 'features', 'heads':  # hundreds of MB, of tokens
    shutil.rmtree(run / 'evals' / folder, ignore_errors=True)
  jax.clear_caches()
  return accuracies


def remember(path: pathlib.Path, key: str, make, /, *args, **kwargs):
  """What `make` returns, kept by `key` in a file of JSON and made once."""
  known = json.loads(path.read_text()) if path.exists() else {}
  if key not in known:
    known[key] = make(*args, **kwargs)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.atomic_write_text(files.resolve(path), json.dumps(known, indent=2))
  return known[key]
