"""Models side by side: only what was measured, each number with its protocol."""

import math

from jaxchop.report.comparison import comparison, marked, notes
from jaxchop.report.results import Measured


def test_a_quantity_nobody_measured_has_no_row():
  labels = [row.label for row in comparison([Measured(name="original", layers=30), Measured(name="pruned", layers=24)])]
  assert labels == ["Layers"]


def test_a_model_without_the_number_has_an_empty_cell():
  (row,) = comparison([Measured(name="original", decode=10.0), Measured(name="pruned")])
  assert [cell.value for cell in row.cells] == ["10.00", ""]


def test_without_the_original_nothing_is_compared():
  (row,) = comparison([Measured(name="pruned", layers=24)])
  assert row.cells[0].against == ""


def test_two_protocols_are_two_rows_and_two_notes():
  rows = comparison(
    [
      Measured(name="original", perplexity=(("A", 5.0), ("B", 9.0))),
      Measured(name="pruned", perplexity=(("B", 18.0),)),
    ]
  )
  assert [(row.note, [cell.value for cell in row.cells]) for row in rows] == [
    ("A", ["5.00", ""]),
    ("B", ["9.00", "18.00"]),
  ]
  assert rows[1].cells[1].against == "2.00×" and notes(rows) == ("A", "B")
  assert marked(rows[1], notes(rows)) == "Held-out perplexity\u00a0²"


def test_an_infinite_perplexity_is_said_and_not_compared():
  (row,) = comparison(
    [Measured(name="original", perplexity=(("A", 5.0),)), Measured(name="pruned", perplexity=(("A", math.inf),))]
  )
  assert (row.cells[1].value, row.cells[1].against) == ("∞", "")
