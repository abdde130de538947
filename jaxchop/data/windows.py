"""Windows of tokens to score layers with. Shapes: N windows, T tokens."""

from collections.abc import Iterable

import numpy as np
from transformers import PreTrainedTokenizerBase

from jaxchop.data.sources import Document
from jaxchop.errors import JaxchopError


def first_windows(
  documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, *, count: int, length: int, eos: int
) -> np.ndarray:
  """Returns ids_NT, the first `count` windows of `length` tokens of the documents, each closed by `eos`.

  Only as many documents are tokenised as that takes. Raises JaxchopError when there are too few tokens.
  """
  ids: list[int] = []
  for document in documents:
    ids += [*tokenizer.encode(document.text, add_special_tokens=False), eos]
    if len(ids) >= count * length:
      return np.asarray(ids[: count * length], np.int32).reshape(count, length)
  raise JaxchopError(
    f"calibration text: {len(ids):,} tokens, but {count} windows of {length} need {count * length:,}; "
    f"set score.windows to at most {len(ids) // length} or name more text in data.calibration"
  )
