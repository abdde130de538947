"""Windows and sentences of tokens to score and merge layers with. Shapes: N windows or sentences, T tokens."""

from collections.abc import Iterable

import numpy as np
from transformers import PreTrainedTokenizerBase

from jaxchop.data.sources import Document
from jaxchop.errors import JaxchopError


def first_windows(
  documents: Iterable[Document],
  tokenizer: PreTrainedTokenizerBase,
  *,
  count: int,
  length: int,
  eos: int,
  use: str = "calibration",
  setting: str = "score.windows",
) -> np.ndarray:
  """Returns ids_NT, the first `count` windows of `length` tokens of the documents, each closed by `eos`.

  Only as many documents are tokenised as that takes. Raises JaxchopError when there are too few tokens; `use` says what
  the text is for and `setting` how many windows.
  """
  ids: list[int] = []
  for document in documents:
    ids += [*tokenizer.encode(document.text, add_special_tokens=False), eos]
    if len(ids) >= count * length:
      return np.asarray(ids[: count * length], np.int32).reshape(count, length)
  raise JaxchopError(
    f"{use.replace('_', '-')} text: {len(ids):,} tokens, but {count} windows of {length} need {count * length:,}; "
    f"set {setting} to at most {len(ids) // length} or name more text in data.{use}"
  )


def first_sentences(
  documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, *, count: int, length: int, least: int = 16
) -> tuple[np.ndarray, np.ndarray]:
  """Returns ids_NT and mask_NT: the first `count` paragraphs of at least `least` tokens, cut after `length` tokens.

  The mask is false at padding, which is on the right. Raises JaxchopError when there are too few paragraphs.
  """
  rows: list[list[int]] = []
  for paragraph in (part for document in documents for part in document.text.split("\n\n")):
    ids = tokenizer.encode(paragraph.strip(), add_special_tokens=False)[:length]
    if len(ids) >= min(least, length):
      rows.append(ids)
    if len(rows) == count:
      real_NT = np.arange(length) < np.array([len(row) for row in rows])[:, None]
      ids_NT = np.zeros((count, length), np.int32)
      ids_NT[real_NT] = [token for row in rows for token in row]
      return ids_NT, real_NT
  raise JaxchopError(
    f"calibration text: {len(rows)} paragraphs of {least} tokens or more, but {count} sentences were asked for; set "
    "merging.sentences lower or name more text in data.calibration"
  )
