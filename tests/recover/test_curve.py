"""metrics.jsonl is one curve, however it was interrupted."""

import json
from pathlib import Path

from jaxchop.recover.curve import Curve, read_curve


def write(path: Path, *steps: int, tail: str = "") -> None:
  path.write_text("".join(json.dumps({"step": s}) + "\n" for s in steps) + tail)


def test_lines_after_the_restored_step_are_cut(tmp_path: Path) -> None:
  path = tmp_path / "metrics.jsonl"
  write(path, 1, 2, 3, 4)
  curve = Curve(path, 2)
  curve.append({"step": 3, "loss": 1.0})
  curve.close()
  assert read_curve(path) == curve.steps == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 1.0}]


def test_a_line_is_there_as_soon_as_it_is_added(tmp_path: Path) -> None:
  curve = Curve(tmp_path / "metrics.jsonl", 0)
  curve.append({"step": 1})
  assert read_curve(curve.path) == [{"step": 1}]
  curve.close()


def test_a_half_written_line_does_not_count(tmp_path: Path) -> None:
  path = tmp_path / "metrics.jsonl"
  write(path, 1, 2, tail='{"step": 3, "lo')
  assert read_curve(path) == [{"step": 1}, {"step": 2}]
  Curve(path, 5).close()
  assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_no_file_is_an_empty_curve(tmp_path: Path) -> None:
  assert read_curve(tmp_path / "metrics.jsonl") == []
