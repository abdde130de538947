"""What was measured between steps is read from the journal, drawn with its errors, and the best point says its step."""

import json

import pytest

from jaxchop.errors import JaxchopError
from jaxchop.report.along import courses_figure, read_courses
from jaxchop.report.figure import style
from jaxchop.report.page import write_report


def line(event, step, **what):
  return {"event": event, "time": 1.0, "step": step, **what}


def solved(value, error=0.05, main=True):
  figures = {
    "small tasks solved": {"value": value, "error": error, "unit": "share", "protocol": "1 item", "main": main}
  }
  return {"figures": figures | {"of them": {"value": 9, "error": None, "unit": "share", "protocol": "", "main": False}}}


def journal(tmp_path, *lines):
  path = tmp_path / "journal.jsonl"
  path.write_text("".join(json.dumps(one) + "\n" for one in lines))
  return path


def test_a_step_measured_again_counts_once_and_what_is_not_finite_not_at_all(tmp_path):
  losses = [line("held_out", step, loss=loss) for step, loss in ((20, 2.0), (10, 9.0), (10, 3.0), (30, float("nan")))]
  others = [line("measured", 10, **solved(0.25)), line("measured", 20, **solved(0.5)), line("save", 10, seconds=1)]
  loss, tasks = read_courses(journal(tmp_path, *losses, *others))
  assert loss.points == ((10, 3.0, None), (20, 2.0, None)) and loss.best[0] == 20 and not loss.share
  assert tasks.points == ((10, 0.25, 0.05), (20, 0.5, 0.05)) and tasks.best[0] == 20 and tasks.protocol == "1 item"
  assert read_courses(tmp_path / "none.jsonl") == ()


def test_of_a_number_that_may_be_better_either_way_none_is_called_best(tmp_path):
  figures = {"task f1": {"value": 0.3, "error": None, "unit": "number", "protocol": "lm-eval", "main": True}}
  (course,) = read_courses(journal(tmp_path, line("measured", 5, figures=figures)))
  assert course.best is None
  with style():
    assert not courses_figure((course,), 7.4).axes[0].texts


def test_a_line_of_something_else_is_named(tmp_path):
  path = journal(tmp_path, line("held_out", 10, loss="low"))
  with pytest.raises(JaxchopError, match=r"journal\.jsonl.*loss"):
    read_courses(path)


def test_the_figure_has_a_panel_for_each_with_shares_in_percent(tmp_path):
  courses = read_courses(journal(tmp_path, line("held_out", 5, loss=2.0), line("measured", 5, **solved(0.5, None))))
  with style():
    panels = courses_figure(courses, 7.4).axes
  assert [panel.get_title(loc="left") for panel in panels] == [
    "held-out loss, nats per token",
    "small tasks solved, percent",
  ]
  assert panels[1].lines[-1].get_ydata().tolist() == [50.0]
  assert {text.get_text() for panel in panels for text in panel.texts} == {"best: step 5"}


def test_the_page_of_a_run_shows_it(make_run):
  folder = make_run()
  journal(folder, line("held_out", 5, loss=2.0), line("measured", 5, **solved(0.5)))
  page = write_report(folder).read_text()
  assert "small tasks solved: 1 item" in page and (folder / "figures" / "along.png").is_file()
