"""What compare.py compares on, with which settings and which trials of them."""

import dataclasses

METHODS = 'ijepa', 'pixels', 'mae', 'vicreg'
LR, BATCH = 'optim.peak_lr', 'batch_size'
# Of drawn pictures, for all methods; the recipe itself is I-JEPA's best.
START = {LR: 2e-3, BATCH: 64}


@dataclasses.dataclass(frozen=True)
class Data:
  """Images of a recipe, and the tasks that encoders are judged by.

  Attributes:
    recipe: a module of configs.
    changes: of the recipe, knob -> value.
    tasks: name in the table -> task, see evals/tasks.py.
  """

  recipe: str
  changes: dict
  tasks: dict[str, str]


CROWD = {'count': 'crowd_count', 'distance': 'crowd_distance'}
DATA = {
  # The crowd is a transfer: no such picture was trained on.
  'scenes': Data(
    'tiny', START, {'class': 'scenes_class', 'hue': 'scenes_hue', **CROWD}
  ),
  'crowd': Data('tiny', START | {'data.flavour': 'crowd'}, CROWD),
  'cifar10': Data(
    'cifar10', {'probe.split': '', 'health.split': ''}, {'class': 'cifar10'}
  ),
}


# What each has in place of the recipe's: the best mean of --search.
SETTINGS = {
  'scenes': {
    'ijepa': {LR: 1.4e-3, BATCH: 32},
    'pixels': {LR: 1.4e-3, BATCH: 32},
    'mae': {LR: 4e-3},
    'vicreg': {LR: 4e-3},
  },
  'crowd': {
    'ijepa': {LR: 1.4e-3, BATCH: 32},
    'pixels': {'optim.b2': 0.95},
    'mae': {},
    'vicreg': {'vicreg.covariance': 10.0},
  },
  'cifar10': {
    'ijepa': {LR: 2e-3},
    'pixels': {LR: 2.8e-3, BATCH: 64},
    'mae': {LR: 2.8e-3, BATCH: 64},
    'vicreg': {LR: 2.8e-3, BATCH: 64},
  },
}


# As many of each method, for the same seconds. LR and BATCH are shares of
# START's or, of CIFAR-10, of the recipe's.
_PIXELS = (
  *({LR: 1.0}, {LR: 2.0}, {LR: 0.5}),
  *({LR: 1.0, BATCH: 2}, {LR: 0.7, BATCH: 0.5}),
  {LR: 1.0, 'optim.b2': 0.95},
)
TRIALS = {
  'ijepa': (
    *({LR: 1.0}, {LR: 2.0}, {LR: 0.5}),
    *({LR: 1.5, BATCH: 2}, {LR: 0.7, BATCH: 0.5}),
    {LR: 1.0, 'ema.first': 0.98},  # between those of the recipes
  ),
  'pixels': _PIXELS,
  'mae': _PIXELS,
  'vicreg': (
    *({LR: 1.0}, {LR: 2.0}, {LR: 0.5}),
    *({LR: 1.0, BATCH: 2}, {LR: 0.7, BATCH: 0.5}),
    {LR: 1.0, 'vicreg.covariance': 10.0},
  ),
}


def changes_of(trial: dict, recipe) -> dict:
  """A trial with its rate and its batch as they are, not as shares."""
  changes = trial | {LR: recipe.optim.peak_lr * trial[LR]}
  if BATCH in trial:
    changes[BATCH] = round(recipe.batch_size * trial[BATCH])
  return changes
