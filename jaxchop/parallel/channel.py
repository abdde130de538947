"""Lines of JSON between the processes of one run, over plain sockets: agreement without devices, and who is gone.

Process 0 listens, the others connect and stay connected. A process that ends without a goodbye is missed at once, as
its system closes the connection; JAX's own service would abort the others a while later, without a name.
"""

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from jaxchop.errors import JaxchopError, UsageError

log = logging.getLogger("jaxchop")
R = TypeVar("R")
# Seconds without progress after which those who are waited for are named.
PATIENCE = 30.0
# Seconds that the main thread gets to end by itself when another process is gone.
GRACE = 10.0
# No message of ours is longer; a stranger's is not read on.
_LONGEST = 1 << 26


class Line:
  """One connection, as lines of JSON."""

  def __init__(self, connection: socket.socket):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    self._connection, self._reader = connection, connection.makefile("rb")
    self._writing = threading.Lock()

  def send(self, message: Any) -> None:
    """Sends one message; one who is gone hears nothing, and that he is gone is noticed by `receive`."""
    with self._writing, contextlib.suppress(OSError):
      self._connection.sendall(json.dumps(message).encode() + b"\n")

  def receive(self) -> Any:
    """Waits for a message and returns it; None when the other end is gone or does not speak our language."""
    try:
      return json.loads(self._reader.readline(_LONGEST))
    except (OSError, ValueError):
      return None

  def forever(self) -> None:
    """Lets `receive` wait without end."""
    self._connection.settimeout(None)

  def close(self) -> None:
    with contextlib.suppress(OSError):
      self._connection.shutdown(socket.SHUT_RDWR)
    self._reader.close()
    self._connection.close()


