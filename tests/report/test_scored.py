"""scores.json is read as far as it goes; what contradicts itself is named."""

import pytest

from jaxchop.errors import JaxchopError
from jaxchop.report.fields import Fields
from jaxchop.report.scored import read_occasion, read_scores


def test_scores_of_layers_runs_and_pairs_are_read(many_scores):
  scores = {score.name: score for score in read_scores(Fields("scores.json", many_scores))}
  assert list(scores) == list(many_scores["criteria"])
  assert scores["magnitude_l1"].per_layer[2] == 1.0 and scores["magnitude_l1"].bootstrap == ()
  assert scores["block_influence"].interval[0] == (0.05, 0.95) and len(scores["block_influence"].bootstrap) == 4
  assert scores["angular"].runs[1][3] == pytest.approx(0.1) and scores["angular"].run_share[1] == 0.6
  assert scores["cka"].pairs[0][8] == pytest.approx(0.2) and scores["cka"].runs == ()


def test_what_was_scored_on_which_text_is_read(many_scores):
  about = read_occasion(Fields("scores.json", many_scores))
  assert (about.model, about.text, about.windows, about.window) == ("org/eight", "builtin", 16, 256)
  assert about.nll == pytest.approx(2.5257, abs=1e-4) and about.interval == (2.4, 2.6)
  assert read_occasion(Fields("scores.json", {"baseline": None})).nll is None


def test_windows_of_an_earlier_version_are_no_runs():
  # It kept a row of scores for each calibration window.
  old = {
    "criteria": {"block_influence": {"per_layer": [1.0, 2.0]}},
    "windows": {"block_influence": [[1.0, 2.0], [1.0, 2.0]]},
  }
  (score,) = read_scores(Fields("scores.json", old))
  assert score.runs == ()


@pytest.mark.parametrize(
  ("path", "value", "named"),
  [
    (("windows", "angular"), [[0.1] * 8, [0.1] * 8], "angular has 8 layers, row 1 of its runs"),
    (("criteria", "angular", "run_share"), [0.5], "row 0 of its shares of runs"),
    (("pairs", "cka"), [[1.0] * 9] * 8, "cka has 8 layers, row 0 of its pairs"),
    (("pairs", "cka"), [*[[1.0] * 9] * 8, [1.0]], "row 8 of its pairs"),
    (("bootstrap", "block_influence"), [[0.1] * 8, [0.1] * 7], "row 1 of its resampled scores"),
    (("criteria", "block_influence", "interval"), [[0.1, 0.2]], "row 0 of its intervals"),
    (("criteria", "cka", "per_layer"), [0.1] * 7, "cka has 7 layers"),
    (("criteria", "magnitude_l1", "per_layer"), [0.1] * 9, "block_influence has 8 layers, magnitude_l1 has 9"),
    (("windows", "angular"), [0.1], "angular is 0.1, expected a list of lists of numbers"),
    (("pairs", "cka"), [["a"]], "cka is 'a', expected a number"),
    (("data", "windows"), "many", "windows is 'many', expected a whole number"),
  ],
)
def test_what_does_not_fit_is_named(many_scores, path, value, named):
  *parents, last = path
  place = many_scores
  for parent in parents:
    place = place[parent]
  place[last] = value
  with pytest.raises(JaxchopError, match=named) as error:
    read_scores(Fields("scores.json", many_scores))
    read_occasion(Fields("scores.json", many_scores))
  assert str(error.value).startswith("scores.json") and len(str(error.value)) < 200
