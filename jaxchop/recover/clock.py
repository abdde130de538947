"""How long steps take on the devices and how long the devices wait for data, while the host runs ahead of them."""

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax


class Took(NamedTuple):
  """Seconds of one step."""

  # In which the devices worked on it.
  seconds: float
  # In which they had nothing to do because its batch was not there yet.
  data_wait: float


class Clock:
  """Tells what each step took, in the order in which they were queued: `ask`, `queue`, and later `settle`.

  A thread of its own hears when a step is done: whoever queues the next one looks too late.
  """

  def __init__(self) -> None:
    self._listener = ThreadPoolExecutor(1, thread_name_prefix="clock")
    self._running: deque[tuple[float, float, Future[float]]] = deque()
    self._asked = self._arrived = self._idle_since = time.monotonic()

  def ask(self) -> None:
    """The host asks for the next step's batch."""
    self._asked = time.monotonic()

  def arrive(self) -> None:
    """The batch is there, and the step is about to be queued."""
    self._arrived = time.monotonic()

  def queue(self, result: jax.Array) -> None:
    """The step is queued; `result` is something it computes."""
    self._running.append((self._asked, self._arrived, self._listener.submit(_when_ready, result)))

  def settle(self) -> Took:
    """Returns what the oldest step that is not settled took, as soon as it is done."""
    asked, arrived, done = self._running.popleft()
    end, idle_since = done.result(), self._idle_since
    self._idle_since = end
    return Took(max(end - max(arrived, idle_since), 1e-9), max(0.0, arrived - max(asked, idle_since)))


def _when_ready(result: jax.Array) -> float:
  result.block_until_ready()
  return time.monotonic()
