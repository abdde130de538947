"""Processes find each other or say, in one line and in time, who is missing or differs."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.parallel.channel import ALONE
from jaxchop.parallel.hosts import Cluster, find_cluster, greet, joined

SETTINGS = {"recover.steps": 20}


@pytest.fixture
def port() -> int:
  """A port whose neighbour is free."""
  with socket.create_server(("", 0)) as server:
    return server.getsockname()[1] - 1


def greeted(port: int, *cards: tuple[int, dict], count: int = 2, limit: float = 10.0) -> list[str]:
  """What each of these processes gets: the names of all, or an error."""

  def one(index: int, about: dict) -> str:
    try:
      channel = greet(Cluster("localhost", port, count, index), about, limit)
    except JaxchopError as error:
      return str(error)
    channel.close()
    return f"{channel.index} of {channel.count}"

  with ThreadPoolExecutor(len(cards)) as pool:
    return list(pool.map(lambda card: one(*card), cards))


def test_processes_that_come_in_any_order_meet(port):
  assert greeted(port, (2, SETTINGS), (0, SETTINGS), (1, SETTINGS), count=3) == ["2 of 3", "0 of 3", "1 of 3"]


def test_who_is_missing_is_named_to_all_that_came(port, monkeypatch):
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "t0,t1,t2")
  said = greeted(port, (0, SETTINGS), (2, SETTINGS), count=3, limit=0.7)
  assert said == ["process 1 (t1) of 3 did not come within 1 s; start all of them, or look why not"] * 2


def test_a_first_process_that_is_missing_is_named(port):
  (said,) = greeted(port, (1, SETTINGS), limit=0.3)
  assert f"has waited 0 s for process 0 at localhost:{port + 1}; start it" in said


def test_other_settings_are_named(port):
  first, second = greeted(port, (0, SETTINGS), (1, {"recover.steps": 30}))
  assert first == second and "recover.steps is 30 for process 1" in first and "20 for process 0" in first


def test_two_processes_of_one_number_are_refused(port):
  said = greeted(port, (0, SETTINGS), (1, SETTINGS), (1, SETTINGS), count=3, limit=1.0)
  assert sum("both say that they are process 1" in words for words in said) == 1
  assert "process 2 of 3 did not come" in said[0]


def test_a_stranger_is_sent_away(port):
  def stranger() -> bytes:
    for _ in range(100):
      try:
        with socket.create_connection(("localhost", port + 1)) as line:
          line.sendall(json.dumps(["hello"]).encode() + b"\n")
          return line.recv(100)
      except OSError:
        time.sleep(0.05)
    return b"nobody listened"

  with ThreadPoolExecutor(1) as pool:
    answer = pool.submit(stranger)
    assert greeted(port, (0, SETTINGS), limit=2.0) == [
      "process 1 of 2 did not come within 2 s; start all of them, or look why not"
    ]
    assert answer.result() == b""


def test_a_port_in_use_is_named(port):
  with socket.create_server(("", port + 1)):
    (said,) = greeted(port, (0, SETTINGS))
  assert f"process 0 cannot listen on port {port + 1}" in said and "JAX_COORDINATOR_ADDRESS" in said


@pytest.mark.parametrize(
  ("told", "said"),
  [
    (("h:1", None, None), "JAX_NUM_PROCESSES, JAX_PROCESS_ID: not set, although others"),
    (("h:1", "2", "2"), r"JAX_PROCESS_ID is 2; with 2 processes it is one of 0\.\.1"),
    (("h:1", "two", "0"), "JAX_NUM_PROCESSES is two; it is a number"),
    (("h", "2", "0"), "JAX_COORDINATOR_ADDRESS is h; it is host:port"),
    (("h:99999", "2", "0"), "JAX_COORDINATOR_ADDRESS is h:99999"),
  ],
)
def test_variables_that_make_no_sense_are_named(monkeypatch, told, said):
  for name, value in zip(("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"), told, strict=True):
    if value is not None:
      monkeypatch.setenv(f"JAX_{name}", value)
  with pytest.raises(UsageError, match=said):
    find_cluster(1.0)


def test_a_process_of_no_cluster_is_alone():
  assert find_cluster(1.0) is None
  with joined(SETTINGS, 1.0) as hosts:
    assert hosts is ALONE


def test_slurm_is_found(monkeypatch):
  for name, value in {
    "JOB_ID": "7",
    "STEP_NODELIST": "n1",
    "NTASKS": "1",
    "PROCID": "0",
    "LOCALID": "0",
    "STEP_NUM_TASKS": "1",
  }.items():
    monkeypatch.setenv(f"SLURM_{name}", value)
  found = find_cluster(1.0)
  assert found is not None and (found.host, found.count, found.index) == ("n1", 1, 0)
