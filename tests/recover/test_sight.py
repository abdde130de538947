"""What a person sees of a recovery: before it, step by step, and of all its restarts together."""

import dataclasses
import json
import logging
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from test_loop import checkpoints, curve, program
from tiny_run import Records, settings, tiny_model

from jaxchop import progress
from jaxchop.errors import Interrupted, JaxchopError, UsageError
from jaxchop.recover import step, watch
from jaxchop.recover.curve import read_curve
from jaxchop.recover.journal import read_journal
from jaxchop.recover.loop import recover
from jaxchop.recover.objective import summed_loss
from jaxchop.recover.outcome import Recovered

# Batches of nothing but this token have no finite loss, or one ten times as high.
BAD, HIGH = 60, 59


def run(folder: Path, *, number: int = 0, at: int = -1, **changes: Any) -> Recovered:
  return recover(tiny_model(), Records(number, at), settings(**changes), folder, meta={"data": "count"})


def lines(folder: Path) -> list[dict[str, Any]]:
  return read_curve(folder / "metrics.jsonl")


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> Any:
  """Makes the batches of some steps bad or high: `spoiled({8: BAD, 20: HIGH})`."""
  usual = tiny_run.records

  def spoil(tokens: dict[int, int]) -> None:
    def records(step: int) -> np.ndarray:
      found = usual(step)
      return np.full_like(found, tokens[step + 1]) if step + 1 in tokens else found

    monkeypatch.setattr(tiny_run, "records", records)

  def loss(model: Any, batch: Any, **how: Any) -> jax.Array:
    worse = jnp.where(jnp.all(batch.ids == BAD), jnp.nan, jnp.where(jnp.all(batch.ids == HIGH), 10.0, 1.0))
    return worse * summed_loss(model, batch, **how)

  monkeypatch.setattr(step, "summed_loss", loss)
  return spoil


class Whole(NamedTuple):
  folder: Path
  done: Recovered
  # What it said on the way.
  said: list[str]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
  """A run that nothing disturbed, which told of every step."""
  folder, said, log = tmp_path_factory.mktemp("whole"), list[str](), logging.getLogger("jaxchop")
  listener = logging.Handler()
  listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
  log.addHandler(listener)
  log.setLevel(logging.INFO)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(progress, "_PAUSE", 0.0)
    done = run(folder)
  log.removeHandler(listener)
  log.setLevel(logging.NOTSET)
  yield Whole(folder, done, said)


def test_a_run_says_before_its_first_step_what_it_will_do(whole: Whole) -> None:
  begin, end = (next(i for i, text in enumerate(whole.said) if text.startswith(w)) for w in ("devices", "Recovering"))
  said, plan = whole.said[begin:end], whole.done.plan
  assert said[:4] == [
    "devices: 1 × CPU",
    "trains: 8,000 parameters (all) of a model of 8,000",
    "weights: 29 arrays, 32\u00a0kB, whole on every device, 32\u00a0kB a device",
    "optimizer: 60 arrays, 64\u00a0kB, whole on every device, 64\u00a0kB a device",
  ]
  assert "at the peak by the compiler's estimate" in said[4] and "attention by XLA" in said[5]
  assert said[6].startswith("to come: 20 steps, 960 tokens, 5.1e+07 FLOP; at least ")
  assert (plan["steps"], plan["tokens"], plan["flops"]) == (20, 960, 20 * plan["flops_per_step"])
  assert plan["memory"]["peak"] >= plan["memory"]["arguments"] > 96_000


def test_progress_lines_tell_loss_speed_and_waiting(whole: Whole) -> None:
  (words,) = (text for text in whole.said if text.startswith("Recovering: 7 of 20"))
  for part in (" s left, ", "loss ", " tokens/s, MFU ", " %, data wait "):
    assert part in words


def test_the_share_of_the_peak_is_the_models_work_over_time_and_peak(whole: Whole) -> None:
  plan = whole.done.plan
  for line in lines(whole.folder):
    least = plan["flops_per_step"] / plan["peak_flops_per_second"]
    assert line["mfu"] == pytest.approx(least / line["seconds"])


def test_the_time_that_a_save_held_up_a_step_stands_in_its_line(whole: Whole) -> None:
  assert [line["step"] for line in lines(whole.folder) if "save_seconds" in line] == [6, 11, 16]


def test_killed_and_finished_a_run_knows_where_its_time_went(tmp_path: Path) -> None:
  start = time.time()
  with program(tmp_path, "SIGKILL", "13") as killed:
    killed.communicate()
  told = lines(tmp_path)
  saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
  with program(tmp_path) as last:
    assert last.wait() == 0
  found, elapsed = run(tmp_path).goodput, time.time() - start
  parts = found["parts"]
  lost = [line for line in told if line["step"] > saved]
  assert found["steps_lost"] == len(lost) > 0 and found["processes"] == 2
  assert parts["lost"] == pytest.approx(sum(line["seconds"] + line["data_wait"] for line in lost))
  assert parts["productive"] == pytest.approx(sum(line["seconds"] for line in lines(tmp_path)))
  assert found["seconds"] == pytest.approx(sum(parts.values())) and found["seconds"] < elapsed
  assert all(parts[name] > 0 for name in ("compile", "restore", "save", "start"))
  events = [event["event"] for event in read_journal(tmp_path / "journal.jsonl")]
  assert events.count("begin") == 2 and events[-1] == "end"


