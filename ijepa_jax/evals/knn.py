"""Weighted kNN as a job."""

from absl import logging

from ijepa_jax.evals import evaluation
from ijepa_jax.probes import knn


def run(config, workdir: str) -> dict:
  """Weighted kNN, the best of a sweep and all of it."""
  bench = evaluation.set_up(config, workdir)
  ks = knn.at_most(tuple(config.knn.ks), len(bench.train))
  if ks != tuple(sorted(set(config.knn.ks))):
    logging.info('There are %d training images: ks are %s.', ks[-1], ks)
  train, test = (bench.features(config, s) for s in (bench.train, bench.test))
  found = knn.knn(
    train.last,
    train.labels[:, bench.column],
    test.last,
    test.labels[:, bench.column],
    classes=bench.classes,
    ks=ks,
    temperatures=tuple(config.knn.temperatures),
    mesh=bench.mesh,
  )
  sweep = {f'k={k}, T={t:g}': a for (k, t), a in found.accuracies.items()}
  ours = {'knn': found.accuracies[found.best]}
  return evaluation.report(
    config, bench, ours, {'chosen': found.chosen, 'sweep': sweep}
  )
