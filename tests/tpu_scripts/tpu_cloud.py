"""A recording stand-in for gcloud and the cloud behind it, in this process; the `gcloud` on PATH only asks it.

Nodes, requests and the bucket are dicts. A rule makes the cloud answer otherwise once its turn has come: with quota
errors, lost machines, workers that do not answer. Workers are simulated, or, where `real_workers` is set, home folders
in which the very commands run that are sent over ssh, with stand-ins for systemd, gcsfuse and the like.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# By its place: some tests leave nothing on PATH.
ENV = shutil.which("env") or "env"
STAND_INS = Path(__file__).parent / "stand_ins"
# A recipe, and with it a checkout, may be called anything.
NASTY = 'it\'s a "nasty" $(touch pwned) `touch pwned`; *\\ & name'
SETTINGS = {
  "PROJECT": "my-project",
  "ZONE": "us-west4-a",
  "NAME": "chop",
  "OWNER": "me",
  "TYPE": "v5litepod-16",
  "VERSION": "v2-alpha-tpuv5-lite",
  "BUCKET": "my-bucket",
  "RUN": "my-run",
}
# Sends its arguments, and prints what lies in the two files that it is told of. As ssh does, it takes what it can hear.
GCLOUD = """#!/usr/bin/env bash
[[ $4 != ssh ]] || cat >/dev/null
exec 9<>/dev/tcp/127.0.0.1/PORT
printf '%s\\0' "$#" "$PWD" "$@" >&9
read -r code reply <&9
[[ ! -s $reply.out ]] || printf '%s\\n' "$(<"$reply.out")"
[[ ! -s $reply.err ]] || printf '%s\\n' "$(<"$reply.err")" >&2
exit "$code"
"""


class Refused(Exception):
  """What gcloud complains of."""


@dataclasses.dataclass
class Rule:
  """Calls that hold the pattern `on`: after the first `after` of them, `times` of them are answered otherwise."""

  on: str
  after: int = 0
  times: int = 1
  out: str = ""
  err: str = ""
  code: int | None = None
  # {"nodes": {name: changes, or None for a node that is gone}}, and so for requests, before the call is answered.
  becomes: dict[str, dict[str, dict[str, Any] | None]] = dataclasses.field(default_factory=dict)


class Cloud:
  """Calls the scripts with stand-ins on PATH, and knows what was asked of gcloud."""

  def __init__(self, folder: Path, checkout: Path):
    self.folder, self.checkout = folder, checkout
    self.settings = folder / f"{NASTY}.settings"
    self.calls: list[list[str]] = []
    self.bucket: str | None = "True"
    self.requests: dict[str, dict[str, Any]] = {}
    self.nodes: dict[str, dict[str, Any]] = {}
    self.rules: list[Rule] = []
    self.workers, self.real_workers = 2, False
    self.codes: list[Any] = []
    self._server = socket.create_server(("127.0.0.1", 0))
    self._started: list[subprocess.Popen[str]] = []
    threading.Thread(target=self._serve, daemon=True).start()
    self._lock = threading.Lock()
    sleep = shutil.which("sleep")
    assert sleep is not None
    quick = f'#!/bin/sh\necho "$1" >>"{folder}/naps"\nexec "{sleep}" 0.01\n'
    (folder / "bin").mkdir()
    for name, text in {"gcloud": GCLOUD.replace("PORT", str(self._server.getsockname()[1])), "sleep": quick}.items():
      self.tool(name, text)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    self.environment = os.environ | {"PATH": path, "CLOUD": str(folder), "REAL_SLEEP": sleep}
    self.configure()
    self.ends()

  def tool(self, name: str, text: str) -> None:
    path = self.folder / "bin" / name
    path.write_text(text)
    path.chmod(0o755)

  def configure(self, **changes: Any) -> None:
    lines = [f"{name}={value}" for name, value in (SETTINGS | changes).items()]
    self.settings.write_text("# ours\n\n" + "\n".join(lines) + "\n")

  def ends(self, *codes: Any) -> None:
    """How one launch of jaxchop after the other ends: an exit code, or "hang"; with 0 from then on."""
    self.codes = list(codes)
    (self.folder / "ends").write_text("".join(f"{code}\n" for code in codes))

  def rule(self, on: str, **answer: Any) -> None:
    self.rules.append(Rule(on, **answer))

  def call(self, script: str, *arguments: str, dry: bool = False) -> subprocess.CompletedProcess[str]:
    return self.run(self.command(script, *arguments, dry=dry))

  def command(self, script: str, *arguments: str, dry: bool = False) -> list[str]:
    options = ["--settings", str(self.settings), *(["--dry-run"] if dry else [])]
    return ["bash", str(self.checkout / "tpu_scripts" / f"{script}.sh"), *options, *arguments]

  def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
    process = self.start(command)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, out, err)

  def start(self, command: list[str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    # A shell that runs the tests in the background lets them ignore SIGINT, which bash then cannot trap.
    started = subprocess.Popen(
      [ENV, "--default-signal=INT", *command],
      cwd=self.folder,
      env=self.environment,
      stdin=pipe,
      stdout=pipe,
      stderr=pipe,
      text=True,
    )
    self._started.append(started)
    return started

  def did(self) -> list[str]:
    """What was asked of gcloud, but for looking: "create", "delete", and of the workers "setup", "start", …"""
    verbs = []
    for call in self.calls:
      verb = call[2] if call[0] == "storage" else call[3]
      if verb == "ssh":
        verb = next(word for word in call if word.startswith("--command=")).split()[2]
      if verb not in ("describe", "status", "scp"):
        verbs.append(verb)
    return verbs

  @property
  def launches(self) -> int:
    return self.did().count("start")

  def home(self, node: str = "chop", worker: int = 0) -> Path:
    return self.folder / "workers" / node / str(worker)

  def launched(self, node: str = "chop", worker: int = 0) -> list[str]:
    """The arguments of jaxchop on a worker."""
    if self.real_workers:
      return (self.home(node, worker) / "arguments").read_text().split("\0")[:-1]
    return self.nodes[node]["workers"][worker]["command"]

  def close(self) -> None:
    for one in self._started:
      one.kill()
    self._server.close()
    for node in list(self.nodes):
      self._switch_off(node)

  def _serve(self) -> None:
    with contextlib.suppress(OSError):
      while True:
        threading.Thread(target=self._answer, args=(self._server.accept()[0],), daemon=True).start()

  def _answer(self, connection: socket.socket) -> None:
    with connection, connection.makefile("rwb") as stream, self._lock:
      heard = b""
      while heard.count(b"\0") < 2 or heard.count(b"\0") < int(heard.split(b"\0")[0]) + 2:
        heard += stream.read1()
      _, place, *arguments = heard.decode().split("\0")[:-1]
      self.calls.append(arguments)
      code, out, err = self._played(arguments, Path(place))
      reply = self.folder / f"reply-{len(self.calls)}"
      for end, text in ((".out", out), (".err", err)):
        reply.with_suffix(end).write_text(text)
      # The one that asked may have been killed meanwhile.
      with contextlib.suppress(OSError):
        stream.write(f"{code} {reply}\n".encode())
        stream.flush()

  def _played(self, arguments: list[str], place: Path) -> tuple[int, str, str]:
    line = " ".join(arguments)
    for rule in self.rules:
      if not rule.times or not re.search(rule.on, line):
        continue
      if rule.after:
        rule.after -= 1
        continue
      rule.times -= 1
      for kind, changes in rule.becomes.items():
        for name, change in changes.items():
          if change is None:
            getattr(self, kind).pop(name, None)
          else:
            getattr(self, kind).setdefault(name, {}).update(change)
      if rule.out or rule.err or rule.code is not None:
        return rule.code if rule.code is not None else int(bool(rule.err)), rule.out, rule.err
      break
    try:
      return self._done(arguments, place)
    except Refused as error:
      return 1, "", f"ERROR: (gcloud) {error}"

  def _done(self, arguments: list[str], place: Path) -> tuple[int, str, str]:
    words = [word for word in arguments if not word.startswith("--")]
    flags = dict(word[2:].partition("=")[::2] for word in arguments if word.startswith("--"))
    match words:
      case ["storage", "buckets", "describe", _]:
        if self.bucket is None:
          raise Refused("gs://bucket not found: 404.")
        return 0, self.bucket, ""
      case ["storage", "rsync", _, _]:
        return 0, "", ""
      case ["compute", "tpus", ("queued-resources" | "tpu-vm") as group, verb, *names]:
        assert {"project", "zone", "quiet"} <= flags.keys()
        if verb == "scp":
          return self._copy(group, flags, place / names[0], *names[1].split(":"))
        return getattr(self, f"_{verb}")(group, flags, *names)
    raise Refused(f"Invalid choice: {words}")

  def _all(self, group: str) -> dict[str, dict[str, Any]]:
    return self.requests if group == "queued-resources" else self.nodes

  def _find(self, group: str, name: str) -> dict[str, Any]:
    if name not in self._all(group):
      raise Refused(f"NOT_FOUND: Resource '{name}' was not found")
    return self._all(group)[name]

  def _create(self, group: str, flags: dict[str, str], name: str) -> tuple[int, str, str]:
    if name in self._all(group):
      raise Refused(f"ALREADY_EXISTS: {name}")
    owner = flags["labels"].removeprefix("jaxchop_owner=")
    nodes = [flags.get("node-id", name)]
    if "node-count" in flags:
      nodes = [f"{flags['node-prefix']}-{i}" for i in range(int(flags["node-count"]))]
    for node in nodes:
      self._switch_off(node)
      self.nodes[node] = {"state": "READY", "owner": owner}
    if group == "queued-resources":
      self.requests[name] = {"state": "ACTIVE", "owner": owner, "nodes": nodes}
    return 0, "", ""

  def _describe(self, group: str, flags: dict[str, str], name: str) -> tuple[int, str, str]:
    found = self._find(group, name)
    state = found["state"]
    if isinstance(state, list):
      # Gone through, a look each.
      found["state"] = state[1:] if len(state) > 1 else state[0]
      state = state[0]
    return 0, f"{state}\t{found.get('owner', '')}\t{found.get('why', '')}", ""

  def _delete(self, group: str, flags: dict[str, str], name: str) -> tuple[int, str, str]:
    found = self._all(group).pop(name, None)
    if found is None:
      raise Refused(f"NOT_FOUND: Resource '{name}' was not found")
    if group == "queued-resources":
      assert "force" in flags
      for node in [] if found.get("leaves_nodes") else found.get("nodes", []):
        self._switch_off(node)
        self.nodes.pop(node, None)
    else:
      self._switch_off(name)
    return 0, "", ""

  def _reached(self, group: str, flags: dict[str, str], name: str) -> Iterator[tuple[str, int]]:
    nodes = self._find(group, name).get("nodes", [name])
    if flags.get("node", "all") != "all":
      nodes = [nodes[int(flags["node"])]]
    for node in nodes:
      if self.nodes.get(node, {}).get("state") != "READY":
        raise Refused(f"{node} cannot be reached: Connection timed out")
      yield from ((node, i) for i in range(self.workers) if flags["worker"] in ("all", str(i)))

  def _ssh(self, group: str, flags: dict[str, str], name: str) -> tuple[int, str, str]:
    reached = list(self._reached(group, flags, name))
    if self.real_workers:
      sent = [self.on_worker(self.home(*worker), flags["command"]) for worker in reached]
      told = [(*process.communicate(timeout=60), process.returncode) for process in sent]
      return max(code for *_, code in told), "".join(out for out, *_ in told), "".join(err for _, err, _ in told)
    # Only a shell reads what a shell has quoted.
    script = f"printf '%s\\0' {flags['command']}"
    heard = subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout.split("\0")[:-1]
    assert heard[:2] == ["bash", "jaxchop-worker.sh"]
    runs = False
    said = ""
    for node, i in reached:
      workers = self.nodes[node].setdefault("workers", [{"state": "idle"} for _ in range(self.workers)])
      match heard[2]:
        case "start" if workers[i]["state"] == "running":
          if workers[i]["command"] != heard[3:]:
            return 1, "", "another command runs here"
        case "start":
          if not runs:
            runs, end = True, self.codes.pop(0) if self.codes else 0
          state = "running" if end == "hang" else "ended"
          workers[i] = {"state": state, "code": end, "command": heard[3:], "sum": checksum(heard[3:])}
        case "stop" if workers[i]["state"] == "running":
          workers[i] |= {"state": "ended", "code": 75}
        case "status" | "log":
          told = [workers[i]["state"], workers[i].get("code", "-"), workers[i].get("sum", "-")]
          said += " ".join(["jaxchop-status", f"{node}-w{i}", *map(str, told)]) + "\n"
          said += f"ends with {told[1]}\n" if heard[2] == "log" else ""
    return 0, said, ""

  def _copy(self, group: str, flags: dict[str, str], source: Path, name: str, target: str) -> tuple[int, str, str]:
    assert source.is_file()
    for worker in self._reached(group, flags, name):
      if self.real_workers:
        self.home(*worker).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, self.home(*worker) / target)
    return 0, "", ""

  def on_worker(self, home: Path, command: str) -> subprocess.Popen[str]:
    """Starts a command as ssh does, on a worker whose home folder this is."""
    home.mkdir(parents=True, exist_ok=True)
    environment = self.environment | {"HOME": str(home), "PATH": f"{STAND_INS}:{self.environment['PATH']}"}
    pipe = subprocess.PIPE
    return subprocess.Popen(["bash", "-c", command], cwd=home, env=environment, stdout=pipe, stderr=pipe, text=True)

  def _switch_off(self, node: str) -> None:
    """A machine goes with all that ran and lay on it."""
    for pid in (self.folder / "workers" / node).glob("*/units/*.pid"):
      with contextlib.suppress(ProcessLookupError):
        os.killpg(int(pid.read_text()), signal.SIGKILL)
    shutil.rmtree(self.folder / "workers" / node, ignore_errors=True)


def checksum(words: list[str]) -> str:
  content = "".join(f"{word}\0" for word in words).encode()
  return subprocess.run(["cksum"], input=content, capture_output=True, check=True).stdout.decode().split()[0]
