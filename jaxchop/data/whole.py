"""Documents laid whole into records, as conversations want it: none begins in the middle, none sees another.

A record takes documents as long as the next one fits and is filled up with EOS, which nobody predicts. A document
longer than a record is cut at its end, and one of whose answers nothing is left is dropped.

Shapes: N tokens of a document, S = seq_len + 1 tokens of a record.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from jaxchop.data.cut import Record
from jaxchop.data.journal import Place
from jaxchop.data.tokenise import Tokens


class Whole:
  """Lays a stream of documents that begins at `place` into records."""

  def __init__(self, seq_len: int, place: Place, eos: int):
    self._size, self._eos = seq_len + 1, eos
    # Of the record in the making: ids and targets of its documents.
    self._documents: list[tuple[np.ndarray, np.ndarray]] = []
    # The first document of the next record.
    self._next = place
    self.tokens, self.dropped = place.tokens, place.dropped

  def records(self, tokens: Tokens, places: list[Place]) -> Iterator[Record]:
    """Yields the records that are full with these tokens, whose documents begin at `places`."""
    ends = np.cumsum(tokens.lengths)[:-1]
    pieces = zip(np.split(tokens.ids, ends), np.split(tokens.targets, ends), places, strict=True)
    for ids_N, targets_N, place in pieces:
      here = dataclasses.replace(place, tokens=self.tokens, dropped=self.dropped)
      kept_N, wanted_N = ids_N[: self._size], targets_N[: self._size]
      self.tokens += len(ids_N)
      # The first token of a document is predicted from nothing.
      if not wanted_N[1:].any():
        self.dropped += len(ids_N)
        continue
      if self._taken + len(kept_N) > self._size:
        self._next = here
        yield self._record()
      self.dropped += len(ids_N) - len(kept_N)
      self._documents.append((kept_N, wanted_N))

  def last(self) -> Iterator[Record]:
    """Yields the record that the end of the stream left open."""
    if self._documents:
      yield self._record()

  def behind(self) -> Place:
    """Returns where the record after the last yielded one begins."""
    return self._next

  @property
  def _taken(self) -> int:
    return sum(len(ids_N) for ids_N, _ in self._documents)

  def _record(self) -> Record:
    """Returns the record in the making and begins another."""
    documents, self._documents = self._documents, []
    lengths = [len(ids_N) for ids_N, _ in documents]
    left = self._size - sum(lengths)
    ids_S = np.concatenate([ids_N for ids_N, _ in documents] + [np.full(left, self._eos, documents[0][0].dtype)])
    targets_S = np.concatenate([targets_N for _, targets_N in documents] + [np.zeros(left, bool)])
    segments_S = np.repeat(np.arange(1, len(lengths) + 2), [*lengths, left])
    return Record(ids_S, segments_S, targets_S)
