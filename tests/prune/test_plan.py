"""A plan survives its file, and a broken file says what is broken."""

import dataclasses
import json

import pytest

from jaxchop.errors import JaxchopError
from jaxchop.prune.merge import Merge
from jaxchop.prune.plan import Plan, Repair, read_plan, to_json

PLAN = Plan(source={"name": "a"}, layers=6, keep=(0, 1, 4, 5), criterion="tail", definition="tail order")


def test_a_plan_survives_its_file(tmp_path):
  (tmp_path / "plan.json").write_text(json.dumps(to_json(PLAN)))
  assert read_plan(tmp_path / "plan.json") == PLAN


def test_a_plan_says_itself_in_words():
  assert to_json(PLAN)["words"] == "removes layers 2..3, keeps 0..1 and 4..5"
  assert to_json(PLAN)["drop"] == [2, 3]


def test_merges_and_what_stands_for_a_run_survive_too_and_say_themselves(tmp_path):
  merged = dataclasses.replace(PLAN, merges=(Merge(into=1, layers=(2, 3), mode="telescope"),))
  trained = dataclasses.replace(PLAN, keep=(0, 1, 2, 5), repair=Repair(method="streamline", start=2, end=5))
  mapped = dataclasses.replace(PLAN, repair=Repair(method="linear_map", start=2, end=4))
  said = ("1 absorbs 2..3 (telescope)", "one trained layer stands for 2..4", "folded into layer 1 stands for 2..3")
  for plan, words in zip((merged, trained, mapped), said, strict=True):
    (tmp_path / "plan.json").write_text(json.dumps(to_json(plan)))
    assert read_plan(tmp_path / "plan.json") == plan
    assert words in plan.words


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"keep": [0, 6]}, "keep"),
    ({"keep": []}, "keep"),
    ({"keep": [1, 0]}, "keep"),
    ({"keep": [1, 1]}, "keep"),
    ({"keep": "no"}, "'n'"),
    ({"drop": [1]}, "contradict"),
    ({"merges": [[1, 2]]}, "merge"),
    ({"merges": [{"into": 1, "layers": [4], "mode": "telescope"}]}, "layer 4 is kept"),
    ({"repair": {"method": "glue"}}, "plan.json"),
    ({"layers": None}, "plan.json"),
    ({"criterion": 3}, "plan.json"),
  ],
)
def test_a_broken_plan_is_refused_with_the_file_and_the_reason(tmp_path, change, said):
  path = tmp_path / "plan.json"
  path.write_text(json.dumps(to_json(PLAN) | change))
  with pytest.raises(JaxchopError, match=said) as caught:
    read_plan(path)
  assert str(path) in str(caught.value)


def test_a_missing_key_a_missing_file_and_no_json_are_refused(tmp_path):
  for content in ("{}", "{", None):
    path = tmp_path / "p.json"
    path.unlink(missing_ok=True)
    if content is not None:
      path.write_text(content)
    with pytest.raises(JaxchopError, match=r"p\.json"):
      read_plan(path)
