"""babysit.sh: a run comes to its end over preemptions and over the babysitter's own death, or is given up."""

import contextlib
import re
import signal
import subprocess
import time

import pytest
from tpu_cloud import NASTY, checksum

COMMAND = ["run", f"{NASTY}.yaml"]
TOLD = [*COMMAND, "--out", "/mnt/jaxchop/runs/my-run"]
ONCE = ["create", "setup", "install", "start"]
STATUS = "worker.sh status"
STOCKOUT = "There is no more capacity in the zone"


@pytest.mark.parametrize("settings", [{}, {"KIND": "vm"}, {"SLICES": 2, "TIER": "on-demand"}])
def test_all_goes_well(cloud, settings):
  cloud.configure(**settings)
  result = cloud.call("babysit", *COMMAND)
  assert result.returncode == 0, result.stderr
  assert cloud.did() == ONCE
  assert "my-run is done: gs://my-bucket/runs/my-run" in result.stderr
  assert "chop is still there and paid for" in result.stderr


@pytest.mark.parametrize(
  ("settings", "gone"),
  [
    ({}, {"nodes": {"chop": {"state": "PREEMPTED"}}}),
    ({"KIND": "vm"}, {"nodes": {"chop": {"state": "PREEMPTED"}}}),
    ({"KIND": "vm"}, {"nodes": {"chop": None}}),
    ({"SLICES": 2}, {"nodes": {"chop-1": {"state": "PREEMPTED"}}}),
  ],
)
def test_preempted_in_the_middle_it_is_created_and_launched_again(cloud, settings, gone):
  cloud.configure(**settings)
  cloud.ends("hang", 0)
  cloud.rule(STATUS, after=2, becomes=gone)
  result = cloud.call("babysit", *COMMAND)
  assert result.returncode == 0, result.stderr
  vanished = gone["nodes"].get("chop", ...) is None
  assert cloud.did() == [*ONCE, *([] if vanished else ["delete"]), *ONCE]
  node = "chop-0" if "SLICES" in settings else "chop"
  assert cloud.launches == 2
  assert cloud.launched(node) == TOLD


def test_exit_code_75_is_launched_again_on_the_same_machine(cloud):
  cloud.ends(75, 75, 0)
  result = cloud.call("babysit", *COMMAND)
  assert result.returncode == 0, result.stderr
  assert cloud.did().count("create") == 1 and cloud.did().count("start") == 3


@pytest.mark.parametrize("code", [1, 137])
def test_any_other_code_ends_it_and_shows_the_last_lines(cloud, code):
  cloud.ends(code)
  result = cloud.call("babysit", *COMMAND)
  assert result.returncode == code
  assert f"ends with {code}" in result.stdout
  assert f"the run ended with exit code {code}; its last lines are above" in result.stderr
  assert cloud.did().count("start") == 1


def test_a_failure_because_a_slice_was_lost_is_a_preemption(cloud):
  cloud.configure(SLICES=2)
  cloud.ends(1, 0)
  # The other slice is called preempted only after the run has failed.
  gone = {"nodes": {"chop-1": {"state": "PREEMPTED"}}}
  ended = "".join(f"jaxchop-status w{i} ended 1 {checksum(TOLD)}\n" for i in range(4))
  cloud.rule(STATUS, after=1, out=ended, becomes=gone)
  result = cloud.call("babysit", *COMMAND)
  assert result.returncode == 0, result.stderr
  assert cloud.launches == 2


def test_a_failure_on_a_machine_that_is_repaired_is_launched_again(cloud):
  cloud.configure(KIND="vm")
  cloud.ends(1, 0)
  states = ["REPAIRING", "REPAIRING", "READY"]
  # The workers have ended before the machine is called ill.
  ended = "".join(f"jaxchop-status w{i} ended 1 {checksum(TOLD)}\n" for i in range(2))
  cloud.rule(STATUS, after=1, out=ended, becomes={"nodes": {"chop": {"state": states}}})
  result = cloud.call("babysit", *COMMAND)
  assert result.returncode == 0, result.stderr
  assert cloud.did() == [*ONCE, *ONCE[1:]]


