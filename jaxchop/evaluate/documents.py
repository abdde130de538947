"""Perplexity a word and a byte, every document for itself: comparable across tokenizers.

Each token is predicted once; a document longer than a row goes on in the next one after its last token alone. Shapes: D
documents.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jaxchop.data.sources import Document
from jaxchop.errors import JaxchopError, UsageError
from jaxchop.evaluate.answers import Answers
from jaxchop.evaluate.scoring import Pair, batches, cut, rows_of, score
from jaxchop.model.llama import Llama
from jaxchop.parallel.rows import Rows
from jaxchop.progress import stage

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase

# Tokens of a row at most, where the model takes as many.
LONGEST = 2048


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ByDocument:
  """How well a model predicts documents; each tuple has one number a document."""

  # Summed nats.
  nll: tuple[float, ...]
  # Parts between blanks, as lm-evaluation-harness counts them in its task wikitext.
  words: tuple[int, ...]
  # UTF-8 bytes.
  bytes: tuple[int, ...]
  # How it was measured, in words.
  protocol: str

  @property
  def word_perplexity(self) -> float:
    return _exp(sum(self.nll) / sum(self.words))

  @property
  def byte_perplexity(self) -> float:
    return _exp(sum(self.nll) / sum(self.bytes))

  @property
  def bits_per_byte(self) -> float:
    return sum(self.nll) / math.log(2) / sum(self.bytes)


def by_document(
  model: Llama,
  tokenizer: "PreTrainedTokenizerBase",
  documents: Sequence[Document],
  *,
  batch_size: int,
  title: str = "Measuring documents",
  answers: Answers | None = None,
) -> ByDocument:
  """Returns the loss of every document, its first token predicted from BOS, or EOS where there is no BOS.

  The same as lm-evaluation-harness' rolling log-likelihoods with max_length 2048, or the model's positions where those
  are fewer. With `answers` of this model, rows scored before an interruption are not scored again. Raises UsageError
  when the tokenizer has neither token, JaxchopError when no document holds text or a loss is not finite.
  """
  first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
  if first is None:
    raise UsageError("documents: the tokenizer has neither BOS nor EOS to stand before a document; measure windows")
  texts = [document.text for document in documents if document.text.strip()]
  if not texts:
    raise JaxchopError("documents: none of them holds text; name others with data.held_out")
  longest = min(LONGEST, model.config.max_positions)
  ids = [tokenizer.encode(text, add_special_tokens=False, verbose=False) for text in texts]
  parts = [[*_rolling(one, first, longest)] for one in ids]
  found = iter(
    _scored(model, [*itertools.chain.from_iterable(parts)], longest, batch_size, title, answers or Answers())
  )
  nll_D = [sum(itertools.islice(found, len(part))) for part in parts]
  if not np.isfinite(nll_D).all():
    raise JaxchopError("documents: a loss is not finite: the weights are broken or their type is too narrow")
  rows = f"in rows of up to {longest:,} tokens after {tokenizer.decode([first])}"
  return ByDocument(
    nll=tuple(nll_D),
    words=tuple(len(re.split(r"\s+", text)) for text in texts),
    bytes=tuple(len(text.encode()) for text in texts),
    protocol=f"{len(texts):,} documents, each for itself, {rows}; words are what stands between blanks",
  )


def _rolling(ids: Sequence[int], first: int, longest: int) -> Iterator[Pair]:
  """Yields (context, continuation) so that every token is a continuation's once, the later ones after one token.

  A last row that is not full begins earlier, so that its tokens have as much context as fits.
  """
  yield [first], ids[:longest]
  for start in range(longest, len(ids), longest):
    stop = min(start + longest, len(ids))
    yield ids[stop - longest - 1 : start], ids[start:stop]


def _scored(
  model: Llama, pairs: Sequence[Pair], longest: int, batch_size: int, title: str, answers: Answers
) -> list[float]:
  """Returns the nats of each continuation."""
  nll = [0.0] * len(pairs)
  found, rows = rows_of([cut(pair, longest) for pair in pairs], longest), Rows(model, batch_size)
  with stage(title, len(found), "rows") as bar:
    for batch in batches(found, rows.count, longest):
      inputs = batch.ids, batch.place, batch.target
      key = answers.key("rows", *(part.tolist() for part in inputs))
      nll_BK = np.array(answers.made(key, _nll, model, rows, *inputs))
      for index, row in enumerate(batch.rows):
        for pair, numbers in row.asked:
          nll[pair] = float(nll_BK[index, numbers].sum())
      bar.advance(len(batch.rows))
  return nll


def _nll(model: Llama, rows: Rows, *inputs: NDArray[np.int32]) -> list[list[float]]:
  with rows.on_devices():
    return np.asarray(score(model, *rows.place(inputs))[0]).tolist()


def _exp(nats: float) -> float:
  return math.exp(nats) if nats < 709 else math.inf
