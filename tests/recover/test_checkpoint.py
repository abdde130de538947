"""A checkpoint is good when its digests hold; the newest good one is used, and nothing good is ever lost."""

import gc
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny_model

from jaxchop.errors import JaxchopError
from jaxchop.model.tree import flatten
from jaxchop.recover.checkpoint import Checkpoints, Keep, load_weights

# Orbax leaves a coroutine behind when a load fails, and Python complains of it when it is collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
STATE = {"count": jnp.int32(7), "mu": {"w": jnp.arange(6.0).reshape(2, 3)}}


@pytest.fixture(autouse=True)
def collected():
  """What a failed load leaves behind is collected here, where the complaint is expected, not in a test that follows."""
  yield
  gc.collect()


def model_of(step: int) -> dict[str, Any]:
  """A model that differs from step to step."""
  return {"embedding": jnp.full((4, 3), step + 0.5), "layers": [{"w": jnp.arange(5.0) * step}]}


def saved(folder: Path, *steps: int, keep: int = 9) -> Checkpoints:
  checkpoints = Checkpoints(folder, Keep(keep))
  for step in steps:
    checkpoints.save(step, model_of(step), STATE, {"tokens": step * 100})
  checkpoints.wait()
  return checkpoints


def restored_step(folder: Path) -> int | None:
  """The step that is restored, whose arrays must be exactly those saved."""
  found = Checkpoints(folder).restore_latest(model_of(0), STATE)
  if found is None:
    return None
  jax.tree.map(np.testing.assert_array_equal, found.model, model_of(found.step))
  jax.tree.map(np.testing.assert_array_equal, found.opt_state, STATE)
  assert found.meta == {"tokens": found.step * 100}
  return found.step


def test_a_model_and_its_optimizer_come_back_bit_by_bit(tmp_path: Path) -> None:
  model = tiny_model()
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(3, model, STATE, {})
  checkpoints.wait()
  found = checkpoints.restore_latest(model, STATE)
  assert found is not None and found.step == 3
  jax.tree.map(np.testing.assert_array_equal, found.model, model)
  assert found.opt_state["count"].dtype == jnp.int32


def test_arrays_may_be_donated_while_they_are_saved(tmp_path: Path) -> None:
  checkpoints = Checkpoints(tmp_path)
  double = jax.jit(lambda tree: jax.tree.map(lambda a: a * 2, tree), donate_argnums=0)
  model = double({"w": jnp.arange(500_000.0)})
  checkpoints.save(1, model, STATE, {})
  for _ in range(5):
    model = double(model)
  checkpoints.wait()
  np.testing.assert_array_equal(load_weights(tmp_path)[0]["w"], np.arange(500_000.0) * 2)


def test_an_empty_folder_holds_nothing_to_restore(tmp_path: Path) -> None:
  assert Checkpoints(tmp_path / "none").restore_latest(model_of(0), STATE) is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
  saved(tmp_path, 1, 2, 3, 4, keep=2)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["00000003", "00000004"]
  assert restored_step(tmp_path) == 4


def test_keeping_none_keeps_one(tmp_path: Path) -> None:
  saved(tmp_path, 1, 2, keep=0)
  assert restored_step(tmp_path) == 2


def test_some_are_kept_for_good_and_the_best_for_their_loss(tmp_path: Path) -> None:
  checkpoints = Checkpoints(tmp_path, Keep(last=1, every=4, best=2))
  for step, loss in enumerate([2.0, 1.5, 1.7, 1.9, 1.6, 1.8, 1.65], start=1):
    checkpoints.save(step, model_of(step), STATE, {"held_out_loss": loss} if step != 6 else {})
  checkpoints.wait()
  assert sorted(int(p.name) for p in tmp_path.iterdir()) == [2, 4, 5, 7]


