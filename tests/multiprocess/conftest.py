"""Real processes over gloo, four devices each, that train the tiny model of tests/recover."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent / "recover" / "tiny_run.py"
Start = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture(scope="package")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
  """What one process has compiled serves the later ones."""
  return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture
def launch(compiled: str) -> Iterator[Start]:
  """Starts a program in `count` processes that find each other: `launch(2, "program.py", "argument")`."""
  started: list[subprocess.Popen[str]] = []

  def begin(count: int, *command: str, devices: int = 4) -> list[subprocess.Popen[str]]:
    with socket.create_server(("", 0)) as server:
      port = server.getsockname()[1] - 1
    cache = {"JAX_COMPILATION_CACHE_DIR": compiled, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    found = []
    for index in range(count):
      told = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count)}
      environment = os.environ | cache | told | {"JAX_PROCESS_ID": str(index), "JAX_NUM_CPU_DEVICES": str(devices)}
      python = [sys.executable, "-W", "error", *command]
      found.append(subprocess.Popen(python, stderr=subprocess.PIPE, text=True, env=environment))
    started.extend(found)
    return found

  yield begin
  for process in started:
    process.kill()
    process.communicate()


@pytest.fixture
def start(launch: Start) -> Start:
  """Starts `count` processes of one run: `start(2, FOLDER, "SIGTERM", "9", mesh='{"fsdp": 8}')`."""

  def begin(count: int, folder: Path, *arguments: str, mesh: str, devices: int = 4) -> list[subprocess.Popen[str]]:
    return launch(count, str(PROGRAM), str(folder), *(arguments or ("0", "-1")), mesh, devices=devices)

  return begin
