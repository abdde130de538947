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
  """One record, [S] each."""

  ids: np.ndarray
  # The number of the document that a token is of, from 1 on.
  segments: np.ndarray
  # Whether a token is to be predicted.
  targets: np.ndarray


class Cut:
  """Cuts a stream of tokens that begins at `place`; the first token of a record repeats the last of the one before."""

  def __init__(self, seq_len: int, place: Place):
    self._seq_len = seq_len
    self.tokens, self._records = place.tokens, place.records
    # Where the last token of the record that was yielded last stands among those that wait.
    self._end = 0
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
      self._end, self._records = start + step, self._records + 1
      document_S = self._document_N[start : self._end + 1]
      yield Record(self._ids_N[start : self._end + 1], document_S - document_S[0] + 1, np.ones(step + 1, bool))
    self._drop(count * step)

  def last(self) -> Iterator[Record]:
    """Yields nothing: what fills no record is dropped."""
    return iter(())

  @property
  def dropped(self) -> int:
    """Tokens that are in no record."""
    return self.tokens - self._records * self._seq_len - 1

  def behind(self) -> Place:
    """Returns where the record after the last yielded one begins."""
    document, token = self._document_N[self._end].item(), self._token_N[self._end].item()
    return dataclasses.replace(self._places[document], token=token, records=self._records)

  def _add(self, tokens: Tokens, places: list[Place]) -> None:
    before = self.tokens + np.cumsum([0, *tokens.lengths])
    numbers = np.array([place.document for place in places], np.int64)
    starts = np.concatenate([[0], np.cumsum(tokens.lengths)[:-1]])
    document_N, token_N = np.repeat(numbers, tokens.lengths), np.arange(len(tokens.ids))
    token_N = token_N - np.repeat(starts, tokens.lengths)
    taken, self._taken = self._taken, 0
    # Of the ids' type, also when nothing waited.
    self._ids_N = np.concatenate([self._ids_N.astype(tokens.ids.dtype), tokens.ids[taken:]])
    self._document_N = np.concatenate([self._document_N, document_N[taken:]])
    self._token_N = np.concatenate([self._token_N, token_N[taken:]])
    for place, count in zip(places, before.tolist(), strict=False):
      self._places[place.document] = dataclasses.replace(place, tokens=count)
    self.tokens = before[-1].item()

  def _drop(self, count: int) -> None:
    self._ids_N, self._document_N = self._ids_N[count:], self._document_N[count:]
    self._token_N = self._token_N[count:]
    if len(self._document_N):
      first = self._document_N[0].item()
      self._places = {number: place for number, place in self._places.items() if number >= first}
