"""Rows of the known data sets become turns; what is none is named with its place."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from jaxchop.data.conversations import Conversation, Turn, conversations
from jaxchop.errors import JaxchopError, UsageError

ASKED = (Turn("user", "Name a colour."), Turn("assistant", "Red."))


def written(tmp_path, *rows):
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


@pytest.mark.parametrize(
  "row",
  [
    {"instruction": "Name a colour.", "input": "", "output": "Red."},
    {"instruction": "Name a colour.", "context": "", "response": "Red.", "category": "open_qa"},
    {"prompt": "Name a colour.", "completion": "Red."},
    {"messages": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Red."}]},
    {"conversations": [{"from": "human", "value": "Name a colour."}, {"from": "gpt", "value": "Red."}], "id": 3},
  ],
)
def test_rows_of_every_kind_say_the_same(tmp_path, row):
  spec = written(tmp_path, row)
  assert list(conversations(spec)) == [Conversation(f"{spec}:1", ASKED)]
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
  assert [one.turns for one in conversations(str(tmp_path / "rows.parquet"))] == [ASKED]


def test_what_an_instruction_is_about_is_kept_apart_and_a_system_prompt_comes_first(tmp_path):
  row = {"instruction": "Count the words.", "input": " one two ", "output": "2", "system": "Be brief."}
  (one,) = conversations(written(tmp_path, row))
  assert one.context == "one two"
  assert one.turns == (Turn("system", "Be brief."), Turn("user", "Count the words."), Turn("assistant", "2"))


def test_a_conversation_ends_with_its_last_answer_and_without_one_is_left_out(tmp_path):
  talk = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant", "user")]
  empty = {"instruction": "Say nothing.", "output": " "}
  found = list(conversations(written(tmp_path, empty, {"messages": talk}, empty)))
  assert [[turn.role for turn in one.turns] for one in found] == [["user", "assistant"] * 2]
  assert found[0].name.endswith("rows.jsonl:2")


@pytest.mark.parametrize(
  ("row", "words"),
  [
    ({"text": "plain"}, r"rows\.jsonl:1: no conversation in fields text; expected messages or conversations, or one"),
    ({"instruction": "only asked"}, r"rows\.jsonl:1: no conversation in fields instruction"),
    ({"messages": "hello"}, r"rows\.jsonl:1: 'messages' holds str, not a list"),
    ({"messages": [{"role": "user"}]}, r"rows\.jsonl:1: messages: a message is an object of role and content"),
    ({"messages": [{"role": "user", "content": "only asked"}]}, r"rows\.jsonl:1: no message has the role 'assistant'"),
    ({"prompt": 3, "completion": "x"}, r"rows\.jsonl:1: field 'prompt' holds int, not text"),
  ],
)
def test_a_row_that_is_no_conversation_is_named(tmp_path, row, words):
  with pytest.raises(JaxchopError, match=words):
    list(conversations(written(tmp_path, row)))


def test_what_can_hold_none_is_refused(tmp_path):
  (tmp_path / "plain.txt").write_text("a text")
  with pytest.raises(UsageError, match=r"plain text has no rows; name a \.jsonl or \.parquet"):
    list(conversations(str(tmp_path / "plain.txt")))


def test_builtin_asks_about_its_topics():
  first = next(conversations("builtin"))
  assert first.turns[0].text == "What does the documentation of Python say about assert?"
  assert first.name == "builtin:assert" and first.answers.text.startswith('The "assert" statement')
