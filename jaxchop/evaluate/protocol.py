"""How a text becomes scored windows: a protocol, printed with every number measured by it.

Shapes: S tokens of the text, B windows at once, W tokens of a window.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jaxchop.config import Bos
from jaxchop.errors import JaxchopError, UsageError

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
  """How a text becomes scored tokens. It is tokenised once, without special tokens; a last part window is dropped."""

  # Tokens of the text in a window.
  window: int
  # Tokens between the starts of two windows; where they overlap, only what is new is scored.
  stride: int
  # BOS: none; first, as the first token of the text; every, before each window and beside its tokens.
  bos: Bos = "none"
  # What stands between two documents.
  join: str = "\n\n"
  # Which part of the data the text is.
  split: str = "held_out"
  # At most this many windows from the start are scored; None means all.
  max_windows: int | None = None

  def __post_init__(self) -> None:
    if self.window < 2 or not 1 <= self.stride <= self.window:
      raise UsageError(
        f"window {self.window} and stride {self.stride}: a window holds 2 tokens or more, a stride at most a window"
      )
    if self.max_windows is not None and self.max_windows < 1:
      raise UsageError(f"max_windows is {self.max_windows}; score at least one window, or unset it to score all")

  def __str__(self) -> str:
    join = self.join.encode("unicode_escape").decode()
    limit = "" if self.max_windows is None else f", first {self.max_windows} windows"
    return (
      f'window {self.window}, stride {self.stride}, bos {self.bos}, documents joined by "{join}", split {self.split}'
      + limit
    )


# The numbers of the pruning papers on WikiText-2's test rows. Source: GPTQ, Wanda, SLEB (Llama-2-7B: 5.47); LLM-Pruner,
# shortened-llm (LLaMA-7B: 12.62). Both tokenise as the tokenizer does by itself, so with BOS where it begins texts.
PROTOCOLS = {
  "windows-2048": Protocol(window=2048, stride=2048, bos="first"),
  "windows-128": Protocol(window=128, stride=128, bos="first"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
  """Some windows: what goes in, what should come out, which of it counts (0 or 1), and the bytes it stands for."""

  ids: NDArray[np.int32]
  target: NDArray[np.int32]
  weight: NDArray[np.float32]
  bytes: NDArray[np.int64]


class Windows:
  """The windows of one text by a protocol; `len` counts them, `batch` cuts some of them out.

  Raises JaxchopError when the text is shorter than a window, UsageError when the tokenizer lacks the BOS asked for.
  """

  def __init__(self, tokenizer: "PreTrainedTokenizerBase", text: str, protocol: Protocol):
    self.protocol, self.bos = protocol, tokenizer.bos_token_id
    self.ids_S, self.bytes_S = tokens_and_bytes(tokenizer, text)
    if protocol.bos != "none" and self.bos is None:
      raise UsageError(f"the tokenizer has no BOS token, but bos is {protocol.bos!r}; set bos to none")
    if protocol.bos == "first":
      self.ids_S, self.bytes_S = np.insert(self.ids_S, 0, self.bos), np.insert(self.bytes_S, 0, 0)
    if len(self.ids_S) < protocol.window:
      raise JaxchopError(
        f"the {protocol.split} text has {len(self.ids_S)} tokens, less than one window of {protocol.window}: name more "
        f"text, or set window and stride to at most {len(self.ids_S)}"
      )

  def __len__(self) -> int:
    whole = 1 + (len(self.ids_S) - self.protocol.window) // self.protocol.stride
    return min(whole, self.protocol.max_windows or whole)

  def batch(self, start: int, stop: int) -> Batch:
    """Returns windows [start, stop), arrays of shape [stop - start, W]."""
    window, stride = self.protocol.window, self.protocol.stride
    number_B1 = np.arange(start, stop)[:, None]
    place_BW = number_B1 * stride + np.arange(window)
    # The first window is all new; of each later one, the last `stride` tokens.
    new_BW = (np.arange(window) >= window - stride) | (number_B1 == 0)
    ids_BW, bytes_BW = self.ids_S[place_BW], self.bytes_S[place_BW]
    if self.protocol.bos == "every":
      return Batch(np.insert(ids_BW[:, :-1], 0, self.bos, axis=1), ids_BW, new_BW.astype(np.float32), bytes_BW)
    # Nothing predicts a window's first token, and its last predicts nothing. It goes in all the same: attention
    # kernels like round lengths.
    new_BW[:, 0] = False
    target_BW, weight_BW, bytes_BW = (np.roll(array_BW, -1, axis=1) for array_BW in (ids_BW, new_BW, bytes_BW))
    return Batch(ids_BW, target_BW, weight_BW.astype(np.float32), bytes_BW)


def tokens_and_bytes(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
  """Returns the ids of a text and the bytes each stands for, whose sum is the text's; a part of a character may have 0.

  A token reaches from the end of the one before to its own end, so that what a tokenizer skips counts too.
  """
  found = tokenizer(
    text, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False
  )
  ends_S = np.array([end for _, end in found["offset_mapping"]], np.int64)
  ends_S[-1:] = len(text)
  letters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
  sizes = 1 + (letters >= 1 << 7) + (letters >= 1 << 11) + (letters >= 1 << 16)
  reach_S = np.insert(np.cumsum(sizes, dtype=np.int64), 0, 0)[np.maximum.accumulate(ends_S)]
  return np.array(found["input_ids"], np.int32), np.diff(reach_S, prepend=0)
