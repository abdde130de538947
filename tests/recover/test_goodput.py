"""The wall time of a run divides into parts that sum up to it, over any number of processes and kills."""

import logging
from pathlib import Path
from typing import Any

import pytest

from jaxchop.recover.goodput import PARTS, goodput
from jaxchop.recover.journal import Journal, read_journal


def event(name: str, when: float, **what: Any) -> dict[str, Any]:
  return {"event": name, "time": when, **what}


def line(step: int, when: float, seconds: float = 1.0, **more: Any) -> dict[str, Any]:
  return {"step": step, "time": when, "seconds": seconds, **more}


# A process that lived for 10 s, of which it was killed after its third step; its successor, an hour later.
FIRST = [event("begin", 100), event("compile", 104, seconds=3), event("train", 105), event("save", 108, seconds=0.5)]
SECOND = [event("lost", 3700, steps=1, seconds=1.5, until=110), event("begin", 3700), event("restore", 3702, seconds=2)]
SECOND += [event("train", 3702.5), event("save", 3704, seconds=0.25), event("end", 3704)]


def test_the_parts_of_a_killed_run_and_of_what_followed() -> None:
  found = goodput(FIRST + SECOND, [line(1, 106), line(2, 107, data_wait=0.25), line(3, 3703.5)])
  expected = {"productive": 3, "data_wait": 0.25, "compile": 3, "restore": 2, "save": 0.75, "lost": 1.5}
  # Of 14 s: 2 + 0.5 before the first steps, and what nothing accounts for.
  assert found["parts"] == pytest.approx({**dict.fromkeys(PARTS, 0), **expected, "start": 2.5, "other": 1.0})
  assert found["seconds"] == sum(found["parts"].values()) == pytest.approx(14)
  assert (found["processes"], found["steps_lost"]) == (2, 1)
  assert found["productive_share"] == pytest.approx(3 / 14)


def test_a_killed_process_counts_up_to_its_last_step() -> None:
  assert goodput(FIRST, [line(1, 106), line(2, 112)])["seconds"] == 12


def test_steps_that_a_second_kill_kept_from_being_cut_are_lost_once() -> None:
  found = goodput(FIRST + SECOND[:1] + SECOND, [])
  assert found["steps_lost"] == 1 and found["parts"]["lost"] == 1.5


def test_skipped_steps_are_lost_time() -> None:
  parts = goodput(FIRST, [line(1, 106), line(2, 107, skipped=True)])["parts"]
  assert (parts["productive"], parts["lost"]) == (1, 1)


def test_a_clock_that_was_set_back_makes_nothing_negative() -> None:
  found = goodput([event("begin", 100), event("compile", 40, seconds=3), event("train", 41)], [line(1, 42)])
  assert min(found["parts"].values()) >= 0 and found["seconds"] == sum(found["parts"].values()) == 4


def test_a_run_without_a_journal_has_no_goodput_but_what_its_steps_took() -> None:
  assert goodput([], [])["productive_share"] is None and goodput([], [line(1, 1)])["seconds"] == 1


def test_a_journal_is_only_ever_added_to(tmp_path: Path) -> None:
  path = tmp_path / "journal.jsonl"
  Journal(path).begin(1.0, 0, None, [])
  with path.open("a") as file:
    file.write('{"event": "compi')
  journal = Journal(path)
  journal.begin(2.0, 4, 0.5, [line(4, 8.0), line(5, 9.0, data_wait=0.5)])
  with journal.timed("save", step=4):
    pass
  begun, lost, again, restored, saved = read_journal(path)
  assert (begun, again) == (event("begin", 1.0, step=0), event("begin", 2.0, step=4))
  assert {key: lost[key] for key in ("event", "steps", "seconds", "until")} == {
    **{"event": "lost", "steps": 1, "seconds": 1.5, "until": 9.0}
  }
  assert (restored["event"], restored["seconds"], saved["event"], saved["step"]) == ("restore", 0.5, "save", 4)


def test_nothing_is_noted_of_a_run_that_has_not_begun(tmp_path: Path) -> None:
  Journal(tmp_path / "journal.jsonl").note("end")
  assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_is_told_of_once_and_stops_nothing(
  tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
  (tmp_path / "journal.jsonl").mkdir()
  journal = Journal(tmp_path / "journal.jsonl")
  with caplog.at_level(logging.WARNING, logger="jaxchop"):
    journal.begin(1.0, 0, 0.5, [])
    journal.note("end")
  (told,) = caplog.messages
  assert "journal.jsonl: cannot be written: Is a directory; the goodput told will miss what follows" in told


def test_lines_that_are_no_events_do_not_count(tmp_path: Path) -> None:
  (tmp_path / "journal.jsonl").write_text('3\n{"event": "begin"}\n{"event": "end", "time": 2.0}\n')
  assert read_journal(tmp_path / "journal.jsonl") == [event("end", 2.0)]
