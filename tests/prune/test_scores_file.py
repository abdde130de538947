"""Which scores of an earlier file stand."""

import dataclasses
import json

import pytest

from jaxchop.config import ScoreConfig
from jaxchop.prune.criteria import DEFINITIONS
from jaxchop.prune.score import Score, Scores
from jaxchop.prune.scores_file import key_of, standing_scores, to_json

MODEL, DATA, SETTINGS = {"digest": "m"}, {"digest": "d"}, ScoreConfig()
FOUND = Scores(
  criteria={
    name: Score(name=name, definition=DEFINITIONS[name].text, per_layer=(1.0, 2.0))
    for name in ("magnitude_l1", "angular", "perplexity", "perplexity_greedy")
  },
  baseline=(2.5, (2.0, 3.0)),
)


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "scores.json"
  path.write_text(json.dumps(to_json(FOUND, settings=SETTINGS, model=MODEL, data=DATA)))
  return path


def names(path, settings=SETTINGS, model=MODEL, data=DATA):
  return set(standing_scores(path, settings, model, data).criteria)


def test_all_stand_for_the_same_model_text_and_settings(file):
  found = standing_scores(file, SETTINGS, MODEL, DATA)
  assert found == FOUND
  assert names(file, dataclasses.replace(SETTINGS, batch_size=3)) == set(FOUND.criteria)


def test_another_model_or_text_or_definition_makes_them_anew(file, monkeypatch):
  assert names(file, model={"digest": "other"}) == set()
  assert names(file, data={"digest": "other"}) == {"magnitude_l1"}
  changed = dataclasses.replace(DEFINITIONS["angular"], text="another formula")
  monkeypatch.setitem(DEFINITIONS, "angular", changed)
  assert names(file) == set(FOUND.criteria) - {"angular"}


@pytest.mark.parametrize(
  ("setting", "value", "gone"),
  [
    ("windows", 3, {"angular", "perplexity", "perplexity_greedy"}),
    ("skip_first", True, {"angular", "perplexity", "perplexity_greedy"}),
    ("removal_windows", 2, {"perplexity", "perplexity_greedy"}),
    ("greedy_rounds", 2, {"perplexity_greedy"}),
  ],
)
def test_a_setting_undoes_what_depends_on_it(file, setting, value, gone):
  assert names(file, dataclasses.replace(SETTINGS, **{setting: value})) == set(FOUND.criteria) - gone


def test_a_broken_file_counts_for_nothing(tmp_path):
  (tmp_path / "scores.json").write_text('{"criteria": {"angular": {}}}')
  assert names(tmp_path / "scores.json") == set()
  assert names(tmp_path / "absent.json") == set()


def test_keys_tell_criteria_apart():
  assert len({key_of(name, SETTINGS, MODEL, DATA) for name in DEFINITIONS}) == len(DEFINITIONS)
