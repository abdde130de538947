"""Ways held against the first one: what lies between them, and how sure that is."""

import math

import numpy as np
import pytest

from jaxchop.report.ways import HEAD, cells, markdown, plot, rows

BEFORE = {"original": {"nll": 2.0, "perplexity": math.exp(2)}, "pruned": {"nll": 5.0, "perplexity": math.exp(5)}}
SPENT = {"tokens": 1000, "seconds": 10.0, "steps": 4}


def run(way, seed, window_nll, *, control=False, budget="tokens"):
  nll = sum(window_nll) / (10 * len(window_nll))
  about = {"control": control, "flops": 1e12, "spent": SPENT, "trained": {"parameters": 500}}
  worth = {"nll": nll, "nll_error": 0.1, "window_nll": window_nll, "window_tokens": [10] * len(window_nll)}
  return {"way": way, "budget": budget, "seed": seed, **worth, **about}


def test_the_difference_is_paired_by_window():
  """What makes a window hard for both says nothing about the two."""
  first, other = [30.0, 90.0, 60.0, 50.0], [29.0, 88.0, 59.0, 48.0]
  _, row = rows([run("all", 0, first), run("last", 0, other)], BEFORE)
  apart = np.subtract(other, first) / 10
  assert row["difference"] == pytest.approx(apart.mean())
  # Student's t of three degrees of freedom, as tables have it.
  half = 3.1824 * apart.std(ddof=1) / math.sqrt(4)
  assert row["interval"] == pytest.approx([apart.mean() - half, apart.mean() + half], abs=1e-5)


def test_seeds_widen_the_interval_and_unfinished_ones_are_left_out():
  first = [run("all", seed, [30.0, 30.0]) for seed in (0, 1)]
  other = [run("last", seed, [31.0 + 2 * seed] * 2) for seed in (0, 1, 2)]
  _, row = rows([*first, *other], BEFORE)
  # Windows agree, seeds differ by 0.2 nats.
  assert row["difference"] == pytest.approx(0.2) and row["seeds"] == 3
  # Two that differ so say little about a third: t of one degree of freedom.
  half = 12.7062 * math.sqrt(0.02 / 2)
  assert row["interval"] == pytest.approx([0.2 - half, 0.2 + half], abs=1e-5)


def test_windows_and_seeds_that_are_uncertain_alike_share_their_degrees_of_freedom():
  """Of two variances as large, known with 1 degree of freedom each, the sum is known with 2."""
  first = [run("all", seed, [30.0, 30.0]) for seed in (0, 1)]
  other = [run("last", 0, [30.0, 32.0]), run("last", 1, [32.0, 34.0])]
  _, row = rows([*first, *other], BEFORE)
  half = 4.3027 * math.sqrt(2 * 0.02 / 2)
  assert row["interval"] == pytest.approx([0.2 - half, 0.2 + half], abs=1e-5)


def test_the_gap_is_closed_in_nats_and_a_control_has_none():
  first, control = rows([run("all", 0, [30.0, 30.0]), run("unpruned", 0, [19.0, 19.0], control=True)], BEFORE)
  assert first["gap_closed"] == pytest.approx((5 - 3) / 3)
  assert control["gap_closed"] is None and "difference" not in control
  assert first["perplexity"] == pytest.approx(math.exp(3))


def test_budgets_have_a_first_way_each():
  runs = [run(way, 0, [30.0 + plus, 31.0], budget=b) for b, plus in (("tokens", 0), ("flops", 1)) for way in "ab"]
  found = rows(runs, BEFORE)
  assert [row["budget"] for row in found] == ["tokens", "tokens", "flops", "flops"]
  assert found[3]["difference"] == 0.0


def comparison(runs):
  return {"rows": rows(runs, BEFORE), **BEFORE, "plan": "removes layer 3", "protocol": "window 32", "left": 2}


def test_the_table_says_what_was_measured_and_what_is_missing():
  found = comparison(
    [run("all", 0, [30.0, 31.0]), run("x|y", 0, [29.0, 31.0]), run("u", 0, [20.0, 20.0], control=True)]
  )
  said = markdown(found)
  assert "The plan removes layer 3. Perplexity before any training: original 7.39, pruned 148.41 (window 32)" in said
  assert "2 runs are still to be made." in said and "### At equal tokens" in said
  assert all(len(cells(row, "all")) == len(HEAD) for row in found["rows"])
  assert [cells(row, "all")[2][:7] for row in found["rows"]] == ["first", "-0.050 ", "control"]


def test_a_plot_is_drawn_of_more_ways_than_there_are_colours():
  found = comparison([run(f"way {n}", 0, [30.0 + n, 31.0]) for n in range(15)])
  assert plot(found).startswith(b"\x89PNG")
