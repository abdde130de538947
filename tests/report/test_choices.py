"""What each criterion would drop and how far they agree, from scores that give known answers."""

import math

import pytest

from jaxchop.report.choices import choices
from jaxchop.report.results import Run

DROPS = {
  "magnitude_l1": (2, 5),
  "block_influence": (3, 4),
  "angular": (3, 4),
  "perplexity_run": (2, 3),
  "cka": (6, 7),
  "perplexity_greedy": (3, 5),
}


def test_each_criterion_drops_as_many_layers_as_the_plan(make_scored):
  found = choices(make_scored())
  assert (found.count, found.layers) == (2, 8)
  assert {choice.name: choice.drop for choice in found.each} == DROPS


def test_a_plan_that_drops_three_asks_for_three(make_scored, many_plan):
  found = choices(make_scored(plan={**many_plan, "keep": [0, 1, 2, 6, 7], "drop": [3, 4, 5]}))
  assert found.count == 3 and found.each[0].drop == (2, 5, 7)


def test_the_share_of_resamplings_is_that_of_sets_or_of_runs_or_unknown(make_scored):
  same = {choice.name: choice.same_set for choice in choices(make_scored()).each}
  assert same["block_influence"] == 0.75 and same["angular"] == 0.6 and same["perplexity_run"] == 1.0
  assert same["magnitude_l1"] is None and same["perplexity_greedy"] is None


def test_agreement_is_the_share_of_common_layers(make_scored):
  found = choices(make_scored())
  names = [choice.name for choice in found.each]

  def shared(one, other):
    return found.shared[names.index(one)][names.index(other)]

  assert shared("block_influence", "angular") == 1.0 and shared("block_influence", "cka") == 0.0
  assert shared("block_influence", "perplexity_run") == shared("perplexity_run", "angular") == pytest.approx(1 / 3)


def test_without_a_plan_a_fifth_of_the_layers_goes(make_scored):
  assert choices(make_scored(plan=None)).count == 2
  assert choices(make_scored(plan=None)).each[1].drop == (3, 4)


def test_a_plan_that_drops_nothing_counts_as_none(make_scored, many_plan):
  assert choices(make_scored(plan={**many_plan, "keep": list(range(8)), "drop": []})).count == 2


def test_a_criterion_that_cannot_say_is_left_out(make_scored, many_scores):
  many_scores["windows"]["angular"] = many_scores["windows"]["angular"][:1]
  many_scores["criteria"]["angular"]["run_share"] = [0.5]
  del many_scores["windows"]["perplexity_run"]
  many_scores["criteria"]["perplexity_run"]["run_share"] = None
  many_scores["criteria"]["cka"]["per_layer"][3] = None
  many_scores["criteria"]["magnitude_l1"]["per_layer"][3] = math.nan
  many_scores["criteria"]["perplexity_greedy"]["per_layer"] = [2.0, 2.0, 2.0, 1.0, 2.0, 2.0, 2.0, 2.0]
  assert [choice.name for choice in choices(make_scored(scores=many_scores)).each] == ["block_influence"]


def test_unknown_criteria_drop_the_lowest(make_scored):
  run = {"criteria": {"mine": {"chooses": "run", "per_layer": [5.0, 1.0, 2.0, *[3.0] * 5]}}}
  (choice,) = choices(make_scored(scores=run)).each
  assert choice.drop == (1, 2)


def test_without_scores_there_is_nothing_to_say(make_scored):
  assert choices(Run(name="empty")) is None
  assert choices(make_scored(plan=None, scores={"criteria": {"cka": {"per_layer": [1.0]}}})) is None
