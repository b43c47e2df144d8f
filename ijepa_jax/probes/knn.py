"""Weighted k-nearest-neighbour accuracy of frozen features, exact.

Neighbours by cosine similarity, each voting with exp(cosine / temperature), as
DINO and its successors report it: nothing is trained, so nothing is tuned but k
and the temperature.
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
_SPLIT = PartitionSpec(('data', 'fsdp'))
_CHUNK = 8192  # training examples that a device compares at a time


@dataclasses.dataclass(frozen=True)
class Result:
  """Accuracies of a sweep.

  Attributes:
    accuracies: (k, temperature) -> of the test examples, in [0, 1].
  """

  accuracies: dict[tuple[int, float], float]

  @property
  def best(self) -> tuple[int, float]:
    """The (k, temperature) of the highest accuracy, of equals the first.

    Chosen on the test examples, as is usual: of a wide sweep it flatters, so
    `chosen` goes with it.
    """
    return max(self.accuracies, key=self.accuracies.get)

  @property
  def chosen(self) -> str:
    """How the best was chosen, in words; '' where it is the only one."""
    (k, t), n = self.best, len(self.accuracies)
    if n == 1:
      return ''
    return (
      f'knn is the best of {n} (k, temperature), chosen on the test images: '
      f'k={k}, T={t:g}.'
    )


def at_most(ks: tuple[int, ...], examples: int) -> tuple[int, ...]:
  """Numbers of neighbours that there are: all examples instead of more."""
  return tuple(sorted({min(k, examples) for k in ks}))


def knn(
  train_ND,
  train_y,
  test_ND,
  test_y,
  *,
  classes: int,
  ks: tuple[int, ...] = KS,
  temperatures: tuple[float, ...] = TEMPERATURES,
  mesh=None,
  block: int = 256,
) -> Result:
  """Classifies test features by their nearest training features.

  Equally near neighbours are taken in the order of the training examples, and
  classes with equal votes in the order of their labels. A feature of length 0
  has a cosine of 0 with every other.

  Args:
    train_ND, test_ND: float32 features, numpy or mapped from disk.
    train_y, test_y: int [N] in [0, classes).
    ks: numbers of neighbours.
    temperatures: above 0.
    mesh: devices over which the training examples are split; None: all.
    block: test examples at a time.

  Raises:
    UserError: labels or features that can't be (see `labels.check_features`),
      a k that is not from 1 to the number of training examples, a temperature
      not above 0.
  """
  labels.check_features(train_ND, train_y, 'training', classes)
  labels.check_features(test_ND, test_y, 'test', classes)
  ks = tuple(sorted(set(ks)))
  whole = all(isinstance(k, (int, np.integer)) for k in ks)
  if not ks or not whole or not 1 <= ks[0] <= ks[-1] <= len(train_y):
    raise UserError(
      f'ks are {ks}: take one or more whole numbers, from 1 to the '
      f'{len(train_y)} training examples.'
    )
  if not temperatures or not all(t > 0 for t in temperatures):
    raise UserError(
      f'temperatures are {tuple(temperatures)}: take one or more above 0.'
    )
  mesh = mesh or sharding.make_mesh()
  bank_ND = _normalise(mesh)(sharding.shard_rows(train_ND, mesh, np.float32))
  bank_y = sharding.shard_rows(train_y, mesh, np.int32, fill=-1)
  count_right = _compiled(mesh, ks)
  temperature_T = np.asarray(temperatures, np.float32)
  right_KT = np.zeros((len(ks), len(temperatures)), np.int64)
  n = len(test_y)
  with tqdm.tqdm(total=n, desc='kNN', unit='img', disable=None) as bar:
    for start in range(0, n, block):
      x_QD = np.asarray(test_ND[start : start + block], np.float32)
      y_Q = np.asarray(test_y[start : start + block], np.int32)
      rows = len(y_Q)
      pad = min(block, n) - rows  # one shape, one compilation
      x_QD = np.pad(x_QD, [(0, pad), (0, 0)])
      y_Q = np.pad(y_Q, [(0, pad)], constant_values=-1)
      right_KT += np.asarray(
        count_right(bank_ND, bank_y, x_QD, y_Q, temperature_T)
      )
      bar.update(rows)
  return Result(
    {
      (k, float(t)): int(right_KT[i, j]) / n
      for i, k in enumerate(ks)
      for j, t in enumerate(temperatures)
    }
  )


def nearest(bank_ND, bank_y, x_QD, k: int) -> tuple[jax.Array, jax.Array]:
  """The k nearest of one device's examples, in chunks.

  Args:
    bank_ND: float32 [N, D], rows of length 1.
    bank_y: int32 [N]; -1: no example.
    x_QD: float32 [Q, D], rows of length 1.

  Returns:
    cosines float32 [Q, k], falling, and labels int32 [Q, k]; of equals the
    first ones first; -inf and -1 where there are fewer than k.
  """
  n, d = bank_ND.shape
  count = -(-n // _CHUNK)
  size = -(-n // count)
  pad = count * size - n
  bank_ND = jnp.pad(bank_ND, [(0, pad), (0, 0)])
  bank_y = jnp.pad(bank_y, [(0, pad)], constant_values=-1)

  def merge(best, chunk):
    chunk_CD, chunk_y = chunk
    # In full: TensorFloat-32 would take other neighbours.
    cosine_QC = jnp.matmul(x_QD, chunk_CD.T, precision='highest')
    cosine_QC = jnp.where(chunk_y >= 0, cosine_QC, -jnp.inf)
    label_QC = jnp.broadcast_to(chunk_y, cosine_QC.shape)
    return _top(
      jnp.concatenate([best[0], cosine_QC], 1),
      jnp.concatenate([best[1], label_QC], 1),
      k,
    ), None

  nothing = (
    jnp.full((len(x_QD), k), -jnp.inf, jnp.float32),
    jnp.full((len(x_QD), k), -1, jnp.int32),
  )
  chunks = bank_ND.reshape(count, size, d), bank_y.reshape(count, size)
  return jax.lax.scan(merge, nothing, chunks)[0]


def _top(cosine_QM, label_QM, k):
  # Of equals top_k takes those that stand first.
  cosine_QK, index_QK = jax.lax.top_k(cosine_QM, k)
  return cosine_QK, jnp.take_along_axis(label_QM, index_QK, 1)


def votes(cosine_QK, label_QK, k: int, temperature) -> jax.Array:
  """The answers of the first k neighbours: int32 [Q].

  Args:
    cosine_QK, label_QK: of K >= k neighbours, the nearest first.
    temperature: of the weights exp(cosine / temperature).
  """
  cosine_QK, label_QK = cosine_QK[:, :k], label_QK[:, :k]
  # Relative to the nearest: exp(1 / .01) is no float32.
  weight_QK = jnp.exp((cosine_QK - cosine_QK[:, :1]) / temperature)
  # What each neighbour's class gets. Adding up by class instead would need
  # thousands of columns for few neighbours, and no fixed order on a GPU.
  same_QKK = label_QK[:, :, None] == label_QK[:, None]
  vote_QK = jnp.where(same_QKK, weight_QK[:, None], 0).sum(-1)
  won_QK = vote_QK == vote_QK.max(1, keepdims=True)
  return jnp.where(won_QK, label_QK, jnp.iinfo(jnp.int32).max).min(1)


def _unit(x_ND):
  length_N1 = jnp.linalg.norm(x_ND, axis=1, keepdims=True)
  return x_ND / jnp.where(length_N1 == 0, 1, length_N1)


# Made once, not at every call, so that they compile once.
@functools.cache
def _normalise(mesh):
  return jax.jit(
    _unit, out_shardings=sharding.batch_sharding(mesh), donate_argnums=0
  )


@functools.cache
def _compiled(mesh, ks):
  """(bank_ND, bank_y, x_QD, y_Q, temperature_T) -> right answers [K, T]."""
  # Each device's nearest side by side, in the order of the devices and so in
  # that of the training examples.
  gather = jax.shard_map(
    functools.partial(nearest, k=ks[-1]),
    mesh=mesh,
    in_specs=(_SPLIT, _SPLIT, PartitionSpec()),
    out_specs=PartitionSpec(None, *_SPLIT),
    check_vma=False,  # the scan starts from constants
  )

  def run(bank_ND, bank_y, x_QD, y_Q, temperature_T):
    cosine_QK, label_QK = _top(*gather(bank_ND, bank_y, _unit(x_QD)), ks[-1])

    def right(k):
      answer_TQ = jax.lax.map(
        lambda t: votes(cosine_QK, label_QK, k, t), temperature_T
      )
      return (answer_TQ == y_Q).sum(1, dtype=jnp.int32)

    return jnp.stack([right(k) for k in ks])

  whole = sharding.replicated(mesh)
  return jax.jit(run, out_shardings=whole)
