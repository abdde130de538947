"""A recovery is one run, however often it ends and goes on."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from tiny_run import Records, records, settings, tiny_model

from jaxchop.data.batch import Batch, batch_of
from jaxchop.errors import Interrupted, JaxchopError, Preempted, UsageError
from jaxchop.model.llama import Llama
from jaxchop.model.tree import flatten, unflatten
from jaxchop.recover import store
from jaxchop.recover.checkpoint import load_weights
from jaxchop.recover.curve import read_curve
from jaxchop.recover.held_out import HeldOut
from jaxchop.recover.journal import read_journal
from jaxchop.recover.loop import recover
from jaxchop.recover.objective import summed_loss
from jaxchop.recover.outcome import Recovered

# What is equal to the last bit must be so in the programs that everybody gets.
pytestmark = pytest.mark.optimised


def run(folder: Path, *, number: int = 0, at: int = -1, meta: Any = None, **changes: Any) -> Recovered:
  return recover(tiny_model(), Records(number, at), settings(**changes), folder, meta=meta or {"data": "count"})


def curve(folder: Path) -> list[tuple[int, str, float, float, int]]:
  """What must be equal between two runs: all but the time."""
  keys = "step", "loss_hex", "grad_norm", "learning_rate", "tokens"
  return [tuple(line[key] for key in keys) for line in read_curve(folder / "metrics.jsonl")]


def checkpoints(folder: Path) -> list[int]:
  return sorted(int(p.name) for p in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recovered]:
  """A run that nothing disturbed."""
  folder = tmp_path_factory.mktemp("whole")
  return folder, run(folder)


def test_a_recovery_lowers_the_loss_and_says_what_it_took(whole: tuple[Path, Recovered]) -> None:
  folder, done = whole
  lines = read_curve(folder / "metrics.jsonl")
  assert done.last_loss < done.first_loss and (done.first_loss, done.last_loss) == (lines[0]["loss"], lines[-1]["loss"])
  assert (done.steps, done.tokens) == (20, 20 * 4 * 12) == (lines[-1]["step"], lines[-1]["tokens"])
  assert done.seconds == pytest.approx(sum(line["seconds"] for line in lines)) and done.compile_seconds > 0
  assert done.tokens_per_second == pytest.approx(done.tokens / done.seconds)
  assert [line["step"] for line in lines] == list(range(1, 21))
  assert all(float.fromhex(line["loss_hex"]) == line["loss"] for line in lines)


def test_the_last_step_is_saved_and_can_be_opened_as_a_model(whole: tuple[Path, Recovered]) -> None:
  folder, done = whole
  assert checkpoints(folder) == [15, 20]
  weights, meta = load_weights(folder / "checkpoints")
  assert (meta["step"], meta["tokens"], meta["data"], meta["config"]["seed"]) == (20, done.tokens, "count", 0)
  jax.tree.map(np.testing.assert_array_equal, weights, flatten(done.model))


def test_the_given_model_is_left_as_it_was(tmp_path: Path) -> None:
  model = tiny_model()
  recover(model, Records(), settings(), tmp_path)
  jax.tree.map(np.testing.assert_array_equal, model, tiny_model())


def test_a_finished_run_is_not_run_again(whole: tuple[Path, Recovered]) -> None:
  folder, done = whole
  before = (folder / "metrics.jsonl").read_text()
  again = run(folder)
  assert (folder / "metrics.jsonl").read_text() == before and again.compile_seconds == 0
  jax.tree.map(np.testing.assert_array_equal, again.model, done.model)
  assert dataclasses.replace(again, model=None, compile_seconds=0) == dataclasses.replace(
    done, model=None, compile_seconds=0
  )


def test_ten_and_ten_steps_are_twenty(whole: tuple[Path, Recovered], tmp_path: Path) -> None:
  with pytest.raises(Preempted, match=r"SIGTERM after step 10 of 20, saved in .*run the same command again"):
    run(tmp_path, number=signal.SIGTERM, at=9)
  assert checkpoints(tmp_path)[-1] == 10
  done = run(tmp_path)
  assert curve(tmp_path) == curve(whole[0])
  jax.tree.map(np.testing.assert_array_equal, done.model, whole[1].model)


def test_a_restart_after_every_few_steps_changes_nothing(whole: tuple[Path, Recovered], tmp_path: Path) -> None:
  for last in (0, 1, 7, 13, 17):
    with pytest.raises(Interrupted):
      run(tmp_path, number=signal.SIGINT, at=last)
  run(tmp_path)
  assert curve(tmp_path) == curve(whole[0])


def test_earlier_handlers_stand_again_afterwards(tmp_path: Path) -> None:
  # A shell that runs the tests in the background lets them ignore SIGINT.
  given = signal.signal(signal.SIGINT, signal.default_int_handler)
  before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  with pytest.raises(Preempted):
    run(tmp_path, number=signal.SIGTERM, at=0)
  assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
  with pytest.raises(KeyboardInterrupt):
    signal.raise_signal(signal.SIGINT)
  signal.signal(signal.SIGINT, given)


def program(folder: Path, *arguments: str) -> subprocess.Popen[str]:
  command = [sys.executable, "-W", "error", tiny_run.__file__, str(folder), *arguments]
  return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_signal_while_saving_is_a_save_and_an_exit(
  whole: tuple[Path, Recovered], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  written, write = [], store.write

  def disturbed(path: Path, items: Any) -> Any:
    if not written:
      signal.raise_signal(signal.SIGTERM)
    written.append(path)
    return write(path, items)

  monkeypatch.setattr(store, "write", disturbed)
  with pytest.raises(Preempted, match="SIGTERM after step"):
    run(tmp_path)
  assert load_weights(tmp_path / "checkpoints")[1]["step"] == checkpoints(tmp_path)[-1] == len(curve(tmp_path)) < 20
  run(tmp_path)
  assert curve(tmp_path) == curve(whole[0])


def test_a_signal_while_measuring_is_a_save_and_an_exit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  windows = np.concatenate([records(900 + n) for n in range(3)])
  changes = {"evaluate_every": 4}
  recover(tiny_model(), Records(), settings(**changes), tmp_path / "calm", held_out=windows)
  batches: list[int] = []
  measured = HeldOut._batch

  def disturbed(self: HeldOut, ids: np.ndarray) -> Batch:
    batches.append(len(ids))
    if len(batches) == 5:
      signal.raise_signal(signal.SIGTERM)
      # The watcher hears of it in a thread of its own.
      time.sleep(0.5)
    return measured(self, ids)

  monkeypatch.setattr(HeldOut, "_batch", disturbed)
  with pytest.raises(Preempted, match="SIGTERM after step 8 of 20"):
    recover(tiny_model(), Records(), settings(**changes), tmp_path, held_out=windows)
  assert load_weights(tmp_path / "checkpoints")[1]["step"] == 8
  recover(tiny_model(), Records(), settings(**changes), tmp_path, held_out=windows)
  assert curve(tmp_path) == curve(tmp_path / "calm")


@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_while_compiling_is_a_save_and_an_exit(tmp_path: Path, number: int, code: int) -> None:
  with program(tmp_path) as process:
    for line in process.stderr:
      if "Compiling the training step" in line:
        process.send_signal(number)
        break
    _, told = process.communicate()
  assert process.returncode == code
  assert f"{signal.Signals(number).name} after step" in told.splitlines()[-1]
  assert load_weights(tmp_path / "checkpoints")[1]["step"] == checkpoints(tmp_path)[-1]


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
  with program(tmp_path) as process:
    for line in process.stderr:
      if "Compiling the training step" in line:
        process.send_signal(signal.SIGTERM)
      if "once more ends at once" in line:
        process.send_signal(signal.SIGTERM)
        break
    process.communicate()
  assert process.returncode == 128 + signal.SIGTERM
  assert not (tmp_path / "checkpoints").exists()


def test_a_loss_that_is_not_finite_stops_the_run_at_its_last_good_step(
  whole: tuple[Path, Recovered], tmp_path: Path
) -> None:
  class Poisoned(Records):
    def from_step(self, step: int, rows: np.ndarray) -> Generator[Batch, None, None]:
      for batch in super().from_step(step, rows):
        step += 1
        yield batch._replace(weight=batch.weight * np.float32(np.nan if step == 8 else 1))

  with pytest.raises(JaxchopError, match=r"step 8 has loss nan.*step 7 is saved; lower recover\.optimizer") as caught:
    recover(tiny_model(), Poisoned(), settings(), tmp_path)
  assert "\n" not in str(caught.value)
  assert checkpoints(tmp_path)[-1] == 7 and curve(tmp_path) == curve(whole[0])[:7]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda ids: ids[:, 1:], r"batch of step 4 has shape \[4, 12\], not \[4, 13\]"),
    (lambda ids: ids + 1, r"batch of step 4 has tokens outside 0\.\.60; pack the data with this model's tokenizer"),
    (None, "the data ends before the batch of step 4"),
  ],
)
def test_data_that_does_not_fit_stops_the_run_and_loses_nothing(tmp_path: Path, change: Any, message: str) -> None:
  class Bad(Records):
    def from_step(self, step: int, rows: np.ndarray) -> Generator[Batch, None, None]:
      yield from (batch_of(records(n)[rows]) for n in range(step, 3))
      if change is not None:
        yield batch_of(change(np.full((4, 13), 60, np.int32)))

  with pytest.raises(JaxchopError, match=message):
    recover(tiny_model(), Bad(), settings(), tmp_path)
  assert checkpoints(tmp_path) == [3] and len(curve(tmp_path)) == 3


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"meta": {"data": "other"}}, "begun with data count, not other"),
    ({"batch_size": 2}, r"begun with recover\.batch_size 4, not 2"),
    ({"steps": 30}, r"begun with recover\.steps 20, not 30"),
  ],
)
def test_a_run_goes_on_only_as_it_began(whole: tuple[Path, Recovered], changes: Any, message: str) -> None:
  with pytest.raises(UsageError, match=message):
    run(whole[0], **changes)


def test_the_held_out_loss_is_measured_in_between_and_says_which_checkpoint_stays(tmp_path: Path) -> None:
  windows = np.concatenate([records(900), records(901)])[:6]
  changes = {"evaluate_every": 4, "keep_best": 1, "keep_checkpoints": 1, "checkpoint_every": 20}
  recover(tiny_model(), Records(), settings(**changes), tmp_path, held_out=windows)
  found = {e["step"]: e["loss"] for e in read_journal(tmp_path / "journal.jsonl") if e["event"] == "held_out"}
  assert sorted(found) == [4, 8, 12, 16, 20] and found[20] < found[4]
  meta = load_weights(tmp_path / "checkpoints", 20)[1]
  assert meta["held_out_loss"] == found[20]
  weights = load_weights(tmp_path / "checkpoints", 20)[0]
  model = unflatten(tiny_model(), {name: jnp.asarray(weight) for name, weight in weights.items()})
  wanted = summed_loss(model, batch_of(windows)) / windows[:, 1:].size
  assert found[20] == pytest.approx(float(wanted), abs=1e-6)
  assert set(checkpoints(tmp_path)) == {20, min(found, key=found.get)}


def test_the_model_is_measured_otherwise_too_and_left_at_once_when_there_is_no_time(tmp_path: Path) -> None:
  windows, steps = records(900), []

  def along(model: Llama, stopped: Callable[[], bool]) -> dict[str, dict[str, Any]] | None:
    steps.append(len(steps))
    if len(steps) == 3:
      signal.raise_signal(signal.SIGTERM)
      while not stopped():
        time.sleep(0.01)
      return None
    kernel = model.layers[0].attention.q.kernel[...]
    return {"largest": {"value": float(abs(kernel).max()), "error": None, "unit": "number"}}

  changes = {"evaluate_every": 4, "keep_checkpoints": 9}
  with pytest.raises(Preempted, match="SIGTERM after step 12 of 20"):
    recover(tiny_model(), Records(), settings(**changes), tmp_path, held_out=windows, along=along)
  recover(tiny_model(), Records(), settings(**changes), tmp_path, held_out=windows, along=along)
  found = [event for event in read_journal(tmp_path / "journal.jsonl") if event["event"] == "measured"]
  assert [event["step"] for event in found] == [4, 8, 16, 20]
  weights = load_weights(tmp_path / "checkpoints", 8)[0]
  assert found[1]["figures"]["largest"]["value"] == np.abs(weights["layers.0.attention.q.kernel"]).max()
  recover(tiny_model(), Records(), settings(evaluate_every=4), tmp_path / "calm", held_out=windows)
  assert curve(tmp_path) == curve(tmp_path / "calm")


@pytest.mark.parametrize(
  ("changes", "message"),
  [({"keep_best": 1}, r"keep_best: nothing says"), ({"evaluate_every": 2}, r"needs held-out windows of 13 tokens")],
)
def test_a_measurement_without_windows_is_refused(tmp_path: Path, changes: Any, message: str) -> None:
  with pytest.raises(UsageError, match=message):
    run(tmp_path, **changes)


def test_another_model_is_refused(whole: tuple[Path, Recovered]) -> None:
  with pytest.raises(JaxchopError, match=r"model layers\.2\.\S+ is float32 .* there and absent here"):
    recover(tiny_model(2), Records(), settings(), whole[0], meta={"data": "count"})


def test_metrics_are_plain_json_whose_numbers_are_exact(whole: tuple[Path, Recovered]) -> None:
  for text in (whole[0] / "metrics.jsonl").read_text().splitlines():
    line = json.loads(text)
    assert jnp.float32(line["loss"]).item().hex() == line["loss_hex"]
    assert set(line) - {"save_seconds"} == {
      *("step", "loss", "loss_hex", "grad_norm", "learning_rate", "tokens", "seconds", "tokens_per_second"),
      *("mfu", "data_wait", "time"),
    }
    assert line["seconds"] > 0 and line["data_wait"] >= 0 and line["mfu"] > 0
