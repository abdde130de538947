"""The processes of one run find each other: on a Cloud TPU, GKE, Slurm or Open MPI by themselves, else by variables.

`JAX_COORDINATOR_ADDRESS=host:port JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0` (and 1) start two processes by hand. Before JAX
joins them, which ends a process without a word about who is missing, they greet each other over the port behind that of
the coordinator, and compare versions and settings.
"""

import contextlib
import importlib.metadata
import logging
import os
import socket
import sys
import time
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple

import jax

# No public function says how many processes a cluster has without joining them.
from jax._src import clusters

from jaxchop.errors import Interrupted, JaxchopError, Preempted, UsageError
from jaxchop.parallel.channel import ALONE, Channel, Line

log = logging.getLogger("jaxchop")
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Seconds in which one who has connected says who he is.
_POLITE = 5.0


class Cluster(NamedTuple):
  """Which process of how many this is, and where process 0 listens."""

  host: str
  port: int
  count: int
  index: int
  # Devices that are this process's alone, where the cluster says so.
  devices: tuple[int, ...] | None = None


@contextlib.contextmanager
def joined(about: Mapping[str, Any], limit: float) -> Generator[Channel]:
  """Joins the processes of this run while the block runs; one that is alone goes on at once.

  `about` is what all of them must have been told alike; `limit`, in seconds, is how long they wait for each other.
  Must come before anything asks JAX for its devices. Raises JaxchopError naming who is missing, UsageError on what
  differs.
  """
  cluster = find_cluster(limit)
  if cluster is None or cluster.count == 1:
    yield ALONE
    return
  channel = greet(cluster, about, limit)
  try:
    if cluster.index:
      # Process 0 speaks, the others warn.
      logging.getLogger("jaxchop").setLevel(logging.WARNING)
    log.info("hosts: %d processes on %s", cluster.count, ", ".join(dict.fromkeys(channel.names)))
    with _output_kept_clean():
      _join_devices(cluster, limit)
      yield channel
      _leave(channel)
  except (Preempted, Interrupted):
    # All of them stop.
    _leave(channel)
    raise
  except BaseException as error:
    channel.close(str(error) or type(error).__name__)
    raise


@contextlib.contextmanager
def _output_kept_clean() -> Generator[None]:
  """Sends to standard error what libraries in C print on standard output, which is for results."""
  sys.stdout.flush()
  before = os.dup(1)
  os.dup2(2, 1)
  try:
    yield
  finally:
    sys.stdout.flush()
    os.dup2(before, 1)
    os.close(before)


def _leave(channel: Channel) -> None:
  """Waits until nobody wants anything of the others any more; process 0, which serves them, is the last to go."""
  channel.gather("leave", True)
  if channel.index:
    jax.distributed.shutdown()
  channel.gather("left", True)
  if channel.index == 0:
    jax.distributed.shutdown()
  channel.close()


def find_cluster(limit: float) -> Cluster | None:
  """Returns what the variables say, else what JAX makes of the machine's surroundings; None for a process alone."""
  told = [os.environ.get(name) for name in _VARIABLES]
  address, count, index, devices = None, None, None, None
  if any(told):
    if not all(told):
      missing = ", ".join(name for name, value in zip(_VARIABLES, told, strict=True) if not value)
      raise UsageError(f"{missing}: not set, although others of {', '.join(_VARIABLES)} are; set all three")
    address, count, index = told[0], _number(_VARIABLES[1], told[1]), _number(_VARIABLES[2], told[2])
  else:
    find = clusters.ClusterEnv.auto_detect_unset_distributed_params
    address, count, index, devices = find(None, None, None, None, None, int(limit))
  if address is None or count is None or index is None:
    return None
  host, _, port = address.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 65535:
    raise UsageError(f"{_VARIABLES[0]} is {address}; it is host:port of process 0")
  if not 0 <= index < count:
    raise UsageError(f"{_VARIABLES[2]} is {index}; with {count} processes it is one of 0..{count - 1}")
  return Cluster(host, int(port), count, index, None if devices is None else tuple(devices))


def require_one(command: str, limit: float) -> None:
  """Raises UsageError where this is one of several processes; the command works in one."""
  cluster = find_cluster(limit)
  if cluster is not None and cluster.count > 1:
    raise UsageError(
      f"{command} works in one process, and this is one of {cluster.count}: start it once, on a single host, without "
      f"{_VARIABLES[1]}; it uses all devices there"
    )


