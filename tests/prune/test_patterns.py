"""Removal orders that look at no weight."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.prune.patterns import removed_by

PATTERNS = ("tail", "head", "middle", "alternate", "max_gap", "random")


@pytest.mark.parametrize(
  ("pattern", "removed"),
  [
    ("tail", (24, 25, 26, 27, 28, 29, 30, 31)),  # Reassessing, 25 % of 32: 24..31
    ("head", (0, 1, 2, 3, 4, 5, 6, 7)),
    ("middle", (12, 13, 14, 15, 16, 17, 18, 19)),
    ("alternate", (16, 18, 20, 22, 24, 26, 28, 30)),
  ],
)
def test_eight_of_thirty_two(pattern, removed):
  assert removed_by(pattern, range(32), 8) == removed


def test_max_gap_keeps_the_ends_and_spaces_the_rest_evenly():
  assert removed_by("max_gap", range(13), 8) == (1, 2, 4, 5, 7, 8, 10, 11)


def test_random_is_decided_by_its_seed():
  draws = {removed_by("random", range(30), 6, seed=seed) for seed in range(5)}
  assert len(draws) == 5
  assert removed_by("random", range(30), 6, seed=3) == removed_by("random", range(30), 6, seed=3)


@given(st.sampled_from(PATTERNS), st.integers(1, 40), st.data())
def test_every_pattern_removes_exactly_as_many_as_asked_among_the_candidates(pattern, layers, data):
  count = data.draw(st.integers(0, layers))
  candidates = range(2, 2 + layers)
  removed = removed_by(pattern, candidates, count)
  assert len(set(removed)) == count
  assert set(removed) <= set(candidates)
  assert list(removed) == sorted(removed)
