"""Which record of which corpus stands at a place of the endless stream of training records: computed, never stored.

Shapes: N positions, K corpora.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jaxchop.errors import UsageError

_ROUNDS = 8
# Weights are rounded to shares of a million, so that all arithmetic is of whole numbers.
_PARTS = 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Order:
  """In which order records are read: a new permutation every epoch, computed, never stored.

  Position p of the endless stream is record `permutation(seed, p // records)[p % records]`, so that batches run across
  the ends of epochs and every record is read exactly once in each.
  """

  records: int
  seed: int

  def __call__(self, position_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the record at each position."""
    epoch_N, offset_N = np.divmod(position_N, self.records)
    index_N = self._mixed(epoch_N, offset_N)
    # The network permutes a power of four at least as large: walk on until the index is inside (cycle walking).
    while (outside_N := index_N >= self.records).any():
      index_N[outside_N] = self._mixed(epoch_N[outside_N], index_N[outside_N])
    return index_N

  def _mixed(self, epoch_N: NDArray[np.int64], index_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns index_N after a balanced Feistel network over the halves of its bits, keyed by seed and epoch."""
    half = np.uint64(max((self.records - 1).bit_length() + 1, 2) // 2)
    mask = (np.uint64(1) << half) - np.uint64(1)
    key_N = _hash(_hash(np.full_like(epoch_N, self.seed).astype(np.uint64)) ^ epoch_N.astype(np.uint64))
    left_N, right_N = index_N.astype(np.uint64) >> half, index_N.astype(np.uint64) & mask
    for turn in range(_ROUNDS):
      left_N, right_N = right_N, left_N ^ (_hash(key_N + _hash(right_N + np.uint64(turn << 56))) & mask)
    return (left_N << half | right_N).astype(np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
  """Corpora read side by side in given shares, each in an order of its own and without repeats within its epochs.

  `phases` are pairs of the position where shares begin to hold and the shares, one a corpus. From a phase's begin on,
  the first corpus gets floor(n * share) of the first n positions, the second as much of what is left, and so on: at
  any moment each has what it should have, but for fewer than K records, and places are found without reading on.
  """

  records: Sequence[int]
  phases: Sequence[tuple[int, Sequence[float]]]
  seed: int

  def __call__(self, position_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the corpus at each position, and the record of it."""
    corpus_N, turn_N = np.empty_like(position_N), np.empty_like(position_N)
    starts = np.array([start for start, _ in self.phases])
    phase_N = np.searchsorted(starts, position_N, side="right") - 1
    for phase in np.unique(phase_N):
      here_N = phase_N == phase
      corpus_N[here_N], within_N = _dealt(position_N[here_N] - starts[phase], self._parts[phase])
      turn_N[here_N] = within_N + self._before[phase][corpus_N[here_N]]
    record_N = np.empty_like(position_N)
    for corpus, records in enumerate(self.records):
      mine_N = corpus_N == corpus
      # The first corpus is read as if it were alone.
      order = Order(records=records, seed=(self.seed + corpus * 0x9E3779B97F4A7C15) % (1 << 63))
      record_N[mine_N] = order(turn_N[mine_N])
    return corpus_N, record_N

  def given(self, count: int) -> NDArray[np.int64]:
    """Returns how many of the first `count` positions each corpus gets."""
    phase = max(number for number, (start, _) in enumerate(self.phases) if start <= count)
    return self._before[phase] + _given(count - self.phases[phase][0], self._parts[phase])

  @functools.cached_property
  def _parts(self) -> list[NDArray[np.int64]]:
    return [_parts(shares) for _, shares in self.phases]

  @functools.cached_property
  def _before(self) -> list[NDArray[np.int64]]:
    """What each corpus has given when each phase begins."""
    before = [np.zeros(len(self.records), np.int64)]
    for (start, _), (end, _), parts in zip(self.phases, self.phases[1:], self._parts, strict=False):
      before.append(before[-1] + _given(end - start, parts))
    return before


def _parts(shares: Sequence[float]) -> NDArray[np.int64]:
  """Returns the shares as whole parts of about a million; raises UsageError where that is not possible."""
  if not all(np.isfinite(share) and share >= 0 for share in shares) or sum(shares) <= 0:
    raise UsageError(f"data.weights: {', '.join(map(str, shares))} are no weights; none is negative, one is above 0")
  parts = np.array([round(share / sum(shares) * _PARTS) for share in shares], np.int64)
  if (lost := np.flatnonzero((parts == 0) & (np.array(shares) > 0))).size:
    raise UsageError(f"data.weights: {shares[lost[0]]} is less than a millionth of all; leave it out or raise it")
  return parts


def _dealt(offset_N: NDArray[np.int64], parts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
  """Returns the corpus at each place since a phase began, and how many records of it stand before."""
  corpus_N, turn_N, open_N = np.empty_like(offset_N), np.empty_like(offset_N), np.ones(len(offset_N), bool)
  left_N = offset_N.copy()
  for corpus, part in enumerate(parts):
    of = parts[corpus:].sum()
    if part == 0:
      continue
    given_N = left_N * part // of
    hit_N = open_N & ((left_N + 1) * part // of > given_N)
    corpus_N[hit_N], turn_N[hit_N] = corpus, given_N[hit_N]
    open_N &= ~hit_N
    left_N -= given_N
  return corpus_N, turn_N


def _given(count: int, parts: NDArray[np.int64]) -> NDArray[np.int64]:
  """Returns how many of the first `count` places of a phase each corpus gets."""
  given = np.zeros(len(parts), np.int64)
  for corpus, part in enumerate(parts):
    if part:
      given[corpus] = count * part // parts[corpus:].sum()
      count -= given[corpus].item()
  return given


def _hash(x_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
  """Returns 64 well mixed bits of each number. Source: the output function of SplitMix64 (Steele et al., 2014)."""
  x_N = x_N + np.uint64(0x9E3779B97F4A7C15)
  x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x_N ^ (x_N >> np.uint64(31))
