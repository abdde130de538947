"""Before its first step a run says whether its checkpoints find room."""

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import Records, settings, tiny_model

from jaxchop.model.tree import flatten
from jaxchop.recover import room
from jaxchop.recover.checkpoint import Keep, Unsaved
from jaxchop.recover.loop import recover
from jaxchop.recover.room import at_once
from jaxchop.training import RecoverConfig

# Of `tiny_run`: weights and two moments in float32, and counts of steps.
EACH = 3 * 4 * sum(leaf.size for leaf in flatten(tiny_model()).values())


def most(config: RecoverConfig, step: int, losses: list[float]) -> tuple[int, int]:
  """Returns how many checkpoints are there after `step` and at most from then on, saved and deleted one by one."""
  there: dict[int, float | None] = {}
  before, top = 0, 0
  for now in range(1, config.steps + 1):
    moments = [config.checkpoint_every, *([config.evaluate_every] if config.evaluate_every else [])]
    if now == config.steps or any(now % every == 0 for every in moments):
      there[now] = losses[now % len(losses)] if config.evaluate_every and now % config.evaluate_every == 0 else None
      top = max(top, len(there)) if now > step else top
      stay = Keep.by(config).chosen(there)
      there = {at: loss for at, loss in there.items() if at in stay}
    before = len(there) if now == step else before
  return before, top


NUMBER = st.integers(0, 4)


@given(
  steps=st.integers(1, 40),
  share=st.floats(0, 1, exclude_max=True),
  every=st.integers(1, 12),
  evaluate=st.integers(0, 12),
  keep=st.tuples(st.integers(1, 4), NUMBER, NUMBER),
  losses=st.lists(st.floats(0, 10), min_size=1, max_size=9),
)
def test_no_more_checkpoints_lie_there_than_are_reckoned_with(
  steps: int, share: float, every: int, evaluate: int, keep: tuple[int, int, int], losses: list[float]
) -> None:
  last, by_step, best = keep
  config = RecoverConfig(
    steps=steps,
    checkpoint_every=every,
    evaluate_every=evaluate,
    keep_checkpoints=last,
    keep_every=by_step,
    keep_best=best,
  )
  step = int(steps * share)
  there, top = most(config, step, losses)
  assert top <= there + at_once(config, step, there)
  if not by_step and not best:
    assert top == there + at_once(config, step, there)


@pytest.mark.parametrize(("checkpoints", "told"), [(2.5, True), (3.5, False)])
def test_too_little_room_for_all_of_them_is_told(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, checkpoints: float, told: bool
) -> None:
  monkeypatch.setattr(room, "free_bytes", lambda folder: int(checkpoints * EACH))
  with caplog.at_level(logging.WARNING, "jaxchop"):
    recover(tiny_model(), Records(), settings(), tmp_path)
  assert ("up to 3 more checkpoints of 96\u00a0kB will lie there at once" in caplog.text) == told


def test_no_room_for_one_of_them_ends_the_run_before_its_first_step(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(room, "free_bytes", lambda folder: EACH - 1)
  with pytest.raises(Unsaved, match=r"checkpoints: a checkpoint of this run takes 96\skB, and .* are free there; make"):
    recover(tiny_model(), Records(), settings(), tmp_path)
  assert not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_text()


def test_what_a_killed_save_left_counts_as_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  left = tmp_path / "checkpoints" / "00000005.saving"
  left.mkdir(parents=True)
  monkeypatch.setattr(room, "free_bytes", lambda folder: 0 if left.exists() else 9 * EACH)
  assert recover(tiny_model(), Records(), settings(steps=1), tmp_path).steps == 1
