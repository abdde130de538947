"""What is out of the ordinary is told, and decided by earlier steps alone, before and after a restart."""

import json
import logging
import math

import numpy as np
import pytest
from tiny_run import settings

from jaxchop.recover.watch import DEVIATIONS, WINDOW, Watch

LOSSES = [3 + 0.1 * math.sin(step) for step in range(1, 201)]


def watched(steps: int, **changes: object) -> Watch:
  watch = Watch(settings(**changes))
  for step in range(1, steps + 1):
    watch.note(step, LOSSES[step - 1], applied=True, skipped=0)
  return watch


def test_the_limit_is_six_deviations_above_the_mean_of_128_steps() -> None:
  before = np.array(LOSSES[198 - WINDOW : 198])
  assert watched(198).limit(200) == pytest.approx(before.mean() + DEVIATIONS * before.std(ddof=1))


def test_the_step_right_before_does_not_count_because_it_may_still_be_running() -> None:
  assert watched(199).limit(200) == watched(198).limit(200) != watched(199).limit(201)


def test_too_few_steps_say_nothing() -> None:
  assert watched(WINDOW // 2 - 1).limit(WINDOW // 2 + 1) == math.inf
  assert watched(WINDOW // 2).limit(WINDOW // 2 + 2) < math.inf


def test_only_spikes_that_are_to_be_skipped_are_kept_from_the_update() -> None:
  assert watched(100).allowed(102) == math.inf
  assert watched(100, spike="skip").allowed(102) == watched(100).limit(102)


@pytest.mark.parametrize("applied", [True, False])
def test_a_spike_is_marked_and_told_with_its_records(caplog: pytest.LogCaptureFixture, applied: bool) -> None:
  watch = watched(100)
  with caplog.at_level(logging.WARNING, logger="jaxchop"):
    marks = watch.note(101, 9.0, applied=applied, skipped=0)
  assert marks == {"spike": True} | ({} if applied else {"skipped": True})
  assert "step 101 has loss 9.000, beyond 3." in caplog.text and "records 400..403 of the reading order" in caplog.text
  assert ("it changed nothing" in caplog.text) is not applied


def test_a_loss_that_is_not_finite_is_told_and_kept_out_of_the_statistics(caplog: pytest.LogCaptureFixture) -> None:
  watch = watched(100)
  with caplog.at_level(logging.WARNING, logger="jaxchop"):
    assert watch.note(101, math.nan, applied=False, skipped=1) == {"skipped": True}
  assert "step 101 is not finite (loss nan, records 400..403" in caplog.text and watch.skipped == 1
  assert math.isfinite(watch.limit(103))


def test_it_goes_on_from_plain_json_as_if_nothing_had_been() -> None:
  watch = watched(150)
  watch.note(151, math.inf, applied=False, skipped=1)
  again = Watch(settings(), json.loads(json.dumps(watch.state(), allow_nan=False)))
  assert (again.skipped, again.limit(152), again.limit(153)) == (1, watch.limit(152), watch.limit(153))
