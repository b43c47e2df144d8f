"""kNN against a plain reading of its definition and against scikit-learn."""

import numpy as np
import pytest

from ijepa_jax.errors import UserError
from ijepa_jax.probes import knn
from ijepa_jax.runtime import sharding
from tests.close import close

KS = (1, 5, 20, 100)
TEMPERATURES = (0.07, 0.5)


def features(n=1500, d=16, classes=7, noise=1.5):
  r = np.random.default_rng(0)
  y = r.integers(classes, size=n).astype(np.int32)
  centers = r.normal(size=(classes, d))
  x = centers[y] + noise * r.normal(size=(n, d))
  return x.astype(np.float32), y


def split(x, y, n=1100):
  return x[:n], y[:n], x[n:], y[n:]


def run(*data, classes=7, mesh=None, **kwargs):
  mesh = mesh or sharding.make_mesh()
  return knn.knn(*data, classes=classes, mesh=mesh, **kwargs)


def same_but_one(actual, expected, n=400):
  """Of n answers one may hang on the last digits of two cosines."""
  assert actual.keys() == expected.keys()
  close([actual[k] for k in expected], list(expected.values()), within=1.5 / n)


def plain(train_x, train_y, test_x, test_y, k, temperature):
  """In double precision, with a stable sort and sums by class."""
  a, b = (
    z / np.linalg.norm(z, axis=1, keepdims=True)
    for z in (train_x.astype(float), test_x.astype(float))
  )
  cosine = b @ a.T
  near = np.argsort(-cosine, axis=1, kind='stable')[:, :k]
  weight = np.exp(np.take_along_axis(cosine, near, 1) / temperature)
  votes = np.zeros((len(b), train_y.max() + 1))
  np.add.at(votes, (np.arange(len(b))[:, None], train_y[near]), weight)
  return (votes.argmax(1) == test_y).mean()


def test_sweep_by_its_definition(cpus):
  """Each k and temperature; on 1 and 8 devices, which no row count divides, and
  in blocks that do not divide the test examples.
  """
  data = split(*features())
  expected = {(k, t): plain(*data, k, t) for k in KS for t in TEMPERATURES}
  assert len(set(expected.values())) > 4
  for devices, fsdp in ((1, 1), (8, 2)):
    result = run(
      *data,
      ks=KS,
      temperatures=TEMPERATURES,
      mesh=sharding.make_mesh(fsdp=fsdp, devices=cpus[:devices]),
    )
    same_but_one(result.accuracies, expected)
    actual = result.accuracies
    assert actual[result.best] == max(actual.values())


def test_equals_scikit_learn():
  neighbors = pytest.importorskip('sklearn.neighbors')
  data = split(*features())
  result = run(*data, ks=KS, temperatures=TEMPERATURES)
  train_x, train_y, test_x, test_y = data
  for (k, t), accuracy in result.accuracies.items():
    judge = neighbors.KNeighborsClassifier(
      k, metric='cosine', weights=lambda distance, t=t: np.exp(-distance / t)
    )
    expected = judge.fit(train_x, train_y).score(test_x, test_y)
    close(accuracy, expected, within=1.5 / len(test_y))


def test_chunks(monkeypatch, cpus):
  """The nearest of all chunks, padded ones too."""
  data = split(*features())
  mesh = sharding.make_mesh(devices=cpus[:1])
  monkeypatch.setattr(knn, '_CHUNK', 90)
  knn._compile_count.cache_clear()
  result = run(*data, ks=(100,), mesh=mesh)
  knn._compile_count.cache_clear()
  same_but_one(result.accuracies, {(100, 0.07): plain(*data, 100, 0.07)})


@pytest.mark.parametrize('chunk', [2, 100])
def test_equals_come_in_order(chunk, monkeypatch):
  """Of equally near examples the first, of equal votes the least label."""
  monkeypatch.setattr(knn, '_CHUNK', chunk)
  bank = np.eye(4, dtype=np.float32)[[0, 1, 1, 1, 0, 1]]
  labels = np.array([5, 3, 2, 4, 1, 0], np.int32)
  query = np.eye(4, dtype=np.float32)[[1, 2]]
  cosine, label = knn.nearest(bank, labels, query, 3)
  close(cosine, np.array([[1, 1, 1], [0, 0, 0]]))
  np.testing.assert_array_equal(label, [[3, 2, 4], [5, 3, 2]])
  np.testing.assert_array_equal(knn.vote(cosine, label, 3, 0.07), [2, 2])
  np.testing.assert_array_equal(knn.vote(cosine, label, 2, 0.07), [2, 3])


def test_lengths_do_not_matter():
  x, y = features()
  length = np.random.default_rng(1).uniform(1e-3, 1e3, (len(x), 1))
  scaled = (x * length).astype(np.float32)
  a, b = (run(*split(z, y), ks=(10,)) for z in (x, scaled))
  same_but_one(a.accuracies, b.accuracies)


def test_low_temperature_is_the_nearest():
  """Weights that underflow or overflow a naive exp leave an answer."""
  data = split(*features())
  result = run(*data, ks=(1, 50), temperatures=(1e-6,))
  one, fifty = (result.accuracies[k, 1e-6] for k in (1, 50))
  close(one, fifty, within=1.5 / 400)
  assert fifty > 0.5


def test_mistakes():
  x, y = features(n=60)
  data = split(x, y, 40)
  with pytest.raises(UserError, match=r'to the 40 training examples'):
    run(*data)
  with pytest.raises(UserError, match=r'\(0, 5\): take one or more whole'):
    run(*data, ks=(5, 0))
  with pytest.raises(UserError, match=r'\(2\.5,\): take one or more whole'):
    run(*data, ks=(2.5,))
  with pytest.raises(UserError, match=r'temperatures are \(nan,\)'):
    run(*data, ks=(5,), temperatures=(float('nan'),))
  with pytest.raises(UserError, match=r'temperatures are \(0,\)'):
    run(*data, ks=(5,), temperatures=(0,))
  with pytest.raises(UserError, match='training labels run from 0 to 6: 3'):
    run(*data, classes=3, ks=(5,))
  with pytest.raises(UserError, match='20 test examples have fewer than two'):
    run(*data[:3], np.zeros(20, np.int32), ks=(5,))
  with pytest.raises(UserError, match='training features are not finite'):
    run(np.full_like(data[0], np.nan), *data[1:], ks=(5,))


def test_as_many_neighbors_as_there_are():
  assert knn.limit_ks((20, 10, 100), 12) == (10, 12)
  assert knn.limit_ks((20,), 5) == (5,)


def test_how_the_best_was_chosen():
  actual = knn.Result({(5, 0.07): 0.5, (10, 0.07): 0.75})
  assert (
    'the best of 2' in actual.selection_note
    and 'test images' in actual.selection_note
  )
  assert actual.selection_note.endswith('k=10, T=0.07.')
  assert not knn.Result({(5, 0.07): 0.5}).selection_note
