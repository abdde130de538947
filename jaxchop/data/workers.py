"""Processes beside this one: they leave signals to it, and none of them outlives it."""

import multiprocessing
import os
import signal
import threading


def serve_parent(ignored: tuple[signal.Signals, ...] = (signal.SIGINT,)) -> None:
  """Sets up a process that was started to work for another one, which alone answers the signals that both get."""
  for number in ignored:
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)
