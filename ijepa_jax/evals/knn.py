"""Job `knn`: weighted k-nearest neighbors on frozen features."""

from absl import logging

from ijepa_jax.evals.advice import default_task
from ijepa_jax.evals.evaluation import Evaluation, report
from ijepa_jax.probes import knn


def run(config, workdir: str) -> dict:
  """Measures kNN with every k and temperature, and reports the best and all.

  Args:
    config: see configs/evals/knn.py.
    workdir: see `Evaluation.from_config`.

  Raises:
    UserError: a mistake in the config, the checkpoint or the images.
  """
  config = default_task.complete(config)
  evaluation = Evaluation.from_config(config, workdir)
  ks = knn.limit_ks(tuple(config.knn.ks), len(evaluation.train))
  if ks != tuple(sorted(set(config.knn.ks))):
    logging.info('There are %d training images: ks are %s.', ks[-1], ks)
  train = evaluation.features(config, evaluation.train)
  test = evaluation.features(config, evaluation.test)
  result = knn.knn(
    train.last,
    train.labels[:, evaluation.column],
    test.last,
    test.labels[:, evaluation.column],
    classes=evaluation.classes,
    mesh=evaluation.mesh,
    ks=ks,
    temperatures=tuple(config.knn.temperatures),
  )
  details = {
    'chosen': result.selection_note,
    'sweep': {f'k={k}, T={t:g}': a for (k, t), a in result.accuracies.items()},
  }
  accuracies = {'knn': result.accuracies[result.best]}
  return report(config, evaluation, accuracies, details)
