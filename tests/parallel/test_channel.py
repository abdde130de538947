"""Processes of one run agree without devices, fail together, and know by name who is gone or behind."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.parallel import channel as channels
from jaxchop.parallel.channel import ALONE, Channel, Line

NAMES = ["a", "b", "c"]


def connected() -> tuple[socket.socket, socket.socket]:
  with socket.create_server(("localhost", 0)) as server:
    near = socket.create_connection(server.getsockname())
    return near, server.accept()[0]


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Channel]]:
  """Three channels in one process, as three processes would have them; a loss does not end it."""
  monkeypatch.setattr(channels, "PATIENCE", 0.3)
  monkeypatch.setattr(Channel, "_end", lambda self: None)
  pairs = {i: connected() for i in (1, 2)}
  found = [Channel(0, NAMES, {i: Line(pair[0]) for i, pair in pairs.items()})]
  found += [Channel(i, NAMES, {0: Line(pair[1])}) for i, pair in pairs.items()]
  yield found
  for one in found:
    with contextlib.suppress(OSError):
      one.close()


def together(each: list[Channel], do: Callable[[Channel], object]) -> list[object]:
  """What `do` returns, or raises, in every process at once."""

  def done(one: Channel) -> object:
    try:
      return do(one)
    except JaxchopError as error:
      return str(error)

  with ThreadPoolExecutor(len(each)) as pool:
    return list(pool.map(done, each))


def test_all_get_what_all_give_in_their_order(three):
  assert together(three, lambda one: one.gather("n", {"n": one.index})) == [[{"n": 0}, {"n": 1}, {"n": 2}]] * 3
  assert together(three, lambda one: one.gather("n", one.index + 5)) == [[5, 6, 7]] * 3


def test_what_the_first_makes_is_made_once_and_told_to_all(three):
  made: list[int] = []
  assert together(three, lambda one: one.first("made", lambda: made.append(one.index) or "it")) == ["it"] * 3
  assert made == [0]


def test_when_the_first_fails_all_fail(three):
  def fail():
    raise JaxchopError("plan.json: not a plan")

  said = together(three, lambda one: one.first("plan", fail))
  assert said == ["plan.json: not a plan", *["process 0 (a): plan.json: not a plan"] * 2]


def test_a_wrong_request_is_one_for_all(three):
  def refuse():
    raise UsageError("recover.steps is 0")

  kinds: list[type] = []

  def asked(one: Channel) -> None:
    try:
      one.first("steps", refuse)
    except JaxchopError as error:
      kinds.append(type(error))

  together(three, asked)
  assert kinds == [UsageError] * 3


def test_a_process_that_goes_without_a_goodbye_is_named_to_all(three):
  threading.Timer(0.1, lambda: three[2]._lines[0].close()).start()
  three[0].doing(7, "running")
  said = together(three[:2], lambda one: one.gather("step", 1))
  assert said == ["process 2 (c) is gone, after step 7; start all processes again to go on"] * 2
  with pytest.raises(JaxchopError, match=r"process 2 \(c\) is gone"):
    three[1].blame()


def test_a_process_that_fails_says_why_to_all(three):
  threading.Timer(0.1, lambda: three[1].close("text.jsonl:7: not JSON")).start()
  said = together([three[0], three[2]], lambda one: one.gather("step", 1))
  assert said == ["process 1 (b): text.jsonl:7: not JSON"] * 2


def test_a_goodbye_is_no_loss(three):
  three[2].close()
  time.sleep(0.2)
  assert not three[0].lost and not three[1].lost
  three[0].blame()


def test_who_keeps_the_others_waiting_is_named(three, caplog):
  caplog.set_level(logging.WARNING, "jaxchop")
  threading.Timer(0.8, lambda: three[2].gather("save", 1)).start()
  together(three[:2], lambda one: one.gather("save", 1))
  assert "save: waiting for process 2 (c)" in caplog.messages


def test_who_is_behind_while_a_step_gets_no_further_is_named(three, caplog):
  caplog.set_level(logging.WARNING, "jaxchop")
  three[1].doing(12, "running")
  three[2].doing(11, "reading its rows")
  three[0].doing(12, "running")
  time.sleep(1)
  said = [words for words in caplog.messages if words.startswith("step 12: running for 0 s; behind: process 2 (c)")]
  assert said and "reading its rows of step 11" in said[0] and "process 1" not in said[0]


def test_a_process_alone_needs_no_other():
  assert ALONE.gather("n", 3) == [3] and ALONE.first("n", lambda: 4) == 4
  ALONE.doing(1, "running")
  ALONE.blame()


def test_what_is_no_message_ends_the_conversation():
  ours, theirs = connected()
  line = Line(ours)
  theirs.sendall(b"GET / HTTP/1.1\r\n")
  assert line.receive() is None
  theirs.close()
  line.send({"n": 1})
  line.close()
