"""All that is measured of drawn blocks, by name, for JSON and page."""

import numpy as np

from ijepa_jax.probes import logistic
from ijepa_jax.visualize import retrieval
from ijepa_jax.visualize.generator import readings
from ijepa_jax.visualize.generator.block_classifier import BlockClassifier
from ijepa_jax.visualize.generator.blocks import BlockData

_CLASSIFIED = 20_000  # training blocks of the classifier, at most
_MAX_CLASSES = 1000


def measured(
  model, judged: readings.Judged, drawn: readings.Drawn, mesh, batch_size: int
) -> dict:
  """What needs no labels.

  Args:
    model: Subject that encodes drawn blocks.
    judged, drawn: the blocks.
    mesh: devices that share the work.
    batch_size: images at a time.

  Returns:
    'spread', see readings.spread; 'rank': name -> retrieval.Hits by name, see
    readings.reencoded_ranks; 'explained': name -> share of the pixels'
    variance.
  """
  groups = {
    'real block': drawn.real,
    'sample': drawn.samples[:, 0],
    'no vector': drawn.null[:, 0],
    "another image's vector": drawn.other[:, 0],
  }
  ranks = {}
  for name, block in groups.items():
    rank = readings.reencoded_ranks(model, judged, block, mesh, batch_size)
    ranks[name] = retrieval.hits_of(rank, len(judged) - 1).numbers()
  explained = {
    'mean of samples': readings.explained(
      drawn.samples.mean(1), drawn.real, judged.place
    ),
    'regressor': readings.explained(drawn.mean, drawn.real, judged.place),
  }
  spread = readings.spread(drawn.samples, judged.place)
  # Samples of a generator without fault vary by what is not explained.
  share = max(explained['regressor'], 0)
  spread['ratio_by_regressor'] = share / (1 - share)
  anywhere = np.zeros_like(judged.place)
  spread['ratio_with_places'] = readings.spread(drawn.samples, anywhere)[
    'ratio'
  ]
  return {'spread': spread, 'rank': ranks, 'explained': explained}


def label_accuracies(
  labels: dict[str, int],
  data: BlockData,
  judged: readings.Judged,
  drawn: readings.Drawn,
  seed: int,
) -> dict[str, dict[str, float]]:
  """How often the label of the image is told from a block.

  Args:
    labels: name -> number of values, of each column.
    data: real blocks, from which a classifier of pixels and a linear probe of
      vectors learn.
    judged, drawn: the blocks that are judged.
    seed: of the classifier.

  Returns:
    label -> {what the block is: accuracy}; labels with unknown values, or with
    too few blocks to learn from, are left out.
  """
  numbers = np.random.default_rng(seed).permutation(len(data))[:_CLASSIFIED]
  out = {}
  for column, (name, classes) in enumerate(labels.items()):
    y, test_y = data.block_labels(numbers, column), judged.label[:, column]
    if min(y.min(), test_y.min()) < 0 or not 2 <= classes <= _MAX_CLASSES:
      continue
    if len(np.unique(y)) < 2 or len(y) < 10 * classes:
      continue
    classifier = BlockClassifier(
      data.block_pixels(numbers), y, classes, seed=seed
    )

    def accuracy(block_nkHWC, classifier=classifier, test_y=test_y):
      k = block_nkHWC.shape[1]
      flat = block_nkHWC.reshape(-1, *block_nkHWC.shape[2:])
      return classifier.accuracy(flat, np.repeat(test_y, k))

    commonest = np.bincount(y, minlength=classes).argmax()
    out[name] = {
      'real block': accuracy(drawn.real[:, None]),
      'sample': accuracy(drawn.samples),
      'no vector': accuracy(drawn.null),
      "another image's vector": accuracy(drawn.other),
      'mean (L2)': accuracy(drawn.mean[:, None]),
      'commonest label': float((test_y == commonest).mean()),
      'the vector itself': logistic.quick_probe(
        data.block_vectors(numbers),
        y,
        np.asarray(judged.vector),
        test_y,
        classes=classes,
      ),
    }
  return out
