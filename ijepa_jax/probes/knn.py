"""Weighted k-nearest-neighbor accuracy of frozen features, exact.

Neighbors by cosine similarity, each voting with exp(cosine / temperature), as
DINO and its successors report it. Nothing is trained, so that only k and the
temperature are tuned.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import PartitionSpec

from ijepa_jax.errors import UserError
from ijepa_jax.probes import labels
from ijepa_jax.runtime import sharding

KS = (10, 20, 100, 200)
TEMPERATURES = (0.07,)
_BY_ROWS = PartitionSpec(('data', 'fsdp'))
_CHUNK = 8192  # training examples that a device compares at a time
_QUERIES = 256  # test examples at a time


@dataclasses.dataclass(frozen=True)
class Result:
  """Accuracies of a sweep.

  Attributes:
    accuracies: (k, temperature) -> accuracy of the test examples, in [0, 1].
  """

  accuracies: dict[tuple[int, float], float]

  @property
  def best(self) -> tuple[int, float]:
    """The (k, temperature) of the highest accuracy, of equals the first.

    It is chosen on the test examples, as is usual. With a wide sweep this
    flatters, so report `selection_note` with it.
    """
    return max(self.accuracies, key=self.accuracies.get)

  @property
  def selection_note(self) -> str:
    """How the best was chosen, as a sentence; '' if it is the only one."""
    (k, t), n = self.best, len(self.accuracies)
    if n == 1:
      return ''
    return (
      f'knn is the best of {n} (k, temperature), chosen on the test images: '
      f'k={k}, T={t:g}.'
    )


def limit_ks(ks: tuple[int, ...], examples: int) -> tuple[int, ...]:
  """Returns the ks, ascending, with larger ones replaced by `examples`."""
  return tuple(sorted({min(k, examples) for k in ks}))


def knn(
  train_ND,
  train_y,
  test_ND,
  test_y,
  *,
  classes: int,
  mesh,
  ks: tuple[int, ...] = KS,
  temperatures: tuple[float, ...] = TEMPERATURES,
) -> Result:
  """Classifies test features by their nearest training features.

  Equally near neighbors are taken in the order of the training examples, and
  classes with equal votes in the order of their labels. A feature of length 0
  has a cosine of 0 with every other.

  Args:
    train_ND, test_ND: float32 features, in memory or mapped from disk.
    train_y, test_y: int [N] in [0, classes).
    mesh: devices over which the training examples are split.
    ks: numbers of neighbors.
    temperatures: above 0.

  Raises:
    UserError: labels or features are wrong (see `labels.check_features`), a k
      is not from 1 to the number of training examples, or a temperature is
      not above 0.
  """
  labels.check_features(train_ND, train_y, 'training', classes)
  labels.check_features(test_ND, test_y, 'test', classes)
  ks = tuple(sorted(set(ks)))
  _check_sweep(ks, temperatures, len(train_y))
  # The training examples, by cosine: of length 1; padded ones are labelled -1.
  bank_ND = _normalize(mesh)(sharding.shard_rows(train_ND, mesh, np.float32))
  bank_y = sharding.shard_rows(train_y, mesh, np.int32, fill=-1)
  count_correct = _compile_count(mesh, ks)
  temperature_T = np.asarray(temperatures, np.float32)
  correct_KT = np.zeros((len(ks), len(temperatures)), np.int64)
  n = len(test_y)
  with tqdm.tqdm(total=n, desc='kNN', unit='img', disable=None) as bar:
    for x_QD, y_Q in _query_blocks(test_ND, test_y):
      correct_KT += np.asarray(
        count_correct(bank_ND, bank_y, x_QD, y_Q, temperature_T)
      )
      bar.update(np.count_nonzero(y_Q >= 0))
  return Result(
    {
      (k, float(t)): int(correct_KT[i, j]) / n
      for i, k in enumerate(ks)
      for j, t in enumerate(temperatures)
    }
  )


def _check_sweep(ks, temperatures, examples: int) -> None:
  integers = all(isinstance(k, (int, np.integer)) for k in ks)
  if not ks or not integers or not 1 <= ks[0] <= ks[-1] <= examples:
    raise UserError(
      f'ks are {ks}: take one or more whole numbers, from 1 to the '
      f'{examples} training examples.'
    )
  if not temperatures or not all(t > 0 for t in temperatures):
    raise UserError(
      f'temperatures are {tuple(temperatures)}: take one or more above 0.'
    )


def _query_blocks(x_ND, y_N):
  """Yields the examples in blocks of one shape; padded ones are labelled -1."""
  block = min(_QUERIES, len(y_N))
  for start in range(0, len(y_N), block):
    x_QD = np.asarray(x_ND[start : start + block], np.float32)
    y_Q = np.asarray(y_N[start : start + block], np.int32)
    pad = block - len(y_Q)  # one shape, one compilation
    yield (
      np.pad(x_QD, [(0, pad), (0, 0)]),
      np.pad(y_Q, [(0, pad)], constant_values=-1),
    )


def nearest(bank_ND, bank_y, x_QD, k: int) -> tuple[jax.Array, jax.Array]:
  """Finds the k nearest examples of one device's bank, in chunks.

  Args:
    bank_ND: float32 [N, D], rows of length 1.
    bank_y: int32 [N]; -1: no example.
    x_QD: float32 [Q, D], rows of length 1.

  Returns:
    cosines float32 [Q, k], descending, and labels int32 [Q, k]; of equals the
    first in the bank comes first; -inf and -1 if there are fewer than k.
  """
  n, d = bank_ND.shape
  count = -(-n // _CHUNK)
  size = -(-n // count)
  pad = count * size - n
  bank_ND = jnp.pad(bank_ND, [(0, pad), (0, 0)])
  bank_y = jnp.pad(bank_y, [(0, pad)], constant_values=-1)

  def merge(best, chunk):
    chunk_CD, chunk_y = chunk
    # Full precision: TensorFloat-32 would find other neighbors.
    cosine_QC = jnp.matmul(x_QD, chunk_CD.T, precision='highest')
    cosine_QC = jnp.where(chunk_y >= 0, cosine_QC, -jnp.inf)
    label_QC = jnp.broadcast_to(chunk_y, cosine_QC.shape)
    return _top_k(
      jnp.concatenate([best[0], cosine_QC], 1),
      jnp.concatenate([best[1], label_QC], 1),
      k,
    ), None

  empty = (
    jnp.full((len(x_QD), k), -jnp.inf, jnp.float32),
    jnp.full((len(x_QD), k), -1, jnp.int32),
  )
  chunks = bank_ND.reshape(count, size, d), bank_y.reshape(count, size)
  return jax.lax.scan(merge, empty, chunks)[0]


def _top_k(cosine_QM, label_QM, k):
  # Of equal cosines top_k takes those that come first.
  cosine_QK, index_QK = jax.lax.top_k(cosine_QM, k)
  return cosine_QK, jnp.take_along_axis(label_QM, index_QK, 1)


def vote(cosine_QK, label_QK, k: int, temperature) -> jax.Array:
  """Returns the label that the first k neighbors elect: int32 [Q].

  Args:
    cosine_QK, label_QK: of K >= k neighbors, the nearest first.
    temperature: of the weights exp(cosine / temperature).
  """
  cosine_QK, label_QK = cosine_QK[:, :k], label_QK[:, :k]
  # Relative to the nearest, since exp(1 / .01) overflows float32.
  weight_QK = jnp.exp((cosine_QK - cosine_QK[:, :1]) / temperature)
  # The votes for the class of each neighbor. A sum by class would need
  # thousands of columns for few neighbors, and has no fixed order on a GPU.
  same_QKK = label_QK[:, :, None] == label_QK[:, None]
  votes_QK = jnp.where(same_QKK, weight_QK[:, None], 0).sum(-1)
  winner_QK = votes_QK == votes_QK.max(1, keepdims=True)
  return jnp.where(winner_QK, label_QK, jnp.iinfo(jnp.int32).max).min(1)


def _unit_length(x_ND):
  length_N1 = jnp.linalg.norm(x_ND, axis=1, keepdims=True)
  return x_ND / jnp.where(length_N1 == 0, 1, length_N1)


# Cached, so that one mesh compiles once and not at every call.
@functools.cache
def _normalize(mesh):
  return jax.jit(
    _unit_length, out_shardings=sharding.batch_sharding(mesh), donate_argnums=0
  )


@functools.cache
def _compile_count(mesh, ks):
  """(bank_ND, bank_y, x_QD, y_Q, temperature_T) -> correct answers [K, T]."""
  # The nearest of each device side by side, in the order of the devices and
  # so of the training examples.
  gather = jax.shard_map(
    functools.partial(nearest, k=ks[-1]),
    mesh=mesh,
    in_specs=(_BY_ROWS, _BY_ROWS, PartitionSpec()),
    out_specs=PartitionSpec(None, *_BY_ROWS),
    check_vma=False,  # the scan starts from constants
  )

  def count(bank_ND, bank_y, x_QD, y_Q, temperature_T):
    neighbors = gather(bank_ND, bank_y, _unit_length(x_QD))
    cosine_QK, label_QK = _top_k(*neighbors, ks[-1])

    def correct(k):
      answer_TQ = jax.lax.map(
        lambda t: vote(cosine_QK, label_QK, k, t), temperature_T
      )
      return (answer_TQ == y_Q).sum(1, dtype=jnp.int32)

    return jnp.stack([correct(k) for k in ks])

  return jax.jit(count, out_shardings=sharding.replicated(mesh))
