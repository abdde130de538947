"""Conversations written as text, answers marked: by the tokenizer's chat template, or in the words of Alpaca.

A data spec says which by what stands before it: `chat:rows.jsonl`, `alpaca:hf://org/name`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import jinja2

from jaxchop.data.conversations import ANSWERS, Conversation, conversations
from jaxchop.data.sources import Document
from jaxchop.data.split import paragraph_keys
from jaxchop.errors import JaxchopError, UsageError

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast

Spans = tuple[tuple[int, int], ...]
# The prompts of Stanford Alpaca, with and without something that the instruction is about.
_TASK = "Below is an instruction that describes a task"
_ABOUT = ", paired with an input that provides further context"
_WRITE = ". Write a response that appropriately completes the request.\n\n"
# Templates that write today's date would make another text every day; this is the one that Llama 3's fall back to.
_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


def is_written(spec: str) -> bool:
  """Returns whether a spec names conversations, and how to write them."""
  return spec.partition(":")[0] in _WRITERS


@dataclasses.dataclass(frozen=True)
class Written:
  """The conversations of a spec as documents, read anew each time they are iterated over.

  Those that answer with a paragraph in `without`, or are called so, are left out.
  """

  spec: str
  tokenizer: "PreTrainedTokenizerFast"
  eos: int
  without: frozenset[str] = frozenset()

  def __iter__(self) -> Iterator[Document]:
    """Raises UsageError at once where the tokenizer has no chat template to write by."""
    way, _, spec = self.spec.partition(":")
    if way == "chat" and not self.tokenizer.chat_template:
      raise UsageError(f"data {self.spec}: the model's tokenizer has no chat template; write alpaca:{spec}")
    return self._documents(conversations(spec), _WRITERS[way])

  def _documents(
    self, found: Iterator[Conversation], write: Callable[["Written", Conversation], tuple[str, Spans]]
  ) -> Iterator[Document]:
    for one in found:
      if one.name not in self.without and paragraph_keys(one.answers.text).isdisjoint(self.without):
        yield Document(one.name, *write(self, one))


def _by_template(by: Written, conversation: Conversation) -> tuple[str, Spans]:
  """Returns the text that the chat template makes, and where in it the answers stand, ends of turns included.

  An answer begins where a prompt for it ends, so a model is trained on what it has to write when asked.
  """
  template = _DATE + by.tokenizer.get_chat_template()
  turns = [{"role": turn.role, "content": turn.text} for turn in conversation.turns]
  if conversation.context:
    turns[-2]["content"] += f"\n\n{conversation.context}"

  def rendered(count: int, *, prompt: bool = False) -> str:
    try:
      text = by.tokenizer.apply_chat_template(
        turns[:count], tokenize=False, add_generation_prompt=prompt, chat_template=template
      )
    except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
      raise JaxchopError(
        f"{conversation.name}: the chat template refuses it ({str(error)[:200]}); mend the row"
      ) from error
    return str(text)

  whole, spans = rendered(len(turns)), []
  for number, turn in enumerate(turns):
    if turn["role"] == ANSWERS:
      before, behind = rendered(number, prompt=True), rendered(number + 1)
      if not (behind.startswith(before) and whole.startswith(behind)):
        raise JaxchopError(
          f"{conversation.name}: the chat template writes the beginning of a conversation otherwise when more follows, "
          f"so its answers have no place; write alpaca: or leave rows of several answers out"
        )
      spans.append((len(before), len(before) + len(behind[len(before) :].rstrip())))
  return whole, tuple(spans)


def _as_alpaca(by: Written, conversation: Conversation) -> tuple[str, Spans]:
  """Returns Alpaca's prompt with the answer and EOS, behind BOS where the tokenizer writes one."""
  roles = [turn.role for turn in conversation.turns]
  if roles != ["user", ANSWERS]:
    raise JaxchopError(
      f"{conversation.name}: Alpaca's prompt takes one question and one answer, not {', '.join(roles)}"
    )
  (question, answer), context = (turn.text for turn in conversation.turns), conversation.context
  begins = by.tokenizer.bos_token if by.tokenizer("")["input_ids"][:1] == [by.tokenizer.bos_token_id] else ""
  about = f"### Input:\n{context}\n\n" if context else ""
  task = f"{_TASK}{_ABOUT if context else ''}{_WRITE}"
  prompt = f"{begins}{task}### Instruction:\n{question}\n\n{about}### Response:\n"
  text = f"{prompt}{answer}{by.tokenizer.convert_ids_to_tokens(by.eos)}"
  return text, ((len(prompt), len(text)),)


_WRITERS = {"chat": _by_template, "alpaca": _as_alpaca}
