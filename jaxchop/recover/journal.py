"""journal.jsonl: what happened to a run besides its steps, one line an event, whichever process did it.

Every line has `event` and `time` (seconds since 1970); `begin` opens what one process did. Lines are only ever added,
and each is in the file when it is told of, so that a killed process leaves all but its last moments.
"""

import contextlib
import json
import logging
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import jax

log = logging.getLogger("jaxchop")


def read_journal(path: Path) -> list[dict[str, Any]]:
  """Returns the events of a journal; a line that a killed process left unfinished does not count."""
  events = []
  if path.exists():
    for line in path.read_text(encoding="utf-8").splitlines():
      with contextlib.suppress(ValueError):
        events.append(json.loads(line))
  return [event for event in events if isinstance(event, dict) and {"event", "time"} <= event.keys()]


class Journal:
  """A journal to which one process of the run adds, from `begin` on; before that, nothing is noted."""

  def __init__(self, path: Path):
    self.path = path
    self._writes = False

  def begin(self, since: float, step: int, restored: float | None, curve: Sequence[dict[str, Any]]) -> None:
    """Opens a process's part: it began at the time `since` and goes on after `step`.

    `restored` are the seconds in which a checkpoint was read, `curve` the steps so far; those after `step` are lost.
    """
    self._writes = jax.process_index() == 0
    if lost := [line for line in curve if line["step"] > step]:
      self.note("lost", steps=len(lost), seconds=sum(map(_spent, lost)), until=lost[-1].get("time", since))
    self.note("begin", time=since, step=step)
    if restored is not None:
      self.note("restore", seconds=restored)

  def note(self, event: str, **what: Any) -> None:
    """Adds one event; where the disk refuses, warns once and notes nothing more: the run does not depend on it."""
    if not self._writes:
      return
    line = {"event": event, "time": time.time(), **what}
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      with self.path.open("a+b") as file:
        # A killed process may have left half a line.
        file.seek(max(file.seek(0, 2) - 1, 0))
        file.write((b"\n" if file.read(1) not in (b"", b"\n") else b"") + json.dumps(line).encode() + b"\n")
    except OSError as error:
      self._writes = False
      log.warning("%s: cannot be written: %s; the goodput told will miss what follows", self.path, error.strerror)

  @contextlib.contextmanager
  def timed(self, event: str, **what: Any) -> Generator[None]:
    """Notes an event with the seconds that the block took."""
    start = time.monotonic()
    try:
      yield
    finally:
      self.note(event, seconds=time.monotonic() - start, **what)


def _spent(line: dict[str, Any]) -> float:
  return line["seconds"] + line.get("data_wait", 0.0)
