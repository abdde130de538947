"""Trackers show the curve once, over all restarts, and never stop a run."""

import logging
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jaxchop.errors import UsageError
from jaxchop.recover.trackers import Trackers, require


def line(step: int) -> dict[str, Any]:
  return {"step": step, "loss": 4.0 / step, "mfu": 0.5, "grad_norm": None, "seconds": 1.0, "time": 1e9 + step}


def tracked(name: Any, folder: Path, steps: range, *, told: int = 0) -> None:
  with Trackers([name], folder, step=steps.start - 1, told=told, config={"steps": 9}) as trackers:
    for step in steps:
      trackers.log(line(step))


def shown(folder: Path, tag: str) -> list[tuple[int, float, float]]:
  """Step, value and time of each point that TensorBoard shows: what a restart forgets is left out."""
  from tensorboardX.proto.event_pb2 import Event, SessionLog

  points: list[tuple[int, float, float]] = []
  for path in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
    content = path.read_bytes()
    while content:
      (length,) = struct.unpack("<Q", content[:8])
      event, content = Event.FromString(content[12 : 12 + length]), content[16 + length :]
      if event.session_log.status == SessionLog.START:
        points = [point for point in points if point[0] < event.step]
      points += [(event.step, value.simple_value, event.wall_time) for value in event.summary.value if value.tag == tag]
  return points


def test_tensorboard_shows_one_series_however_often_a_run_restarts(tmp_path: Path) -> None:
  tracked("tensorboard", tmp_path, range(1, 8))
  tracked("tensorboard", tmp_path, range(5, 10), told=7)
  points = shown(tmp_path / "tensorboard", "loss/train")
  assert [(step, when) for step, _, when in points] == [(step, 1e9 + step) for step in range(1, 10)]
  assert [value for _, value, _ in points] == pytest.approx([4.0 / step for step in range(1, 10)])
  assert len(shown(tmp_path / "tensorboard", "perf/mfu")) == 9 and not shown(tmp_path / "tensorboard", "opt/grad_norm")


class StandIn(ModuleType):
  """What wandb and trackio have in common, noting what is asked of it."""

  def __init__(self, *, broken: bool = False):
    super().__init__("stand_in")
    self.asked: list[Any] = []
    self.broken = broken

  def init(self, **about: Any) -> "StandIn":
    print("Hello from a tracker")
    self.asked.append({key: about[key] for key in ("project", "resume")} | {"run": about.get("id", about["name"])})
    return self

  def log(self, values: dict[str, float], step: int) -> None:
    if self.broken:
      raise ConnectionError("no route\nto host")
    self.asked.append((step, values))

  def finish(self) -> None:
    self.asked.append("finished")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_others_go_on_with_the_same_run_and_are_not_told_twice(
  name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
  module = StandIn()
  monkeypatch.setitem(sys.modules, name, module)
  tracked(name, tmp_path, range(1, 4))
  tracked(name, tmp_path, range(3, 6), told=3)
  first, *points, ended = module.asked[:5]
  assert first == {"project": "jaxchop", "resume": "allow", "run": first["run"]} and ended == "finished"
  assert points[0] == (1, {"loss/train": 4.0, "perf/mfu": 0.5, "perf/step_time": 1.0})
  assert capsys.readouterr().out == ""
  assert module.asked[5] == first and [entry[0] for entry in module.asked[6:-1]] == [4, 5]


def test_a_tracker_that_fails_is_told_of_once_and_left_out(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
  module = StandIn(broken=True)
  monkeypatch.setitem(sys.modules, "wandb", module)
  with caplog.at_level(logging.WARNING, logger="jaxchop"):
    tracked("wandb", tmp_path, range(1, 4))
  assert caplog.messages == ["recover.track: wandb failed (no route to host); the run goes on without it"]


def test_a_package_that_is_missing_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setitem(sys.modules, "trackio", None)
  with pytest.raises(
    UsageError, match=r"recover\.track: trackio needs the package trackio .*pip install 'jaxchop\[track\]'"
  ):
    require(["trackio"])


def test_without_trackers_the_folder_stays_as_it_is(tmp_path: Path) -> None:
  with Trackers([], tmp_path, step=0, told=0, config={}) as trackers:
    trackers.log(line(1))
  assert not list(tmp_path.iterdir())
