"""Logistic regression on frozen features as a job."""

import numpy as np

from ijepa_jax.errors import UserError
from ijepa_jax.evals import evaluation
from ijepa_jax.probes import logistic
from ijepa_jax.probes.labels import few_shot_subset


def run(config, workdir: str) -> dict:
  """Logistic regression on all labels or on a few."""
  c = config.logistic
  if c.layers not in ('last', 'last4'):
    raise UserError(f'layers is {c.layers!r}: take last or last4.')
  if c.per_class == 1 and len(c.l2) > 1:
    raise UserError(
      'logistic.per_class is 1, so that none can be held out to choose among '
      f'the {len(c.l2)} logistic.l2: give one, such as (0.01,).'
    )
  bench = evaluation.set_up(config, workdir, c.list_file)
  train, test = (bench.features(config, s) for s in (bench.train, bench.test))
  labels = train.labels[:, bench.column]
  chosen = np.arange(len(labels))
  if c.per_class or c.share:
    chosen = few_shot_subset(
      labels,
      per_class=c.per_class,
      share=c.share,
      seed=config.seed,
      classes=bench.classes,
    )
  found = logistic.evaluate(
    getattr(train, c.layers)[chosen],
    labels[chosen],
    getattr(test, c.layers),
    test.labels[:, bench.column],
    classes=bench.classes,
    l2s=tuple(c.l2),
    mesh=bench.mesh,
    seed=config.seed,
  )
  details = {
    'chosen': found.chosen,
    'l2': found.l2,
    'held_out': found.held_out,
    'training_examples': len(chosen),
  }
  return evaluation.report(config, bench, {'logistic': found.accuracy}, details)
