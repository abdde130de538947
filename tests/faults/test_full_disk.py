"""A full disk: training stops with the free space, the last good step stands, and with room the run goes on."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_run

from jaxchop.recover.checkpoint import load_weights
from jaxchop.recover.curve import read_curve


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
  """A file system of its own with room for a few checkpoints."""
  folder = tmp_path / "disk"
  folder.mkdir()
  if os.geteuid() != 0:
    pytest.skip("needs root, to mount a small file system")
  made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], capture_output=True)
  if made.returncode:
    pytest.skip(f"no small file system can be mounted here: {made.stderr.decode().strip()}")
  yield folder
  subprocess.run(["umount", str(folder)], check=True)


def program(folder: Path) -> tuple[int, str]:
  command = [sys.executable, "-W", "error", tiny_run.__file__, str(folder), "0", "-1", '{"fsdp": 1}', "99"]
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  return done.returncode, done.stderr


def test_a_full_disk_loses_nothing_that_was_saved(disk: Path) -> None:
  code, told = program(disk / "run")
  assert code == 1
  assert "cannot be saved" in told.splitlines()[-1] and "GB are free there; older checkpoints are" in told
  step = load_weights(disk / "run" / "checkpoints")[1]["step"]
  assert step >= 5 and step % 5 == 0
  subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
  assert program(disk / "run")[0] == 0
  assert [line["step"] for line in read_curve(disk / "run" / "metrics.jsonl")] == list(range(1, 21))