def greet(cluster: Cluster, about: Mapping[str, Any], limit: float) -> Channel:
  """Connects the processes; see `joined`."""
  card = {"index": cluster.index, "name": socket.gethostname(), "about": {**_versions(), **about}}
  return _receive_all(cluster, card, limit) if cluster.index == 0 else _call(cluster, card, limit)


def _receive_all(cluster: Cluster, card: dict[str, Any], limit: float) -> Channel:
  cards, lines, end = {0: card}, {}, time.monotonic() + limit
  try:
    server = socket.create_server(("", cluster.port + 1), backlog=cluster.count)
  except OSError as error:
    raise JaxchopError(
      f"process 0 cannot listen on port {cluster.port + 1} ({error.strerror}); end what uses it or take another "
      f"{_VARIABLES[0]}"
    ) from error
  with server:
    while len(cards) < cluster.count and not (wrong := _difference(cards)):
      server.settimeout(max(end - time.monotonic(), 0.01))
      try:
        connection, _ = server.accept()
      except TimeoutError:
        wrong = _absent(cluster, cards, limit)
        break
      _admit(connection, cards, lines)
  wrong = wrong or _difference(cards)
  names = [cards[i]["name"] for i in sorted(cards)]
  for line in lines.values():
    line.send({"refused": wrong} if wrong else {"names": names})
  if wrong:
    for line in lines.values():
      line.close()
    raise JaxchopError(wrong)
  return Channel(0, names, lines)


def _admit(connection: socket.socket, cards: dict[int, dict[str, Any]], lines: dict[int, Line]) -> None:
  connection.settimeout(_POLITE)
  line = Line(connection)
  card = line.receive()
  line.forever()
  if not isinstance(card, dict) or not {"index", "name", "about"} <= card.keys():
    # Not one of ours: whatever scans ports here.
    line.close()
    return
  index = card["index"]
  if index in cards:
    line.send({"refused": f"{card['name']} and {cards[index]['name']} both say that they are process {index}"})
    line.close()
    return
  cards[index], lines[index] = card, line


def _call(cluster: Cluster, card: dict[str, Any], limit: float) -> Channel:
  where, end = (cluster.host, cluster.port + 1), time.monotonic() + limit
  answer = line = None
  # Process 0 may not listen yet, and one that gives up tells those who have come, a moment after its own limit.
  while answer is None:
    try:
      line = Line(socket.create_connection(where, timeout=max(end - time.monotonic(), 0.01) + _POLITE))
      line.send(card)
      answer = line.receive()
      if answer is None or "refused" in answer:
        line.close()
    except OSError:
      time.sleep(0.1)
    if answer is None and time.monotonic() > end:
      raise JaxchopError(
        f"process {card['index']} ({card['name']}) has waited {limit:.0f} s for process 0 at {where[0]}:{where[1]}; "
        "start it, or set its address right"
      )
  assert line is not None
  if "refused" in answer:
    raise JaxchopError(answer["refused"])
  line.forever()
  return Channel(card["index"], answer["names"], {0: line})


def _absent(cluster: Cluster, cards: Mapping[int, Any], limit: float) -> str:
  known = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
  names = {i: f" ({known[i]})" if len(known) == cluster.count else "" for i in range(cluster.count)}
  missing = ", ".join(f"process {i}{names[i]}" for i in range(cluster.count) if i not in cards)
  return f"{missing} of {cluster.count} did not come within {limit:.0f} s; start all of them, or look why not"


def _difference(cards: Mapping[int, Mapping[str, Any]]) -> str:
  """Returns in words the first thing that a process was told otherwise than process 0."""
  first = cards[0]["about"]
  for index, card in cards.items():
    about = card["about"]
    for name in first.keys() | about.keys():
      if first.get(name) != about.get(name):
        return (
          f"{name} is {about.get(name)} for process {index} ({card['name']}) and {first.get(name)} for process 0; "
          "start all of them alike"
        )
  return ""


def _versions() -> dict[str, str]:
  return {name: importlib.metadata.version(name) for name in ("jaxchop", "jax", "jaxlib")}


def _number(name: str, value: str | None) -> int:
  if value is None or not value.isdecimal():
    raise UsageError(f"{name} is {value}; it is a number")
  return int(value)


def _join_devices(cluster: Cluster, limit: float) -> None:
  # A lost process is our channel's to notice and to name: JAX would abort the others. So is SIGTERM ours.
  jax.config.update("jax_enable_recoverability", True)
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(
    f"{cluster.host}:{cluster.port}",
    cluster.count,
    cluster.index,
    cluster.devices,
    initialization_timeout=max(int(limit), 10),
  )
