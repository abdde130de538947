"""Perplexity of a text, with the protocol it was measured by: without it the number says nothing.

Shapes: N windows, B windows at once, W tokens of a window.
"""

import dataclasses
import logging
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxchop.compiler import Program
from jaxchop.data.sources import Document
from jaxchop.errors import JaxchopError, UsageError
from jaxchop.evaluate.answers import Answers
from jaxchop.evaluate.figures import error_of_mean
from jaxchop.evaluate.protocol import PROTOCOLS, Protocol, Windows
from jaxchop.model.llama import Llama, hidden
from jaxchop.model.loss import token_nll
from jaxchop.parallel.rows import Rows
from jaxchop.progress import stage

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase

__all__ = ["PROTOCOLS", "Perplexity", "Protocol", "perplexity", "window_nll"]
log = logging.getLogger("jaxchop")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Perplexity:
  """How well a model predicts a text."""

  # exp(nll).
  perplexity: float
  # Mean nats a scored token.
  nll: float
  # Standard error of nll, windows being the sample; None for a single window.
  nll_error: float | None
  # Scored tokens.
  tokens: int
  # UTF-8 bytes of the scored tokens.
  bytes: int
  # The loss in bits over those bytes: comparable across tokenizers.
  bits_per_byte: float
  # Summed nats and scored tokens of each window, in order: two models can be compared window by window.
  window_nll: tuple[float, ...]
  window_tokens: tuple[int, ...]
  protocol: Protocol

  def __str__(self) -> str:
    return f"{self.perplexity:.4g} ({self.protocol})"


def perplexity(
  model: Llama,
  tokenizer: "PreTrainedTokenizerBase",
  documents: Iterable[Document],
  protocol: Protocol,
  *,
  batch_size: int,
  title: str = "Measuring perplexity",
  answers: Answers | None = None,
) -> Perplexity:
  """Returns the perplexity of the joined documents; `batch_size` windows run at once, `title` names the progress bar.

  One program is compiled, whatever the number of windows; with `answers` of this model, windows measured before an
  interruption are not measured again. Raises JaxchopError when the text is shorter than a window,
  the tokenizer is another model's or a loss is not finite, UsageError when the tokenizer lacks the BOS asked for.
  """
  if batch_size < 1:
    raise UsageError(f"batch size is {batch_size}; run at least one window at once")
  longest = model.config.max_positions
  if protocol.window > longest:
    log.warning("window %d: longer than the %d positions the model supports, expect worse", protocol.window, longest)
  windows = Windows(tokenizer, protocol.join.join(document.text for document in documents), protocol)
  if (highest := int(windows.ids_S.max())) >= model.config.vocab_size:
    raise JaxchopError(
      f"token {highest} is outside the model's vocabulary of {model.config.vocab_size}: use the model's own tokenizer"
    )
  answers = answers or Answers()
  rows = Rows(model, min(batch_size, len(windows)))
  nll: list[float] = []
  tokens: list[int] = []
  size = 0
  with stage(title, len(windows), "windows") as bar:
    for start in range(0, len(windows), batch_size):
      batch = windows.batch(start, min(start + batch_size, len(windows)))
      parts = rows.filled((batch.ids, batch.target, batch.weight))
      key = answers.key("windows", *(part.tolist() for part in parts))
      nll += answers.made(key, _nll, model, rows, *parts)[: len(batch.ids)]
      tokens += batch.weight.sum(axis=1).astype(int).tolist()
      size += int((batch.bytes * batch.weight).sum())
      bar.advance(len(batch.ids))
  return _summary(np.array(nll), np.array(tokens), size, protocol)


def _nll(model: Llama, rows: Rows, *parts: NDArray) -> list[float]:
  with rows.on_devices():
    return np.asarray(window_nll(model, *rows.place(parts))).tolist()


@Program
def window_nll(model: Llama, ids_BW: jax.Array, target_BW: jax.Array, weight_BW: jax.Array) -> jax.Array:
  """Returns nll_B, the weighted sum of each window's losses in nats, float32."""
  nll_BW = token_nll(model.norm(hidden(model, ids_BW)), model.head_DV(), target_BW)
  return jnp.sum(nll_BW * weight_BW, axis=1)


def _summary(nll_N: NDArray[np.float64], tokens_N: NDArray[np.int64], size: int, protocol: Protocol) -> Perplexity:
  if not np.isfinite(nll_N).all():
    raise JaxchopError(
      f"the loss of window {int(np.argmin(np.isfinite(nll_N)))} of {len(nll_N)} is not finite: the weights are broken "
      "or their type is too narrow; try float32"
    )
  total, tokens = float(nll_N.sum()), int(tokens_N.sum())
  mean = total / tokens
  return Perplexity(
    perplexity=math.exp(mean) if mean < 709 else math.inf,
    nll=mean,
    nll_error=error_of_mean(nll_N, tokens_N.astype(float)),
    tokens=tokens,
    bytes=size,
    bits_per_byte=total / math.log(2) / size if size else math.inf,
    window_nll=tuple(nll_N.tolist()),
    window_tokens=tuple(tokens_N.tolist()),
    protocol=protocol,
  )