class Channel:
  """What process `index` of `len(names)` and the others tell each other; without lines it is alone."""

  def __init__(self, index: int = 0, names: Iterable[str] = ("this process",), lines: dict[int, Line] | None = None):
    """`lines` leads from process 0 to every other one, and from every other one to process 0."""
    self.index, self.names, self.lost = index, list(names), ""
    self._lines = lines or {}
    self._said: dict[str, dict[int, Any]] = {}
    self._answers: dict[str, list[Any]] = {}
    now = time.monotonic()
    # What each process was last heard to do: step, words, since when.
    self._doing = {i: (0, "starting", now) for i in range(len(self.names))}
    self._news = threading.Condition()
    self._closed = threading.Event()
    self._listeners = [threading.Thread(target=self._listen, args=at, daemon=True) for at in self._lines.items()]
    for listener in self._listeners:
      listener.start()
    if self._lines:
      threading.Thread(target=self._watch, daemon=True).start()

  @property
  def count(self) -> int:
    return len(self.names)

  def gather(self, key: str, value: Any) -> list[Any]:
    """Returns what all processes give under the same key, in their order; JSON values; callable from any thread.

    A key may be used again once all have had their answer. Names who keeps the others waiting; raises JaxchopError when
    one of them is gone.
    """
    if not self._lines:
      return [value]
    if self.index:
      self._lines[0].send({"key": key, "value": value})
    else:
      self._note(self.index, key, value)
    with self._news:
      while not self._news.wait_for(lambda: key in self._answers or self.lost, timeout=PATIENCE):
        log.warning("%s: waiting for %s", key, self._missing(key))
      if key not in self._answers:
        raise JaxchopError(self.lost)
      return self._answers.pop(key)

  def first(self, key: str, make: Callable[[], R]) -> R:
    """Returns what process 0 makes, a JSON value; when that fails, all processes fail in the same way."""
    if not self._lines:
      return make()
    failed: BaseException | None = None
    mine: dict[str, Any] = {}
    if self.index == 0:
      try:
        mine = {"made": make()}
      except JaxchopError as error:
        failed, mine = error, {"error": str(error), "usage": isinstance(error, UsageError)}
    told = self.gather(key, mine)[0]
    if failed is not None:
      raise failed
    if "error" in told:
      kind = UsageError if told["usage"] else JaxchopError
      raise kind(f"process 0 ({self.names[0]}): {told['error']}")
    return told["made"]

  def doing(self, step: int, words: str) -> None:
    """Tells the others how far this process is, so that a stall has a name."""
    self._doing[self.index] = (step, words, time.monotonic())
    for line in self._lines.values():
      line.send({"step": step, "doing": words})

  def blame(self) -> None:
    """Raises JaxchopError where an error of the devices comes from the loss of another process, given a moment."""
    with self._news:
      if self._lines and self._news.wait_for(lambda: self.lost, timeout=GRACE / 2):
        raise JaxchopError(self.lost)

  def close(self, error: str = "") -> None:
    """Says goodbye, or why this process fails; without a goodbye the others would take it for lost.

    JAX aborts a process whose process 0 is gone, so in a failure that one waits a while for the others to go first;
    their lines end with them.
    """
    self._closed.set()
    words = f"{self._who(self.index)}: {error}"
    for line in self._lines.values():
      line.send({"lost": words} if error else {"bye": True})
    end = time.monotonic() + GRACE
    for listener in self._listeners if error and self.index == 0 else ():
      listener.join(max(0.0, end - time.monotonic()))
    if not error or self.index == 0:
      for line in self._lines.values():
        line.close()

  def _listen(self, other: int, line: Line) -> None:
    while (message := line.receive()) is not None:
      if "bye" in message:
        return
      if "doing" in message:
        self._doing[other] = (message["step"], message["doing"], time.monotonic())
      elif "lost" in message:
        self._lose(message["lost"])
      elif self.index == 0:
        self._note(other, message["key"], message["value"])
      else:
        self._answer(message["key"], message["values"])
    if self._closed.is_set():
      line.close()
    else:
      step = self._doing[self.index][0]
      self._lose(f"{self._who(other)} is gone, after step {step}; start all processes again to go on")

  def _note(self, other: int, key: str, value: Any) -> None:
    with self._news:
      said = self._said.setdefault(key, {})
      said[other] = value
      if len(said) < self.count:
        return
      del self._said[key]
    values = [said[i] for i in range(self.count)]
    for line in self._lines.values():
      line.send({"key": key, "values": values})
    self._answer(key, values)

  def _answer(self, key: str, values: list[Any]) -> None:
    with self._news:
      self._answers[key] = values
      self._news.notify_all()

  def _lose(self, what: str) -> None:
    """Ends the run: wakes who waits, tells the others, and ends the process when its main thread does not."""
    with self._news:
      if self.lost or self._closed.is_set():
        return
      self.lost = what
      self._news.notify_all()
    # Said now: JAX may end this process before its main thread gets to say it.
    log.error("%s", what)
    if self.index == 0:
      for line in self._lines.values():
        line.send({"lost": what})
    # The main thread may wait for a device that waits for the lost process, for ever.
    ending = threading.Timer(GRACE, self._end)
    ending.daemon = True
    ending.start()

  def _end(self) -> None:
    if self._closed.is_set():
      return
    sys.stderr.write(f"jaxchop: error: {self.lost}\n")
    sys.stderr.flush()
    os._exit(1)

  def _watch(self) -> None:
    """Names, every so often, who is behind while this process gets no further."""
    spoken = time.monotonic()
    while not self._closed.wait(PATIENCE / 10):
      now, (step, words, since) = time.monotonic(), self._doing[self.index]
      if now - max(since, spoken) < PATIENCE:
        continue
      known = {i: d for i, d in self._doing.items() if i != self.index and (self.index == 0 or i == 0)}
      behind = [f"{self._who(i)}, {w} of step {s} for {now - t:.0f} s" for i, (s, w, t) in known.items() if s < step]
      if behind:
        spoken = now
        log.warning("step %d: %s for %.0f s; behind: %s", step, words, now - since, "; ".join(behind))

  def _missing(self, key: str) -> str:
    if self.index:
      return self._who(0)
    said = self._said.get(key, {})
    return ", ".join(self._who(i) for i in range(self.count) if i not in said)

  def _who(self, other: int) -> str:
    return f"process {other} ({self.names[other]})"


ALONE = Channel()