def test_a_finished_run_that_is_asked_for_again_has_the_same_goodput(whole: Whole) -> None:
  assert run(whole.folder).goodput == whole.done.goodput


@pytest.mark.parametrize("stops", [(), (7, 8, 9, 12)], ids=["unbroken", "restarted"])
def test_steps_that_are_not_finite_are_skipped_and_counted(
  tmp_path: Path, spoiled: Any, whole: Whole, stops: tuple[int, ...]
) -> None:
  spoiled({8: BAD, 9: BAD, 12: BAD})
  for at in stops:
    with pytest.raises(Interrupted):
      run(tmp_path, number=signal.SIGINT, at=at, skip_nonfinite=2)
  done, found = run(tmp_path, skip_nonfinite=2), lines(tmp_path)
  assert [line["step"] for line in found if line.get("skipped")] == [8, 9, 12] and done.skipped == 3
  assert (found[7]["loss"], found[7]["loss_hex"]) == (None, "nan")
  # A skipped step is none of the optimizer's, and the data goes on.
  usual = lines(whole.folder)
  assert [line["learning_rate"] for line in found[9:11]] == [line["learning_rate"] for line in usual[7:9]]
  assert curve(tmp_path)[:7] == curve(whole.folder)[:7] and [line["step"] for line in found] == list(range(1, 21))
  assert (done.first_loss, done.last_loss) == (found[0]["loss"], found[-1]["loss"])
  assert found[-1]["loss_hex"] == SKIPPED.setdefault("last", found[-1]["loss_hex"])


# What the unbroken run came to; the restarted one must come to the same.
SKIPPED: dict[str, str] = {}


def test_one_bad_step_more_than_allowed_stops_the_run_which_goes_on_when_more_are(tmp_path: Path, spoiled: Any) -> None:
  spoiled({8: BAD, 9: BAD})
  for _ in range(2):
    with pytest.raises(JaxchopError, match=r"step 9 has loss nan .*step 8 is saved.*recover\.skip_nonfinite"):
      run(tmp_path, skip_nonfinite=1)
    assert len(lines(tmp_path)) == 8 and checkpoints(tmp_path)[-1] == 8
  assert run(tmp_path, skip_nonfinite=2).skipped == 2


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(), (31, 33)], ids=["unbroken", "restarted"])
def test_a_spike_is_skipped_where_that_is_asked_for(
  tmp_path: Path, spoiled: Any, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]
) -> None:
  monkeypatch.setattr(watch, "WINDOW", 16)
  spoiled({32: HIGH})
  changes: dict[str, Any] = {"steps": 36, "checkpoint_every": 10}
  for at in stops:
    with pytest.raises(Interrupted):
      run(tmp_path, number=signal.SIGINT, at=at, spike="skip", **changes)
  done, found = run(tmp_path, spike="skip", **changes), lines(tmp_path)
  assert [line["step"] for line in found if line.get("spike")] == [32] and found[31]["skipped"]
  assert (done.spikes, done.skipped) == (1, 1)
  told = run(tmp_path / "warned", **changes)
  warned = lines(tmp_path / "warned")
  assert warned[31]["spike"] and "skipped" not in warned[31] and (told.spikes, told.skipped) == (1, 0)
  assert [line["loss_hex"] for line in warned[:32]] == [line["loss_hex"] for line in found[:32]]
  assert warned[32]["loss_hex"] != found[32]["loss_hex"]


def test_a_profile_of_some_steps_changes_none(tmp_path: Path, whole: Whole) -> None:
  run(tmp_path, profile_steps=2)
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))
  assert curve(tmp_path) == curve(whole.folder)


def test_tensorboard_has_every_step_once(tmp_path: Path, whole: Whole) -> None:
  from test_trackers import shown

  with pytest.raises(Interrupted):
    run(tmp_path, number=signal.SIGINT, at=9, track=("tensorboard",))
  run(tmp_path, track=("tensorboard",))
  points = shown(tmp_path / "tensorboard", "loss/train")
  assert [(step, np.float32(loss)) for step, loss, _ in points] == [
    (line["step"], np.float32(line["loss"])) for line in lines(whole.folder)
  ]


def test_a_tracker_without_its_package_is_refused_before_anything_is_written(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(UsageError, match=r"pip install 'jaxchop\[track\]'"):
    run(tmp_path / "run", track=("wandb",))
  assert not (tmp_path / "run").exists()


def test_what_is_told_is_plain_json(whole: Whole) -> None:
  done = dataclasses.replace(whole.done, model=None)
  assert json.loads(json.dumps(dataclasses.asdict(done), allow_nan=False))
