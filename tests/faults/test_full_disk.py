"""A full disk: training stops with the free space, the last good step stands, and with room the run goes on."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
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
  assert "cannot be saved" in told.splitlines()[-1] and "are free there; older checkpoints are" in told
  step = load_weights(disk / "run" / "checkpoints")[1]["step"]
  assert step >= 5 and step % 5 == 0
  subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
  assert program(disk / "run")[0] == 0
  assert [line["step"] for line in read_curve(disk / "run" / "metrics.jsonl")] == list(range(1, 21))


def test_a_disk_without_room_for_a_checkpoint_is_told_before_the_first_step(disk: Path) -> None:
  subprocess.run(["mount", "-o", "remount,size=80k", str(disk)], check=True)
  code, told = program(disk / "run")
  assert code == 1
  assert re.search(r"/run/checkpoints: a checkpoint of this run takes \d+\skB, and \d+\.?\d*\skB are free", told)
  assert "Compiling" not in told and not read_curve(disk / "run" / "metrics.jsonl")


def test_the_command_says_so_in_one_line(disk: Path, tiny_folder: Callable[..., Path]) -> None:
  # A few checkpoints of 4 MB, so that the disk is full in the middle of an array.
  subprocess.run(["mount", "-o", "remount,size=25m", str(disk)], check=True)
  text = disk.with_name("text.txt")
  text.write_text("\n\n".join(f"A disk has room for layer {i} and for no other." for i in range(400)))
  command = [sys.executable, "-c", "import sys; from jaxchop.cli import main; sys.exit(main())", "recover"]
  command += [str(tiny_folder(hidden_size=128, intermediate_size=256)), "-o", str(disk / "run")]
  command += ["--data.source", str(text), "--steps", "99", "--seq_len", "16", "--batch_size", "1"]
  command += ["--checkpoint_every", "1", "--keep_checkpoints", "99"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1
  assert "up to 99 more checkpoints" in done.stderr
  assert "cannot be saved" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
