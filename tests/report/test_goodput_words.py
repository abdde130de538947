"""A recovery's time is told in one line and as a table, and is not when nothing was trained."""

import pytest

from jaxchop.errors import JaxchopError
from jaxchop.report.fields import Fields
from jaxchop.report.goodput import in_one_line, read_goodput, sentences
from jaxchop.report.page import render
from jaxchop.report.results import read_run


def told(summary: dict) -> str:
  found = read_goodput(Fields("summary.json", summary).child("recovery"))
  assert found is not None
  return in_one_line(found).replace("\u00a0", " ")


def test_one_line_has_the_share_and_the_other_parts_by_size(summary) -> None:
  assert told(summary) == (
    "80 % of 4 min 10 s productive; compile 30 s, lost 10 s, save 8.0 s, other 2.0 s. "
    "3 processes worked on it, one after the other. 4 steps were done again after a kill. "
    "1 step was skipped and changed nothing. 2 losses were far above those before them."
  )


def test_what_did_not_happen_is_not_told(summary) -> None:
  summary["recovery"] |= {"skipped": 0, "spikes": 0}
  summary["recovery"]["goodput"] |= {"processes": 1, "steps_lost": 0}
  assert sentences(read_goodput(Fields("summary.json", summary).child("recovery"))) == []


@pytest.mark.parametrize("recovery", [None, {}, {"goodput": None}, {"goodput": {"parts": {"productive": 0.0}}}])
def test_a_run_without_steps_has_no_goodput(make_run, summary, recovery) -> None:
  summary["recovery"] = recovery
  run = read_run(make_run(summary=summary))
  assert run.goodput is None and "Where its time went" not in render(run, {})


def test_the_page_has_the_parts_in_their_order(make_run) -> None:
  text = render(read_run(make_run()), {}).replace("\u00a0", " ")
  assert "(median), 40 % of a measured 140 GFLOP/s." in text and "goodput 80 %" in text
  words = ["steps that the model keeps", "compiling the step", "waited for a save", "done again after a kill, or"]
  places = [text.index(word) for word in words]
  assert places == sorted(places) and "waited for a batch" not in text


def test_a_part_that_is_no_number_is_named(make_run, summary) -> None:
  summary["recovery"]["goodput"]["parts"]["save"] = "long"
  with pytest.raises(JaxchopError, match=r"summary\.json: recovery: goodput: parts: save is 'long'"):
    read_run(make_run(summary=summary))
