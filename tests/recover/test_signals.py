"""A wish to stop is heard, once."""

import os
import signal
import threading
import time

import pytest

from jaxchop.recover import signals
from jaxchop.recover.signals import stop_signals


def test_a_signal_is_noted_and_does_not_interrupt() -> None:
  with stop_signals() as stop:
    assert stop.asked is None
    os.kill(os.getpid(), signal.SIGTERM)
    while stop.asked is None:
      time.sleep(0.001)
    assert stop.asked is signal.SIGTERM


def test_between_two_steps_it_is_noted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
  """Whenever the watching thread gets its turn."""
  monkeypatch.setattr(signals, "_watch", lambda *_: None)
  with stop_signals() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.asked is signal.SIGINT


def test_other_signals_ask_for_nothing() -> None:
  heard = []
  before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
  try:
    with stop_signals() as stop:
      signal.raise_signal(signal.SIGUSR1)
      time.sleep(0.05)
      assert stop.asked is None and heard == [1]
  finally:
    signal.signal(signal.SIGUSR1, before)


def test_other_threads_may_recover_too() -> None:
  seen = []

  def work() -> None:
    with stop_signals() as stop:
      seen.append(stop.asked)

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [None]


def test_nothing_is_left_behind() -> None:
  before = signal.getsignal(signal.SIGINT), threading.active_count()
  with stop_signals():
    pass
  assert (signal.getsignal(signal.SIGINT), threading.active_count()) == before
  descriptor = signal.set_wakeup_fd(-1)
  signal.set_wakeup_fd(descriptor)
  assert descriptor == -1
