"""A plan survives its file, and a broken file says what is broken."""

import json

import pytest

from jaxchop.errors import JaxchopError
from jaxchop.prune.plan import Plan, read_plan, to_json

PLAN = Plan(source={"name": "a"}, layers=6, keep=(0, 1, 4, 5), criterion="tail", definition="tail order")


def test_a_plan_survives_its_file(tmp_path):
  (tmp_path / "plan.json").write_text(json.dumps(to_json(PLAN)))
  assert read_plan(tmp_path / "plan.json") == PLAN


def test_a_plan_says_itself_in_words():
  assert to_json(PLAN)["words"] == "removes layers 2..3, keeps 0..1 and 4..5"
  assert to_json(PLAN)["drop"] == [2, 3]


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"keep": [0, 6]}, "keep"),
    ({"keep": []}, "keep"),
    ({"keep": [1, 0]}, "keep"),
    ({"keep": [1, 1]}, "keep"),
    ({"keep": "no"}, "'n'"),
    ({"drop": [1]}, "contradict"),
    ({"merges": [[1, 2]]}, "merges"),
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