def test_end_to_end_on_workers_of_this_machine(cloud):
  cloud.real_workers = True
  cloud.ends("hang", 75, 0)
  cloud.rule(STATUS, after=2, becomes={"requests": {"chop": {"state": "SUSPENDED"}}})
  result = cloud.call("babysit", *COMMAND)
  assert result.returncode == 0, result.stderr
  assert cloud.did() == [*ONCE, "delete", *ONCE, *ONCE[1:]]
  assert cloud.launched() == TOLD
  # The log is there when the machine is gone.
  log = (cloud.folder / "bucket" / "runs" / "my-run" / "logs" / "chop-w1.log").read_text()
  assert "ends with 75" in log and "ends with 0" in log


def test_waits_for_capacity_with_longer_and_longer_pauses(cloud):
  cloud.rule(" create ", err=f"ERROR: {STOCKOUT}\n", times=8)
  result = cloud.call("babysit", *COMMAND)
  assert result.returncode == 0, result.stderr
  naps = (cloud.folder / "naps").read_text().split()
  assert naps[:8] == ["30", "60", "120", "240", "480", "900", "900", "900"]


def test_a_lack_of_quota_ends_it_and_what_is_left_of_it(cloud):
  left = {"requests": {"chop": {"state": "FAILED", "owner": "me"}}}
  cloud.rule(" create ", err="ERROR: Quota limit 'TPUS' has been exceeded.\n", becomes=left)
  result = cloud.call("babysit", "--teardown", *COMMAND)
  assert result.returncode == 1 and "the quota of my-project" in result.stderr
  assert cloud.did() == ["create", "delete"] and not cloud.requests


def test_half_created_slices_are_created_anew(cloud):
  cloud.configure(SLICES=2)
  half = {"requests": {"chop": {"state": "FAILED", "why": STOCKOUT}}, "nodes": {"chop-1": None}}
  cloud.rule(" describe chop .*state.state", after=1, becomes=half)
  result = cloud.call("babysit", *COMMAND)
  assert result.returncode == 0, result.stderr
  assert cloud.did() == ["create", "delete", *ONCE]


def test_gives_up_after_five_starts_that_do_not_last(cloud):
  cloud.ends(*[75] * 9)
  result = cloud.call("babysit", *COMMAND)
  assert result.returncode == 1
  assert "5 starts in a row did not last 10 minutes" in result.stderr
  assert cloud.launches == 5


def test_workers_that_no_longer_answer_are_replaced(cloud):
  cloud.ends("hang", 0)
  cloud.rule(STATUS, after=1, times=20, err="Connection timed out\n")
  cloud.rule("worker.sh stop", err="Connection timed out\n")
  result = cloud.call("babysit", *COMMAND)
  assert result.returncode == 0, result.stderr
  assert cloud.did() == [*ONCE, "stop", "delete", *ONCE]


def test_a_few_lost_answers_do_no_harm(cloud):
  cloud.rule(STATUS, after=1, times=5, err="Connection timed out\n")
  # One of two workers answers.
  cloud.rule(STATUS, after=1, times=5, out="jaxchop-status w0 ended 1 1\n")
  result = cloud.call("babysit", *COMMAND)
  assert result.returncode == 0, result.stderr
  assert cloud.did() == ONCE


def test_a_network_that_fails_while_it_waits_does_no_harm(cloud):
  cloud.ends("hang", 0)
  process = started(cloud)
  cloud.rule(" describe chop ", times=3, err="ERROR: Connection aborted\n")
  cloud.rule(" describe chop ", times=1, err="ERROR: Quota exceeded for requests per minute\n")
  cloud.rule(STATUS, after=2, becomes={"requests": {"chop": {"state": "SUSPENDED"}}})
  out, err = process.communicate(timeout=60)
  assert process.returncode == 0, out + err
  assert cloud.did() == [*ONCE, "delete", *ONCE]


