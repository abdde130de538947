"""`kill -9` at any moment, in saves too: every restart goes on, and the run is bitwise the one without a kill."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import storm
import tiny_run

from jaxchop.recover.checkpoint import load_weights
from jaxchop.recover.curve import read_curve

pytestmark = pytest.mark.optimised


def curve(folder: Path) -> list[tuple[int, str, float]]:
  return [(line["step"], line["loss_hex"], line["grad_norm"]) for line in read_curve(folder / "metrics.jsonl")]


# tests/recover/test_sight.py and tests/multiprocess kill a process at each push.
@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, 60])
def test_a_run_that_is_killed_again_and_again_is_the_run_without_a_kill(tmp_path: Path, kills: int) -> None:
  environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(tiny_run.__file__).parent), *sys.path])}
  environment |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"), "JAX_NUM_CPU_DEVICES": "1"}
  environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  command = [sys.executable, storm.__file__, str(tmp_path / "runs"), str(kills), "0"]
  told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
  found = json.loads(told.stdout.splitlines()[-1])
  print(found)
  assert (found["kills"], found["failed"], found["last"]) == (kills, 0, 0), told.stderr[-2000:]
  assert kills < 60 or found["in_save"] >= 10, "too few kills fell into a save to say anything of it"
  calm = tmp_path / "runs" / "calm"
  wanted, weights = curve(calm), load_weights(calm / "checkpoints")[0]
  assert len(wanted) == storm.CHANGES["steps"]
  for run in range(found["runs"]):
    folder = tmp_path / "runs" / str(run)
    assert curve(folder) == wanted
    ours = load_weights(folder / "checkpoints")[0]
    assert all(np.array_equal(ours[name], weights[name]) for name in weights)
