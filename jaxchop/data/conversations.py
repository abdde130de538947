"""Conversations out of rows of data sets: messages, prompt and completion, or the fields of Alpaca and Dolly."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from jaxchop.data import files
from jaxchop.data.sources import BUILTIN, Document, documents, entries
from jaxchop.errors import JaxchopError

ANSWERS = "assistant"
# Lists of messages, each {role, content} or {from, value}.
_LISTS = ("messages", "conversations")
# A question, what it is about, and its answer, as fields of one row; the first of a kind that the row has counts.
_QUESTIONS, _CONTEXTS, _ANSWERS = ("instruction", "prompt"), ("input", "context"), ("output", "response", "completion")
# Roles by the names that some data sets have for them.
_ROLES = {"human": "user", "gpt": ANSWERS}


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
  """What one side says."""

  role: str
  text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
  """One row of a data set; its last turn is an answer."""

  name: str
  turns: tuple[Turn, ...]
  # What the only question is about, where the data set keeps that apart.
  context: str = ""

  @property
  def answers(self) -> Document:
    """All that is answered, as a text."""
    return Document(self.name, "\n\n".join(turn.text for turn in self.turns if turn.role == ANSWERS))


def conversations(spec: str) -> Iterator[Conversation]:
  """Returns the conversations of a data spec (see `documents`) one by one; those without an answer are left out.

  Those of `builtin` ask about its topics. Raises UsageError on a spec that names nothing, or nothing that can hold
  conversations; JaxchopError while reading on rows that are none.
  """
  return map(_about, documents(BUILTIN)) if spec == BUILTIN else entries(spec, _Reader())


def _about(topic: Document) -> Conversation:
  question = f"What does the documentation of Python say about {topic.name.removeprefix(f'{BUILTIN}:')}?"
  return Conversation(topic.name, (Turn("user", question), Turn(ANSWERS, topic.text)))


class _Reader:
  """Reads rows; see `entries`."""

  def file(self, path: files.Source, name: str) -> Iterator[Conversation]:
    found = (self.row(row, f"{name}:{number}") for number, row in files.rows(path))
    return (conversation for conversation in found if conversation is not None)

  def row(self, row: Mapping[str, Any], name: str) -> Conversation | None:
    for field in _LISTS:
      if row.get(field) is not None:
        return _answered(name, tuple(_turn(entry, f"{name}: {field}") for entry in _listed(row, field, name)))
    question, context, answer = (_first(row, fields, name) for fields in (_QUESTIONS, _CONTEXTS, _ANSWERS))
    if question is None or answer is None:
      raise JaxchopError(
        f"{name}: no conversation in fields {', '.join(sorted(map(str, row))) or '(none)'}; expected {_LISTS[0]} or "
        f"{_LISTS[1]}, or one of {', '.join(_QUESTIONS)} and one of {', '.join(_ANSWERS)}"
      )
    system = _first(row, ("system",), name)
    turns = (Turn("system", system),) if system and system.strip() else ()
    return _answered(name, (*turns, Turn("user", question), Turn(ANSWERS, answer)), (context or "").strip())


def _listed(row: Mapping[str, Any], field: str, name: str) -> list[Any]:
  value = row[field]
  if not isinstance(value, list):
    raise JaxchopError(f"{name}: {field!r} holds {type(value).__name__}, not a list of messages")
  return value


def _turn(entry: Any, where: str) -> Turn:
  if isinstance(entry, dict):
    for role, text in (("role", "content"), ("from", "value")):
      said, who = entry.get(text), entry.get(role)
      if isinstance(who, str) and isinstance(said, str):
        return Turn(_ROLES.get(who, who), files.as_text(entry, text, where))
  raise JaxchopError(f"{where}: a message is an object of role and content, both text; found {str(entry)[:80]}")


def _first(row: Mapping[str, Any], fields: tuple[str, ...], name: str) -> str | None:
  present = [field for field in fields if row.get(field) is not None]
  return files.as_text(dict(row), present[0], name) if present else None


def _answered(name: str, turns: tuple[Turn, ...], context: str = "") -> Conversation | None:
  """Returns the conversation up to its last answer; None when nothing is said there."""
  last = max((number for number, turn in enumerate(turns) if turn.role == ANSWERS), default=-1)
  if last < 0:
    raise JaxchopError(f"{name}: no message has the role {ANSWERS!r}, so there is nothing to learn; leave the row out")
  return Conversation(name, turns[: last + 1], context) if turns[last].text.strip() else None