def damage(file: Path, kind: str) -> None:
  content = bytearray(file.read_bytes())
  match kind:
    case "deleted":
      file.unlink()
    case "emptied":
      file.write_bytes(b"")
    case "halved":
      file.write_bytes(content[: len(content) // 2])
    case "one byte short":
      file.write_bytes(content[:-1])
    case "flipped":
      content[len(content) * 5 // 8] ^= 16
      file.write_bytes(content)


@pytest.mark.parametrize("kind", ["deleted", "emptied", "halved", "one byte short", "flipped"])
def test_damage_to_any_file_is_harmless_or_noticed(tmp_path: Path, kind: str) -> None:
  good, work = tmp_path / "good", tmp_path / "work"
  saved(good, 1, 2)
  skipped = 0
  for file in sorted(p for p in (good / "00000002").rglob("*") if p.is_file() and p.stat().st_size):
    shutil.copytree(good, work)
    damage(work / file.relative_to(good), kind)
    step = restored_step(work)
    assert step in (1, 2), file
    skipped += step == 1
    shutil.rmtree(work)
  assert skipped >= 3


def test_what_is_skipped_is_said_and_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
  saved(tmp_path, 1, 2, 3)
  (tmp_path / "00000003" / "manifest.json").unlink()
  text = (tmp_path / "00000002" / "manifest.json").read_text()
  (tmp_path / "00000002" / "manifest.json").write_text(text.replace('"tokens": 200', '"tokens": 999'))
  with caplog.at_level(logging.WARNING, "jaxchop"):
    assert restored_step(tmp_path) == 1
  assert "00000003 is skipped: it has no manifest.json" in caplog.text
  assert "00000002 is skipped: its manifest.json has changed" in caplog.text


def test_a_changed_value_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
  saved(tmp_path, 1, 2)
  shutil.rmtree(tmp_path / "00000002" / "state")
  shutil.copytree(tmp_path / "00000001" / "state", tmp_path / "00000002" / "state")
  with caplog.at_level(logging.WARNING, "jaxchop"):
    assert restored_step(tmp_path) == 1
  assert "00000002 is skipped: model embedding has changed" in caplog.text


def test_a_damaged_checkpoint_counts_for_nothing_when_old_ones_go(tmp_path: Path) -> None:
  saved(tmp_path, 1, 2)
  (tmp_path / "00000002" / "manifest.json").write_text("{")
  checkpoints = Checkpoints(tmp_path, Keep(1))
  assert checkpoints.restore_latest(model_of(0), STATE).step == 1
  checkpoints.save(2, model_of(2), STATE, {"tokens": 200})
  checkpoints.wait()
  assert restored_step(tmp_path) == 2
  assert (tmp_path / "00000002.damaged").exists() and not (tmp_path / "00000001").exists()


def test_what_jaxchop_did_not_write_stays(tmp_path: Path) -> None:
  for name in ("00000000", "00000001", "notes", "00000002.old"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").write_text("mine")
  saved(tmp_path, 5, 6, 7, keep=1)
  assert {p.name for p in tmp_path.iterdir()} == {"00000000", "00000001", "notes", "00000002.old", "00000007"}


def test_what_a_killed_process_left_is_ignored_and_then_removed(tmp_path: Path) -> None:
  saved(tmp_path, 1)
  shutil.copytree(tmp_path / "00000001", tmp_path / "00000002.saving")
  shutil.copytree(tmp_path / "00000001", tmp_path / "00000000.deleting")
  assert restored_step(tmp_path) == 1
  saved(tmp_path, 3)
  assert {p.name for p in tmp_path.iterdir()} == {"00000001", "00000003"}


def dropped_layer(model: dict[str, Any]) -> dict[str, Any]:
  return {**model, "layers": []}


def other_shape(model: dict[str, Any]) -> dict[str, Any]:
  return {**model, "embedding": jnp.zeros((4, 4))}


def other_dtype(model: dict[str, Any]) -> dict[str, Any]:
  return {**model, "embedding": model["embedding"].astype(jnp.bfloat16)}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dropped_layer, r"model layers\.0\.w is float32 \[5\] there and absent here"),
    (other_shape, r"model embedding is float32 \[4, 3\] there and float32 \[4, 4\] here"),
    (other_dtype, r"model embedding is float32 \[4, 3\] there and bfloat16 \[4, 3\] here"),
  ],
)
def test_another_model_is_refused(tmp_path: Path, change: Callable[..., Any], message: str) -> None:
  saved(tmp_path, 1)
  with pytest.raises(JaxchopError, match=message):
    Checkpoints(tmp_path).restore_latest(change(model_of(0)), STATE)


def test_what_is_not_finite_is_not_saved(tmp_path: Path) -> None:
  checkpoints = saved(tmp_path, 1)
  checkpoints.save(2, {**model_of(2), "embedding": jnp.full((4, 3), jnp.nan)}, STATE, {})
  with pytest.raises(
    JaxchopError, match=r"00000002: cannot be saved \(model embedding holds a value that is not finite"
  ):
    checkpoints.wait()
  assert restored_step(tmp_path) == 1


def test_a_failed_save_is_told_by_the_next_poll(tmp_path: Path) -> None:
  folder = tmp_path / "file"
  folder.write_text("in the way")
  checkpoints = Checkpoints(folder)
  checkpoints.save(1, model_of(1), STATE, {})
  with pytest.raises(JaxchopError, match=r"cannot be saved .* are free there"):
    while True:
      checkpoints.poll()


def test_weights_are_read_without_the_optimizer(tmp_path: Path) -> None:
  saved(tmp_path, 1, 2)
  weights, meta = load_weights(tmp_path)
  assert meta == {"tokens": 200} and set(weights) == set(flatten(model_of(2)))
  np.testing.assert_array_equal(weights["embedding"], model_of(2)["embedding"])
  assert load_weights(tmp_path, 1)[1] == {"tokens": 100}


def test_weights_that_are_not_there_are_an_error(tmp_path: Path) -> None:
  saved(tmp_path, 1)
  with pytest.raises(JaxchopError, match="no whole checkpoint of step 7"):
    load_weights(tmp_path, 7)
  with pytest.raises(JaxchopError, match="no whole checkpoint is here"):
    load_weights(tmp_path / "nowhere")


def test_the_manifest_says_what_was_saved_and_by_what(tmp_path: Path) -> None:
  saved(tmp_path, 1)
  manifest = json.loads((tmp_path / "00000001" / "manifest.json").read_text())
  assert manifest["step"] == 1 and manifest["meta"] == {"tokens": 100} and "jax" in manifest["versions"]
  leaf = manifest["leaves"]["optimizer"]["mu.w"]
  assert leaf["dtype"] == "float32" and leaf["shape"] == [2, 3] and len(leaf["digest"]) == 16
