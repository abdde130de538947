"""How many layers go, and which."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.config import PruneConfig
from jaxchop.errors import UsageError
from jaxchop.prune.score import Score
from jaxchop.prune.select import Sizes, choose, how_many, lowest

SIZES = Sizes(layers=10, per_layer=100, outside=50, parameter_bytes=2)


def scores(*values):
  return lambda name, keep: Score(name=name, definition="words", per_layer=values)


def never(name, keep):
  raise AssertionError(f"{name} was scored for nothing")


@pytest.mark.parametrize(
  ("target", "count"),
  [
    ({"count": 3}, 3),
    ({"ratio": 0.25}, 2),
    ({"parameters": 750}, 3),
    ({"parameters": 849}, 3),
    ({"bytes": 1700}, 2),
    ({"parameters": 10_000}, 0),
  ],
)
def test_every_kind_of_target_becomes_a_count(target, count):
  assert how_many(PruneConfig(**target), SIZES) == count


@given(st.integers(150, 1050))
def test_a_parameter_target_is_met_by_the_most_layers_that_fit(limit):
  keep = SIZES.layers - how_many(PruneConfig(parameters=limit), SIZES)
  assert SIZES.parameters(keep) <= limit
  assert keep == SIZES.layers or SIZES.parameters(keep + 1) > limit


@pytest.mark.parametrize("target", [{}, {"count": 1, "ratio": 0.1}, {"count": 10}, {"ratio": 1.0}, {"parameters": 149}])
def test_a_target_that_is_missing_doubled_or_out_of_reach_is_refused(target):
  with pytest.raises(UsageError, match="prune"):
    how_many(PruneConfig(**target), SIZES)


def test_the_lowest_scores_go_and_protected_layers_stay():
  settings = PruneConfig(criterion="perplexity", count=3, protect_first=1, protect_last=1)
  choice = choose(settings, SIZES, scores(0.0, 5.0, 1.0, 4.0, 2.0, 9.0, 3.0, 8.0, 7.0, 0.0))
  assert choice.keep == (0, 1, 3, 5, 7, 8, 9)
  assert choice.criterion == "perplexity"


def test_of_equal_scores_the_later_layer_goes():
  assert lowest([1.0, 1.0, 1.0, 2.0], range(4), 1) == (2,)


def test_explicit_lists_need_no_target():
  assert choose(PruneConfig(drop="2:9"), SIZES, never).keep == (0, 1, 9)
  assert choose(PruneConfig(keep="0,9"), SIZES, never).keep == (0, 9)


@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"drop": "1", "pattern": "tail", "count": 1},
    {"drop": "1", "count": 1},
    {"drop": "0:10"},
    {"keep": "3", "ratio": 0.5},
    {"pattern": "tail", "count": 7, "protect_first": 2, "protect_last": 2},
    {"criterion": "perplexity", "count": 10},
  ],
)
def test_contradictory_or_impossible_wishes_are_refused(settings):
  with pytest.raises(UsageError, match="prune"):
    choose(PruneConfig(**settings), SIZES, never)
