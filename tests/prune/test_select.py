"""How many layers go, and which."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.config import PruneConfig
from jaxchop.errors import UsageError
from jaxchop.prune.score import Score
from jaxchop.prune.select import Sizes, choose, dropped_by, how_many, lowest

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


def test_named_layers_are_protected_beside_the_first_and_last():
  settings = PruneConfig(criterion="perplexity", count=2, protect_first=1, protect="3,5:7")
  choice = choose(settings, SIZES, scores(0.0, 9.0, 9.0, 1.0, 5.0, 1.0, 1.0, 6.0, 9.0, 9.0))
  assert choice.keep == (0, 1, 2, 3, 5, 6, 8, 9)
  with pytest.raises(UsageError, match=r"layers 0, 3, 5\.\.6 and 9 are protected; ask for at most 5"):
    choose(dataclasses.replace(settings, count=6, protect_last=1), SIZES, never)


RUNS = Score(
  name="angular",
  definition="words",
  per_layer=(1.0, 5.0, 5.0, 2.0),
  runs=((1.0, 5.0, 5.0, 2.0), (4.0, 3.0, 3.0), (7.0, 8.0)),
)


def test_a_criterion_of_runs_drops_the_lowest_run_whatever_its_single_layers_score():
  assert dropped_by(RUNS, range(4), 1) == (0,)
  # Of two equal runs the later goes.
  assert dropped_by(RUNS, range(4), 2) == (2, 3)
  assert dropped_by(RUNS, (0, 1, 2), 2) == (1, 2)
  assert dropped_by(RUNS, range(4), 0) == ()


@pytest.mark.parametrize(("candidates", "count", "words"), [((0, 2), 2, "no run of 2"), (range(4), 4, "longest_run")])
def test_a_run_that_is_not_there_is_refused(candidates, count, words):
  with pytest.raises(UsageError, match=words):
    dropped_by(RUNS, candidates, count)


def test_an_order_reaches_as_far_as_it_was_found():
  greedy = Score(name="perplexity_greedy", definition="words", per_layer=(3.0, 1.0, 3.0, 2.0))
  assert dropped_by(greedy, range(4), 2) == (1, 3)
  with pytest.raises(UsageError, match=r"2 layers were ordered, 3 are to go; set score\.greedy_rounds"):
    dropped_by(greedy, range(4), 3)


def test_a_latency_target_is_met_by_the_fewest_layers_that_save_enough():
  asked = PruneConfig(pattern="tail", latency=0.75)
  # A layer takes a twentieth of the time here: five of them a quarter.
  assert len(choose(asked, SIZES, never, lambda: 0.05).keep) == 5
  assert len(choose(asked, SIZES, never, lambda: 0.0625).keep) == 6
  with pytest.raises(UsageError, match="not measured"):
    choose(asked, SIZES, never)


def test_rounds_drop_equal_shares_and_see_what_is_left_each_time():
  seen = []

  def score_of(name, keep):
    seen.append(keep)
    return Score(name=name, definition="words", per_layer=tuple(float(layer) for layer in keep))

  choice = choose(PruneConfig(criterion="perplexity", count=5, rounds=2, protect_first=1), SIZES, score_of)
  assert seen == [tuple(range(10)), (0, 3, 4, 5, 6, 7, 8, 9)]
  assert choice.keep == (0, 6, 7, 8, 9)
  assert "2 rounds" in choice.definition


def test_what_takes_the_place_of_a_run_counts_as_one_of_it():
  settings = PruneConfig(criterion="perplexity", count=2)
  assert len(choose(settings, SIZES, scores(*map(float, range(10))), more=1).keep) == 7
