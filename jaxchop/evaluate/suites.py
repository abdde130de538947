"""What can be measured of a model, by name: perplexities by protocol, what it can still do, tasks of lm-eval.

Every suite gives figures that a table can hold: value, standard error, and the samples behind them, so that two models
can be compared sample by sample.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxchop.config import EvaluateConfig
from jaxchop.data.sources import Document, digest
from jaxchop.data.texts import Texts
from jaxchop.evaluate.answers import Answers, identity
from jaxchop.evaluate.capability import capability
from jaxchop.evaluate.documents import by_document
from jaxchop.evaluate.figures import figure
from jaxchop.evaluate.perplexity import perplexity
from jaxchop.evaluate.protocol import PROTOCOLS, Protocol
from jaxchop.model.llama import Llama

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast


class Asked:
  """A model as suites ask it: loaded when the first of them needs it."""

  def __init__(
    self,
    load: Callable[[], Llama],
    tokenizer: "PreTrainedTokenizerFast",
    *,
    eos: Collection[int],
    title: str,
    folder: Path | None = None,
    stopped: Callable[[], bool] = lambda: False,
  ):
    """`eos` are the ids that end a text, `title` names progress bars, `folder` keeps answers over an interruption.

    Once `stopped` says that there is no time left, a suite raises Halted (evaluate/answers.py).
    """
    self._load, self.tokenizer, self.eos, self.title, self.folder = load, tokenizer, tuple(eos), title, folder
    self._stopped = stopped

  @functools.cached_property
  def model(self) -> Llama:
    return self._load()

  @functools.cached_property
  def answers(self) -> Answers:
    return Answers(self.folder, identity(self.model) if self.folder else "", self._stopped)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
  """One thing to measure."""

  name: str
  # All that the result depends on beside the model, as plain JSON.
  key: Any
  # Gives {"protocol": words, "figures": {name: figure}} and whatever more there is to tell.
  run: Callable[[Asked], dict[str, Any]]


def suites(config: EvaluateConfig, texts: Texts) -> list[Suite]:
  """Returns the suites that the settings name; every name that is not one of ours is a task or group of lm-eval.

  Raises UsageError on an unknown name.
  """
  return [_suite(name, config, texts) for name in dict.fromkeys(config.suite)]


def _suite(name: str, config: EvaluateConfig, texts: Texts) -> Suite:
  if name == "perplexity":
    protocol = Protocol(window=config.window, stride=config.stride, bos=config.bos, max_windows=config.max_windows)
    run = functools.partial(_perplexity, "perplexity", protocol, texts.held_out, config.batch_size)
    return Suite(name=name, key=[str(protocol), digest(texts.held_out)], run=run)
  if name in PROTOCOLS:
    protocol = dataclasses.replace(PROTOCOLS[name], max_windows=config.max_windows)
    run = functools.partial(_published, name, protocol, texts.as_published, config.batch_size)
    return Suite(name=name, key=[str(protocol), digest(texts.as_published)], run=run)
  if name == "documents":
    run = functools.partial(_documents, texts.held_out, config.batch_size)
    return Suite(name=name, key=[digest(texts.held_out)], run=run)
  if name == "capability":
    return Suite(name=name, key=[config.probe_items], run=functools.partial(_capability, config.probe_items))
  return _tasks(name, config)


def _perplexity(
  name: str, protocol: Protocol, documents: Sequence[Document], batch_size: int, asked: Asked
) -> dict[str, Any]:
  title = f"{asked.title}: {name}"
  found = perplexity(
    asked.model, asked.tokenizer, documents, protocol, batch_size=batch_size, title=title, answers=asked.answers
  )
  suffix = "" if name == "perplexity" else f", {name}"
  return {
    "protocol": str(found.protocol),
    "tokens": found.tokens,
    "nll": found.nll,
    "nll_error": found.nll_error,
    "figures": {
      f"perplexity{suffix}": figure(found.perplexity, "perplexity", found.window_nll, found.window_tokens),
      f"bits per byte{suffix}": figure(found.bits_per_byte, "bits"),
    },
  }


def _published(
  name: str, protocol: Protocol, documents: Sequence[Document], batch_size: int, asked: Asked
) -> dict[str, Any]:
  begins = asked.tokenizer.encode("a")[:1] == [asked.tokenizer.bos_token_id]
  protocol = dataclasses.replace(protocol, bos="first" if begins else "none")
  return _perplexity(name, protocol, documents, batch_size, asked)


def _documents(documents: Sequence[Document], batch_size: int, asked: Asked) -> dict[str, Any]:
  title = f"{asked.title}: documents"
  found = by_document(
    asked.model, asked.tokenizer, documents, batch_size=batch_size, title=title, answers=asked.answers
  )
  return {
    "protocol": found.protocol,
    "figures": {
      "perplexity a word": figure(found.word_perplexity, "perplexity", found.nll, found.words),
      "perplexity a byte": figure(found.byte_perplexity, "perplexity", found.nll, found.bytes),
      "bits per byte, documents": figure(found.bits_per_byte, "bits"),
    },
  }


def _capability(items: int, asked: Asked) -> dict[str, Any]:
  title = f"{asked.title}: what it can do"
  found = capability(asked.model, asked.tokenizer, items=items, eos=asked.eos, title=title, answers=asked.answers)
  by_task = {task: [int(hit) for level in levels for hit in level] for task, levels in found.solved.items()}
  every = [hit for hits in by_task.values() for hit in hits]
  # The levels are what they are, the items of each are drawn; one of each says nothing about that.
  whole = figure(found.score, "share", every, error=found.error if items > 1 else None)
  parts = {f"small tasks: {task}": figure(sum(hits) / len(hits), "share", hits) for task, hits in by_task.items()}
  return found.to_json() | {"figures": {"small tasks solved": whole} | parts}


def _tasks(name: str, config: EvaluateConfig) -> Suite:
  # Only here: it takes seconds to load, and is an extra.
  from jaxchop.evaluate import harness_tasks

  folder = Path(config.task_folder) if config.task_folder else None
  harness_tasks.require(name, folder)

  def run(asked: Asked) -> dict[str, Any]:
    answers, limit = asked.answers, config.task_limit
    return harness_tasks.measured(
      asked.model, asked.tokenizer, name, answers=answers, eos=asked.eos, limit=limit, folder=folder
    )

  return Suite(name=name, key=[harness_tasks.what_it_is(name, folder), config.task_limit], run=run)
