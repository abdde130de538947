"""Two processes train as one would, stop together whatever happens to one of them, and go on where they were."""

import re
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import Records, settings, tiny_model

from jaxchop.config import MeshConfig
from jaxchop.recover.checkpoint import load_weights
from jaxchop.recover.curve import read_curve
from jaxchop.recover.loop import recover

# Two processes of two devices: rows and weights over both, heads and vocabulary within each.
MESH = '{"fsdp": 2, "tensor": 2}'


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
  """Exit code and standard error of each."""
  told = [process.communicate(timeout=300)[1] for process in processes]
  return [(process.returncode, words) for process, words in zip(processes, told, strict=True)]


def curve(folder: Path) -> list[tuple[int, str, float]]:
  return [(line["step"], line["loss_hex"], line["grad_norm"]) for line in read_curve(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """The run of one process on one device."""
  folder = tmp_path_factory.mktemp("alone")
  recover(tiny_model(), Records(), settings(), folder, meta={"data": "count"})
  return folder


def test_a_signal_to_one_stops_both_and_a_kill_of_one_is_named(alone, tmp_path, start):
  """SIGTERM to the second process, SIGKILL to it later, and the end: one curve, and weights of the run of one."""
  first, second = ended(start(2, tmp_path, "SIGTERM", "7", mesh=MESH))
  assert (first[0], second[0]) == (75, 75)
  where = [words.splitlines()[-1].partition(", saved")[0] for _, words in (first, second)]
  assert where[0] == where[1] and where[0].startswith("SIGTERM after step ")
  saved = load_weights(tmp_path / "checkpoints")[1]["step"]
  assert where[0] == f"SIGTERM after step {saved} of 20" and 8 <= saved <= 10

  first, second = ended(start(2, tmp_path, "SIGKILL", "16", mesh=MESH))
  assert second[0] == -9 and first[0] == 1
  assert any(line.startswith("process 1 (") and ") is gone, after step" in line for line in first[1].splitlines())

  first, second = ended(start(2, tmp_path, mesh=MESH))
  # Of step 15's save it is open whether it was done before the kill.
  assert (first[0], second[0]) == (0, 0) and re.search("Going on after step 1[05] of", first[1])
  assert not [line for line in second[1].splitlines() if "Recovering" in line]
  got, wanted = curve(tmp_path), curve(alone)
  assert [step for step, *_ in got] == [step for step, *_ in wanted]
  np.testing.assert_allclose(
    [float.fromhex(loss) for _, loss, _ in got], [float.fromhex(loss) for _, loss, _ in wanted], rtol=0, atol=1e-5
  )
  ours, theirs = (load_weights(folder / "checkpoints")[0] for folder in (tmp_path, alone))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), ours, theirs)


def test_an_error_of_one_stops_both_at_the_same_step_and_nothing_is_lost(tmp_path, start):
  """The second process gets no batch of step 5; then one process of four devices goes on, from where both were."""
  first, second = ended(start(2, tmp_path, "NONE", "4", mesh=MESH))
  assert (first[0], second[0]) == (1, 1)
  assert second[1].splitlines()[-1].startswith("the data ends before the batch of step 5")
  assert "process 1 (" in first[1].splitlines()[-1] and "the data ends before the batch of step 5" in first[1]
  assert load_weights(tmp_path / "checkpoints")[1]["step"] == 4 == curve(tmp_path)[-1][0]
  config = settings(mesh=MeshConfig(fsdp=4))
  done = recover(tiny_model(), Records(), config, tmp_path, meta={"data": "count"})
  assert done.steps == 20 and [step for step, *_ in curve(tmp_path)] == list(range(1, 21))
