"""The budget table is what its figures say, and the compiler still says so."""

import json

import bench_budget
import pytest
from bench_budget import budget, compiled, in_page, rows, table

KNOWN = json.loads(bench_budget.ROWS.read_text())
# Of each model one, and of each slice one; all of them take hours.
CHECKED = [
  row
  for row in rows()
  if (row.layers, row.seq_len) == (32, 2048) and (row.model == "Llama-2-7B" or row.topology == "v5e:4x4")
]


def test_the_page_is_the_table_of_the_figures_that_are_kept():
  page = bench_budget.PAGE.read_text()
  assert in_page(page, table(KNOWN)) == page
  assert KNOWN.keys() == {row.key for row in rows()}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("row", CHECKED, ids=lambda row: row.key)
def test_the_compiler_says_what_the_table_says(row):
  told, kept = budget(compiled(row)), KNOWN[row.key]
  assert told["flops_per_step"] == kept["flops_per_step"]
  assert told["peak_bytes"] == pytest.approx(kept["peak_bytes"], rel=0.01)
  assert told["wire_bytes"] == pytest.approx(kept["wire_bytes"], rel=0.01)
  assert told["seconds"] == pytest.approx(kept["seconds"], rel=0.03)
