"""Job `logistic`: logistic regression on frozen features."""

import numpy as np

from ijepa_jax.errors import UserError
from ijepa_jax.evals.advice import default_task, doubts
from ijepa_jax.evals.evaluation import Evaluation, report
from ijepa_jax.probes import logistic
from ijepa_jax.probes.labels import HELD_OUT_SHARE, few_shot_subset


def run(config, workdir: str) -> dict:
  """Measures logistic regression on all labels or on a few.

  Args:
    config: see configs/evals/logistic.py.
    workdir: see `Evaluation.from_config`.

  Raises:
    UserError: a mistake in the config, the checkpoint or the images.
  """
  config = default_task.complete(config)
  c = config.logistic
  if c.layers not in ('last', 'last4'):
    raise UserError(f'layers is {c.layers!r}: take last or last4.')
  if c.per_class == 1 and len(c.l2) > 1:
    raise UserError(
      'logistic.per_class is 1, so that none can be held out to choose among '
      f'the {len(c.l2)} logistic.l2: give one, such as (0.01,).'
    )
  evaluation = Evaluation.from_config(config, workdir, c.list_file)
  train = evaluation.features(config, evaluation.train)
  test = evaluation.features(config, evaluation.test)
  train_y = train.labels[:, evaluation.column]
  rows = np.arange(len(train_y))
  if c.per_class or c.share:
    rows = few_shot_subset(
      train_y,
      per_class=c.per_class,
      share=c.share,
      seed=config.seed,
      classes=evaluation.classes,
    )
  result = logistic.evaluate(
    getattr(train, c.layers)[rows],
    train_y[rows],
    getattr(test, c.layers),
    test.labels[:, evaluation.column],
    classes=evaluation.classes,
    mesh=evaluation.mesh,
    l2s=tuple(c.l2),
    seed=config.seed,
  )
  details = {
    'chosen': result.selection_note,
    'l2': result.l2,
    'held_out': result.held_out,
    'training_examples': len(rows),
    'advice': doubts.of_held_out(
      result.held_out, result.accuracy, round(HELD_OUT_SHARE * len(rows))
    ),
  }
  return report(config, evaluation, {'logistic': result.accuracy}, details)
