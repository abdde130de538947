"""Tokens cut into records, and where in the documents each record begins.

Shapes: N tokens that wait to be cut, S = seq_len + 1 tokens of a record.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxchop.data.journal import Place
from jaxchop.data.tokenise import Tokens


class Record(NamedTuple):
  """One record; `end` is where its last token stands among those that wait."""

  ids: np.ndarray
  segments: np.ndarray | None
  end: int


class Cut:
  """Cuts a stream of tokens that begins at `place`; the first token of a record repeats the last of the one before."""

  def __init__(self, seq_len: int, place: Place, segments: np.dtype | None):
    self._seq_len, self._segments = seq_len, segments
    # Tokens of the first document that earlier records took.
    self._taken = place.token
    self._ids_N: np.ndarray = np.array([], np.uint8)
    # Of each token, the number of its document and which of its tokens it is.
    self._document_N = self._token_N = np.array([], np.int64)
    self._places: dict[int, Place] = {}

  def records(self, tokens: Tokens, places: list[Place]) -> Iterator[Record]:
    """Yields the records that are full with these tokens, whose documents begin at `places`."""
    self._add(tokens, places)
    step, count = self._seq_len, max(len(self._ids_N) - 1, 0) // self._seq_len
    for start in range(0, count * step, step):
      end = start + step
      segments_S = None
      if self._segments is not None:
        document_S = self._document_N[start : end + 1]
        segments_S = (document_S - document_S[0] + 1).astype(self._segments)
      yield Record(self._ids_N[start : end + 1], segments_S, end)
    self._drop(count * step)

  def behind(self, record: Record) -> Place:
    """Returns where the record after this one begins."""
    document, token = self._document_N[record.end].item(), self._token_N[record.end].item()
    return dataclasses.replace(self._places[document], token=token)

  def _add(self, tokens: Tokens, places: list[Place]) -> None:
    numbers = np.array([place.document for place in places], np.int64)
    starts = np.concatenate([[0], np.cumsum(tokens.lengths)[:-1]])
    document_N, token_N = np.repeat(numbers, tokens.lengths), np.arange(len(tokens.ids))
    token_N = token_N - np.repeat(starts, tokens.lengths)
    taken, self._taken = self._taken, 0
    # Of the ids' type, also when nothing waited.
    self._ids_N = np.concatenate([self._ids_N.astype(tokens.ids.dtype), tokens.ids[taken:]])
    self._document_N = np.concatenate([self._document_N, document_N[taken:]])
    self._token_N = np.concatenate([self._token_N, token_N[taken:]])
    self._places |= {place.document: place for place in places}

  def _drop(self, count: int) -> None:
    self._ids_N, self._document_N = self._ids_N[count:], self._document_N[count:]
    self._token_N = self._token_N[count:]
    if len(self._document_N):
      first = self._document_N[0].item()
      self._places = {number: place for number, place in self._places.items() if number >= first}
