"""The probe asks every model the same items, grades them by their whole line, and knows how sure its share is."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.errors import UsageError
from jaxchop.evaluate import capability as probe
from jaxchop.evaluate.capability import SHOTS, TASKS, Capability, capability, prompt

ITEM = st.tuples(st.sampled_from(sorted(TASKS)), st.integers(0, 3), st.integers(0, 200))


def solved(task: str, line: str) -> str:
  """Returns the answer to a question, worked out from its words alone."""
  match task:
    case "addition":
      return str(sum(map(int, re.findall(r"\d+", line))))
    case "brackets":
      return " ".join({"(": ")", "[": "]", "{": "}"}[one] for one in reversed(re.findall(r"[(\[{]", line)))
    case "copying":
      return re.fullmatch(r"say (.*) again:", line)[1]
    case "lookup":
      return dict(re.findall(r"(\w+) is (\d+)", line))[re.search(r"; (\w+) is$", line)[1]]
    case "sorting":
      return " ".join(sorted(re.findall(r"\d+", line), key=int))


@given(item=ITEM)
def test_every_answer_is_the_right_one_and_not_among_the_solved_ones(item):
  task, level, _ = item
  text, answer = prompt(*item)
  *shots, question = text.split("\n")
  assert len(shots) == SHOTS and solved(task, question) == answer
  for shot in shots:
    assert shot.endswith(f" {solved(task, shot.removesuffix(solved_end(task, shot)).rstrip())}")
  if level:
    assert not any(shot.startswith(question) for shot in shots)


def solved_end(task: str, shot: str) -> str:
  """Returns the part of a solved line behind its question."""
  mark = {"addition": "=", "brackets": "close", "copying": "again:", "lookup": " is", "sorting": "up:"}[task]
  return shot.rpartition(mark)[2]


def test_levels_get_longer_and_a_seed_draws_others():
  for task in TASKS:
    lengths = [sum(len(prompt(task, level, number)[0]) for number in range(20)) for level in range(4)]
    assert lengths == sorted(lengths)
    assert prompt(task, 3, 0) == prompt(task, 3, 0) != prompt(task, 3, 0, seed=1)


class Parrot:
  """A tokenizer of bytes."""

  def encode(self, text: str) -> list[int]:
    return list(text.encode())

  def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
    return bytes(ids).decode()


def test_a_line_must_be_right_as_a_whole_and_what_follows_it_does_not_count(model, monkeypatch):
  answers = {text: answer for task in TASKS for level in range(4) for text, answer in [prompt(task, level, number=0)]}

  def written(_, prompts, *, max_new_tokens, eos, stopped, place):
    texts = [bytes(ids).decode() for ids in prompts]
    # Brackets are closed with one too many; behind the right line of all others comes another one.
    new = [f" {answers[text]}{' )' if 'open' in text else ''}\n7 + 7" for text in texts]
    assert all(stopped(0, list(text.encode())) for text in new) and not stopped(0, list(b" 1"))
    assert max_new_tokens >= max(len(answers[text]) + 2 for text in texts)
    return [list(text.encode()) for text in new]

  monkeypatch.setattr(probe, "generate", written)
  found = capability(model, Parrot(), items=1, eos=[0], batch_size=3)
  assert found.by_task() == {task: float(task != "brackets") for task in TASKS}
  assert found.score == pytest.approx(0.8) and found.to_json()["tasks"]["copying"]["levels"] == [1, 1, 1, 1]


def test_a_model_is_asked_as_it_generates(model, tokenizer):
  found = capability(model, tokenizer, items=1, eos=[tokenizer.eos_token_id], batch_size=20)
  # A random model cannot do anything, but it is asked everything.
  assert found.score < 0.2
  assert {task: [len(level) for level in levels] for task, levels in found.solved.items()} == {
    task: [1] * 4 for task in TASKS
  }
  with pytest.raises(UsageError, match=r"evaluate.probe_items is 0"):
    capability(model, tokenizer, items=0, eos=[])


def test_the_error_is_of_items_drawn_within_levels():
  levels = ((True,) * 4, (True, True, False, False))
  found = Capability(solved={"addition": levels}, protocol="")
  assert found.score == 0.75
  assert found.error == pytest.approx((0.25 / 3) ** 0.5 / 2)
