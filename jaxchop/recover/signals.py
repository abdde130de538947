"""SIGINT and SIGTERM as a wish to stop: noticed at once, granted when the caller is at a safe place.

The watching thread hears of a signal even while the main thread is inside a compilation or waits for a device, where
Python runs no handlers. Where Python does run them the handler is first: the thread may wait some short steps for its
turn.
"""

import contextlib
import enum
import logging
import os
import signal
import socket
import threading
from collections.abc import Generator

log = logging.getLogger("jaxchop")
_WATCHED = (signal.SIGINT, signal.SIGTERM)


class Wish(enum.IntEnum):
  """Why a run is to stop; it travels with each step, so that all processes stop after the same one."""

  NONE = 0
  INTERRUPT = 1
  TERMINATE = 2
  # A process cannot go on; the step it would have had a part in changes nothing.
  FAIL = 3


class Stop:
  """Which signal has asked to stop, or None."""

  asked: signal.Signals | None = None

  def ask(self, number: int) -> None:
    """Notes a signal, unless one is noted."""
    self.asked = self.asked or signal.Signals(number)

  @property
  def wish(self) -> Wish:
    return {None: Wish.NONE, signal.SIGINT: Wish.INTERRUPT, signal.SIGTERM: Wish.TERMINATE}[self.asked]


@contextlib.contextmanager
def stop_signals() -> Generator[Stop]:
  """Notes the first SIGINT or SIGTERM while the block runs; a second one ends the process at once.

  Earlier handlers stand again afterwards. Outside the main thread, where Python allows no handlers, nothing is noted.
  """
  stop = Stop()
  if threading.current_thread() is not threading.main_thread():
    yield stop
    return
  heard, told = socket.socketpair()
  told.setblocking(False)
  watcher = threading.Thread(target=_watch, args=(heard, stop), daemon=True)
  watcher.start()
  # A handler must be set for the interpreter to write to the socket; it only notes, the watcher speaks and counts.
  handlers = {number: signal.signal(number, lambda told, _: stop.ask(told)) for number in _WATCHED}
  channel = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
  try:
    yield stop
  finally:
    signal.set_wakeup_fd(channel)
    for number, handler in handlers.items():
      signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    told.close()
    watcher.join()
    heard.close()


def _watch(heard: socket.socket, stop: Stop) -> None:
  first = True
  while told := heard.recv(1):
    number = told[0]
    if number not in _WATCHED:
      continue
    if not first:
      os._exit(128 + number)
    first = False
    stop.ask(number)
    log.warning("%s: saving after the running step; once more ends at once", signal.Signals(number).name)
