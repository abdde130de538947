"""Progress of long operations: a bar on a terminal, a plain line every so often elsewhere; both go to stderr.

Shown when the `jaxchop` logger is at INFO, so `--quiet` and processes other than 0 stay silent by one switch.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

import rich.console
import rich.progress

Item = TypeVar("Item")
log = logging.getLogger("jaxchop")
# Seconds between two plain lines of one stage.
_PAUSE = 10.0


class Bar:
  """One stage's progress: `advance(amount, note)` after each piece of work."""

  def __init__(self, title: str, total: int | None, unit: str):
    self.title, self.total, self.unit = title, total, unit
    self.done, self.start, self._spoke = 0, time.monotonic(), time.monotonic()

  def advance(self, amount: int = 1, note: str = "") -> None:
    self.done += amount
    if time.monotonic() - self._spoke >= _PAUSE:
      self._spoke = time.monotonic()
      log.info(
        "%s: %d of %s %s, %.0f s%s%s",
        self.title,
        self.done,
        "?" if self.total is None else self.total,
        self.unit,
        self.seconds,
        self._left(),
        note and f", {note}",
      )

  def _left(self) -> str:
    if self.total is None or not self.done:
      return ""
    return f", about {self.seconds / self.done * (self.total - self.done):.0f} s left"

  @property
  def seconds(self) -> float:
    return time.monotonic() - self.start


class _TerminalBar(Bar):
  def __init__(self, title: str, total: int | None, unit: str, display: rich.progress.Progress):
    super().__init__(title, total, unit)
    self._display, self._task = display, display.add_task(title, total=total, note="", unit=unit)

  def advance(self, amount: int = 1, note: str = "") -> None:
    self.done += amount
    self._display.update(self._task, completed=self.done, note=note)


@contextlib.contextmanager
def stage(title: str, total: int | None, unit: str = "steps") -> Generator[Bar]:
  """Shows one long operation while the block runs, and a closing line with its time; a `total` of None is unknown."""
  if log.isEnabledFor(logging.INFO) and sys.stderr.isatty():
    columns = (
      rich.progress.TextColumn("{task.description}"),
      rich.progress.BarColumn(),
      rich.progress.TextColumn("{task.completed}/{task.total} {task.fields[unit]}"),
      rich.progress.TimeElapsedColumn(),
      rich.progress.TimeRemainingColumn(),
      rich.progress.TextColumn("{task.fields[note]}"),
    )
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console) as display:
      yield _TerminalBar(title, total, unit, display)
  else:
    bar = Bar(title, total, unit)
    log.info("%s: %s %s", title, "?" if total is None else total, unit)
    yield bar
    log.info("%s: done in %.1f s", title, bar.seconds)


def track(items: Iterable[Item], title: str, total: int, unit: str = "steps") -> Iterator[Item]:
  """Yields the items, showing how far the consumer has come."""
  with stage(title, total, unit) as bar:
    for item in items:
      yield item
      bar.advance()
