"""The stream of records: exact shares, every record once an epoch, the same from wherever it is looked at."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.data.mixture import Mixture, Order
from jaxchop.errors import UsageError


@given(st.integers(1, 400), st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_an_epoch_reads_every_record_exactly_once(records, seed, epoch):
  order = Order(records=records, seed=seed)
  assert sorted(order(np.arange(records) + epoch * records)) == list(range(records))


@given(st.integers(1, 50), st.lists(st.integers(0, 10_000), min_size=1, max_size=20))
def test_the_record_at_a_position_does_not_depend_on_what_else_is_asked(records, positions):
  order = Order(records=records, seed=1)
  assert [order(np.array([p]))[0] for p in positions] == order(np.array(positions)).tolist()


def test_the_order_differs_by_epoch_and_seed_and_looks_random():
  first, second, other = (
    Order(records=1000, seed=seed)(np.arange(1000) + start) for seed, start in ((0, 0), (0, 1000), (1, 0))
  )
  for a, b in itertools.combinations((first, second, other, np.arange(1000)), 2):
    # Two random permutations agree in 1 place on average, and their correlation is below 0.1 but once in 600.
    assert np.sum(a == b) < 8 and abs(np.corrcoef(a, b)[0, 1]) < 0.1


def test_the_order_never_changes():
  """A run is resumed by a later version: these numbers are a promise."""
  assert Order(records=10, seed=0)(np.arange(20)).tolist() == [
    5,
    2,
    3,
    4,
    9,
    1,
    7,
    0,
    8,
    6,
    1,
    0,
    9,
    3,
    5,
    8,
    4,
    6,
    2,
    7,
  ]
  assert Order(records=3_000_000_000, seed=7)(np.arange(3)).tolist() == [2225059144, 401118740, 489606041]


shares = st.lists(st.floats(0.001, 1), min_size=1, max_size=5)


def mixture(weights, records=None, phases=None, seed=0):
  records = records or [7 + 3 * n for n in range(len(weights))]
  return Mixture(records=records, phases=phases or [(0, weights)], seed=seed)


@given(shares, st.integers(1, 3000))
def test_at_any_moment_each_corpus_has_given_its_share(weights, count):
  mixed = mixture(weights)
  corpus_N, _ = mixed(np.arange(count))
  given = np.bincount(corpus_N, minlength=len(weights))
  assert (np.abs(given - count * np.array(weights) / sum(weights)) < len(weights) + count * 1e-6).all()
  assert given.tolist() == mixed.given(count).tolist()


@given(shares, st.integers(1, 30))
def test_each_corpus_is_read_without_repeats_within_its_epochs(weights, seed):
  mixed = mixture(weights, seed=seed)
  corpus_N, record_N = mixed(np.arange(2000))
  for corpus, records in enumerate(mixed.records):
    read = record_N[corpus_N == corpus]
    for start in range(0, len(read) - records + 1, records):
      assert sorted(read[start : start + records]) == list(range(records))


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_what_stands_at_a_position_does_not_depend_on_what_else_is_asked(positions):
  mixed = mixture((0.6, 0.3, 0.1), phases=[(0, (0.6, 0.3, 0.1)), (5000, (0.1, 0, 0.9)), (10**9, (1, 1, 1))])
  alone = [tuple(part[0] for part in mixed(np.array([p]))) for p in positions]
  assert alone == list(zip(*mixed(np.array(positions)), strict=True))


@given(st.lists(st.tuples(st.integers(1, 400), shares.filter(lambda s: len(s) > 2)), min_size=1, max_size=4))
def test_a_new_phase_changes_shares_and_repeats_nothing(parts):
  lengths, weights = [0, *(length for length, _ in parts)], [share[:3] for _, share in parts]
  starts = np.cumsum(lengths)
  mixed = mixture((), records=[5, 60, 700], phases=list(zip(starts[:-1].tolist(), weights, strict=True)))
  corpus_N, record_N = mixed(np.arange(starts[-1]))
  for number, weight in enumerate(weights):
    given = np.bincount(corpus_N[starts[number] : starts[number + 1]], minlength=3)
    expected = lengths[number + 1] * np.array(weight) / sum(weight)
    assert (np.abs(given - expected) < 3 + 0.001).all()
    assert mixed.given(starts[number].item()).tolist() == np.bincount(corpus_N[: starts[number]], minlength=3).tolist()
  for corpus, records in enumerate(mixed.records):
    read = record_N[corpus_N == corpus]
    for start in range(0, len(read), records):
      epoch = read[start : start + records].tolist()
      assert len(set(epoch)) == len(epoch)


def test_one_corpus_is_read_in_its_order():
  corpus_N, record_N = mixture((3.5,), records=[26], seed=5)(np.arange(100))
  assert not corpus_N.any() and np.array_equal(record_N, Order(records=26, seed=5)(np.arange(100)))


def test_the_mixture_never_changes():
  """A run is resumed by a later version: these numbers are a promise."""
  corpus_N, record_N = mixture((0.5, 0.3, 0.2), records=[10, 10, 10], seed=3)(np.arange(12))
  assert "".join(map(str, corpus_N)) == "201020101020"
  assert record_N.tolist() == [7, 4, 6, 9, 0, 2, 0, 6, 3, 1, 2, 7]


@pytest.mark.parametrize(
  ("weights", "message"),
  [
    ((1.0, -1.0), "none is negative"),
    ((0.0, 0.0), "one is above 0"),
    ((float("nan"), 1.0), "are no weights"),
    ((1.0, 1e-9), "1e-09 is less than a millionth"),
  ],
)
def test_impossible_weights_are_refused(weights, message):
  with pytest.raises(UsageError, match=message):
    mixture(weights)(np.arange(1))
