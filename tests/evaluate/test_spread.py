"""A median comes with an interval that holds the true one as often as it says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.evaluate.spread import spread


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40))
def test_the_median_lies_in_its_interval_and_the_repeats_keep_their_order(seconds):
  found = spread(seconds)
  assert min(seconds) <= found.low <= found.median <= found.high <= max(seconds)
  assert found.repeats == tuple(seconds)


@pytest.mark.parametrize(("count", "cut"), [(1, 0), (5, 0), (6, 0), (9, 1), (20, 5)])
def test_the_interval_is_that_of_order_statistics(count, cut):
  found = spread(list(range(count))[::-1])
  assert (found.low, found.high) == (cut, count - 1 - cut)


def test_nineteen_intervals_of_twenty_hold_the_true_median():
  draws = np.random.default_rng(0).exponential(size=(2000, 12))
  held = np.mean([found.low <= np.log(2) <= found.high for found in map(spread, draws.tolist())])
  assert 0.95 < held < 0.97
