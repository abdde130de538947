"""Figures of several models side by side: a row each, with errors, and differences of the samples they share."""

from jaxchop.evaluate.figures import figure
from jaxchop.report.comparison import comparison
from jaxchop.report.measures import measures
from jaxchop.report.results import read_models
from jaxchop.report.table import measures_table


def entry(path, hits, nll):
  suites = {
    "perplexity": {"protocol": "window 8", "figures": {"perplexity": figure(20.0, "perplexity", nll, [4, 4])}},
    "capability": {
      "protocol": "2 items",
      "score": sum(hits) / len(hits),
      "figures": {"small tasks solved": figure(sum(hits) / len(hits), "share", hits)},
    },
  }
  return {"path": path, "suites": suites}


ENTRIES = entry("whole", [1, 1, 0, 1], [8.0, 8.4]), entry("small", [1, 0, 0, 0], [9.0, 9.5])


def test_rows_hold_values_errors_and_differences():
  first, second = measures(ENTRIES)
  assert (first.label, first.note) == ("perplexity", "window 8")
  assert first.cells[0].value.startswith("20.00 ± ") and not first.cells[0].against
  assert first.cells[1].against.startswith("+0.2625\u00a0±\u00a0") and first.cells[1].against.endswith("nats")
  assert second.cells[1].against.startswith("\u221250.0\u00a0±\u00a0") and second.cells[1].against.endswith("points")


def test_a_suite_that_a_model_lacks_is_an_empty_cell_and_other_samples_are_not_compared():
  lacking = {"path": "b", "suites": {"capability": entry("b", [1, 0], [1.0, 1.0])["suites"]["capability"]}}
  first, second = measures([ENTRIES[0], lacking])
  assert first.cells[1].value == "" and second.cells[1].value and second.cells[1].against == ""


def test_the_table_says_what_brackets_and_signs_mean():
  table, words = measures_table(ENTRIES).renderables
  assert [column.header.plain for column in table.columns[1:]] == ["whole", "small"]
  assert "one standard error" in words.plain and "nats" in words.plain
  # A difference has a line of its own, in one piece however narrow the column.
  first, difference = next(iter(table.columns[2].cells)).plain.split("\n")
  assert "±" in first and difference.startswith("(+0.2625") and " " not in difference
  assert "nats" not in measures_table(ENTRIES[:1]).renderables[1].plain


def test_under_the_table_stands_whose_writing_has_fallen_off():
  words = measures_table([*ENTRIES, entry("healed", [1, 0, 0, 1], [8.0, 8.5])]).renderables[1].plain
  told = (
    "A cliff: small solves 25\u00a0% of the small generated tasks, whole 75\u00a0%, so what it writes has lost more"
  )
  assert told in words and "healed solves" not in words
  del (lacking := entry("whole", [1], [8.0]))["suites"]["capability"]
  assert "cliff" not in measures_table([lacking, ENTRIES[1]]).renderables[1].plain


def test_further_figures_of_a_summary_are_rows_of_the_report():
  told = {"task acc": {"value": 0.25, "error": 0.01, "unit": "share", "protocol": "lm-eval 0.4"}}
  models = read_models({"original": {"figures": told}, "pruned": {}})
  (row,) = [row for row in comparison(models) if row.label == "task acc"]
  assert row.cells[0].value == "25\u00a0% ± 1.0" and row.cells[1].value == "" and row.note == "lm-eval 0.4"
