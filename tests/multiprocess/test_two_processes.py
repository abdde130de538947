"""Two processes train as one would, stop together whatever happens to one of them, and go on where they were."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import Records, settings, tiny_model

from jaxchop.recover.checkpoint import load_weights
from jaxchop.recover.curve import read_curve
from jaxchop.recover.loop import recover
from jaxchop.training import MeshConfig

# Two processes of four devices: copies of the model in each, weights, heads and vocabulary cut within.
MESH = '{"data": 2, "fsdp": 2, "tensor": 2}'


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
  """Exit code and standard error of each."""
  told = [process.communicate(timeout=300)[1] for process in processes]
  return [(process.returncode, words) for process, words in zip(processes, told, strict=True)]


def curve(folder: Path) -> list[tuple[int, str, float]]:
  return [(line["step"], line["loss_hex"], line["grad_norm"]) for line in read_curve(folder / "metrics.jsonl")]


def assert_same_losses(folder: Path, other: Path) -> None:
  got, wanted = curve(folder), curve(other)
  assert [step for step, *_ in got] == [step for step, *_ in wanted]
  losses = [[float.fromhex(loss) for _, loss, _ in found] for found in (got, wanted)]
  np.testing.assert_allclose(*losses, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """The run of one process on one device."""
  folder = tmp_path_factory.mktemp("alone")
  recover(tiny_model(), Records(), settings(), folder, meta={"data": "count"})
  return folder


def test_a_signal_to_one_stops_both_and_they_go_on(alone, tmp_path, start):
  """SIGTERM to the second process, and the end: one curve, and weights of the run of one."""
  first, second = ended(start(2, tmp_path, "SIGTERM", "7", mesh=MESH))
  assert (first[0], second[0]) == (75, 75)
  where = [words.splitlines()[-1].partition(", saved")[0] for _, words in (first, second)]
  assert where[0] == where[1] and where[0].startswith("SIGTERM after step ")
  saved = load_weights(tmp_path / "checkpoints")[1]["step"]
  assert where[0] == f"SIGTERM after step {saved} of 20" and 8 <= saved <= 10

  first, second = ended(start(2, tmp_path, mesh=MESH))
  assert (first[0], second[0]) == (0, 0) and f"Going on after step {saved} of" in first[1]
  assert not [line for line in second[1].splitlines() if "Recovering" in line]
  assert_same_losses(tmp_path, alone)
  ours, theirs = (load_weights(folder / "checkpoints")[0] for folder in (tmp_path, alone))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), ours, theirs)


@pytest.mark.slow
def test_a_kill_of_one_is_named_and_nothing_is_lost(alone, tmp_path, start):
  first, second = ended(start(2, tmp_path, "SIGKILL", "16", mesh=MESH))
  assert second[0] == -9 and first[0] == 1
  assert any("process 1 (" in line and ") is gone, after step" in line for line in first[1].splitlines())
  first, second = ended(start(2, tmp_path, mesh=MESH))
  # Of step 15's save it is open whether it was done before the kill.
  assert (first[0], second[0]) == (0, 0) and re.search("Going on after step 1[05] of", first[1])
  assert_same_losses(tmp_path, alone)


@pytest.mark.slow
def test_devices_and_processes_come_and_go(alone, tmp_path, start):
  """8 devices, then 4, 1, two processes of 4, and 8 again: the losses of one device, up to rounding."""
  for at, count, devices, mesh in (
    ("3", 1, 8, MESH),
    ("7", 1, 4, '{"fsdp": 2, "tensor": 2}'),
    ("11", 1, 1, '{"fsdp": 1}'),
    ("15", 2, 4, MESH),
    ("-1", 1, 8, '{"fsdp": 4, "tensor": 2}'),
  ):
    codes = [code for code, _ in ended(start(count, tmp_path, "SIGTERM", at, mesh=mesh, devices=devices))]
    assert codes == [0 if at == "-1" else 75] * count
  assert_same_losses(tmp_path, alone)


@pytest.mark.slow
def test_a_process_that_stalls_is_named_and_nothing_is_lost(alone, tmp_path, start):
  """The second process is stopped for a while by the system in the middle of its steps."""
  first, second = start(2, tmp_path, "SIGSTOP", "5", mesh=MESH)
  assert os.WIFSTOPPED(os.waitpid(second.pid, os.WUNTRACED)[1])
  time.sleep(45)
  second.send_signal(signal.SIGCONT)
  (code, told), (other, _) = ended([first, second])
  assert (code, other) == (0, 0)
  assert re.search(r"step \d+: \w.* for \d+ s; behind: process 1 \(.+\), ", told)
  assert_same_losses(tmp_path, alone)


@pytest.mark.slow
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
