from benchmarks import turns


def test_a_turn_begins_with_a_step_that_is_not_timed():
  calls = []

  def worker(name, seconds):
    def work(count):
      calls.append((name, count))
      return count * seconds if count > 1 else 100.0

    return work

  workers = {'a': worker('a', 2.0), 'b': worker('b', 1.0)}
  seconds = turns.take(workers, count=3, turns=2)
  assert seconds == {'a': [2.0] * 2, 'b': [1.0] * 2}
  # The first turn of three is not counted.
  assert calls == [('a', 1), ('a', 3), ('b', 1), ('b', 3)] * 3
  assert turns.ratios(seconds, 'a')['b'] == (2.0, 2.0, 2.0)
