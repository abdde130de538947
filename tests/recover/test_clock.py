"""The devices wait for data only while they have nothing to do."""

import threading
import time
from typing import Any

from jaxchop.recover.clock import Clock


class Result:
  """Something that the devices compute until it is released."""

  def __init__(self) -> None:
    self.released = threading.Event()

  def block_until_ready(self) -> None:
    self.released.wait()


def queued(clock: Clock, waiting: float = 0.0) -> Any:
  result = Result()
  clock.ask()
  time.sleep(waiting)
  clock.arrive()
  clock.queue(result)  # type: ignore[arg-type]
  return result


def test_a_late_batch_that_idle_devices_wait_for_counts() -> None:
  clock = Clock()
  result = queued(clock, 0.02)
  time.sleep(0.03)
  result.released.set()
  took = clock.settle()
  assert took.data_wait >= 0.02 and took.seconds >= 0.03


def test_a_late_batch_that_busy_devices_do_not_miss_does_not_count() -> None:
  clock = Clock()
  first, second = queued(clock), queued(clock, 0.02)
  first.released.set()
  assert clock.settle().seconds >= 0.02
  second.released.set()
  assert clock.settle().data_wait == 0


def test_the_time_between_a_step_and_the_wish_for_another_is_no_wait_for_data() -> None:
  clock = Clock()
  queued(clock).released.set()
  clock.settle()
  time.sleep(0.05)
  start = time.monotonic()
  queued(clock).released.set()
  assert clock.settle().data_wait <= time.monotonic() - start