def test_a_machine_that_restarted_is_launched_again(cloud):
  broken = {"state": "broken", "sum": checksum(TOLD)}
  cloud.rule(STATUS, after=2, becomes={"nodes": {"chop": {"workers": [broken, broken]}}})
  cloud.ends("hang", 0)
  result = cloud.call("babysit", *COMMAND)
  assert result.returncode == 0, result.stderr
  assert "its machine has restarted" in result.stderr
  assert cloud.did() == [*ONCE, *ONCE[1:]]


def started(cloud):
  """A babysitter that waits for a run."""
  process = cloud.start(cloud.command("babysit", *COMMAND))
  end = time.monotonic() + 30
  while sum(bool(re.search(STATUS, " ".join(call))) for call in cloud.calls) < 3:
    assert process.poll() is None and time.monotonic() < end
    time.sleep(0.02)
  return process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_and_started_anew_it_takes_over(cloud, number):
  cloud.ends("hang", 0)
  process = started(cloud)
  # bash loses a signal that comes while it begins to take a command's output, so it may be sent again.
  end = time.monotonic() + 60
  while process.poll() is None:
    assert time.monotonic() < end
    process.send_signal(number)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.communicate(timeout=5)
  assert process.returncode != 0
  assert cloud.did() == ONCE
  cloud.rule(STATUS, after=2, becomes={"requests": {"chop": {"state": "SUSPENDED"}}})
  result = cloud.call("babysit", *COMMAND)
  assert result.returncode == 0, result.stderr
  assert "my-run runs already on chop; waiting for it" in result.stderr
  assert cloud.did() == [*ONCE, "setup", "delete", *ONCE]


@pytest.mark.parametrize("moment", ["create", "install", "start"])
def test_killed_at_any_moment_it_takes_over(cloud, moment):
  on = " create " if moment == "create" else f"worker.sh {moment}"
  process = cloud.start(cloud.command("babysit", *COMMAND))
  end = time.monotonic() + 30
  while not any(re.search(on, " ".join(call)) for call in cloud.calls):
    assert process.poll() is None and time.monotonic() < end
  process.kill()
  process.communicate(timeout=60)
  result = cloud.call("babysit", *COMMAND)
  assert result.returncode == 0, result.stderr
  assert cloud.did().count("create") == 1 and cloud.launched() == TOLD


def test_another_command_is_neither_disturbed_nor_waited_for(cloud):
  cloud.ends("hang", 7)
  process = started(cloud)
  process.kill()
  process.communicate(timeout=60)
  result = cloud.call("babysit", "--teardown", *COMMAND, "--recover.steps", "9")
  assert result.returncode == 1 and "another command runs on chop" in result.stderr
  assert "delete" not in cloud.did()
  result = cloud.call("launch", *COMMAND, "--recover.steps", "9")
  assert result.returncode == 75 and "another command runs here" in result.stderr
  result = cloud.call("sync")
  assert result.returncode == 0, result.stderr
  assert cloud.call("launch", *COMMAND).returncode == 0
  assert cloud.codes == [7] and cloud.launched() == TOLD
  result = cloud.call("teardown")
  assert result.returncode == 0 and cloud.did()[-2:] == ["stop", "delete"]


def test_a_run_that_was_done_before_is_done(cloud):
  assert cloud.call("babysit", *COMMAND).returncode == 0
  cloud.calls.clear()
  assert cloud.call("babysit", *COMMAND).returncode == 0
  assert cloud.did() == ["setup"]


@pytest.mark.parametrize("code", [0, 1])
def test_teardown_at_the_end(cloud, code):
  cloud.ends(code)
  result = cloud.call("babysit", "--teardown", *COMMAND)
  assert result.returncode == code
  assert cloud.did()[-1] == "delete" and cloud.requests == cloud.nodes == {}
