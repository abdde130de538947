"""A build that is killed at random moments ends with the bytes of one that was not, and leaves no process behind."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_build import build

PROGRAM = Path(__file__).with_name("tiny_build.py")
KILLS = 3


def files(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def finished(folder):
  journal = folder / "building.jsonl"
  return journal.read_text().count("\n") if journal.exists() else 0


def children(pid):
  return [
    child for thread in Path(f"/proc/{pid}/task").iterdir() for child in (thread / "children").read_text().split()
  ]


def killed_after(folder, shards):
  """Starts a build, kills it once so many shards more are finished, and returns the processes it had started."""
  process = subprocess.Popen([sys.executable, str(PROGRAM), str(folder)], stderr=subprocess.DEVNULL)
  before, started = finished(folder), []
  while process.poll() is None and finished(folder) < before + shards:
    started = children(process.pid) or started
    time.sleep(0.002)
  process.kill()
  process.wait()
  return started


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_kills_change_nothing_and_leave_no_process(tmp_path):
  build(tmp_path / "whole", workers=1)
  shards = len(list((tmp_path / "whole").glob("*.array_record")))
  draw = random.Random(0)
  started = [killed_after(tmp_path / "killed", draw.randrange(1, shards // KILLS)) for _ in range(KILLS)]
  assert 0 < finished(tmp_path / "killed") < shards
  build(tmp_path / "killed", workers=1)
  assert files(tmp_path / "killed") == files(tmp_path / "whole")
  deadline = time.monotonic() + 60
  while left := [pid for pids in started for pid in pids if Path(f"/proc/{pid}").exists()]:
    assert time.monotonic() < deadline, left
    time.sleep(0.1)
