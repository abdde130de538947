"""Batches of packed records: the batch of step n is a function of (seed, n) alone, on any number of processes.

Shapes: R rows of the global batch, S tokens of one record, N positions.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Generator

import grain
import numpy as np
from numpy.typing import NDArray

from jaxchop.data.batch import Batch, batch_of
from jaxchop.data.packed import Packed
from jaxchop.data.record import SEGMENTS, TOKENS, decode
from jaxchop.errors import UsageError

# Steps that the reading threads may run ahead.
_AHEAD = 8
_THREADS = 2
_ROUNDS = 8
# More steps than any run takes: Grain wants to know a length.
_STEPS = 1 << 62


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


def _hash(x_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
  """Returns 64 well mixed bits of each number. Source: the output function of SplitMix64 (Steele et al., 2014)."""
  x_N = x_N + np.uint64(0x9E3779B97F4A7C15)
  x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x_N ^ (x_N >> np.uint64(31))


class Loader:
  """Batches of packed records by step. Its only state is the number of the next step, which the caller keeps.

  `batch_size` counts the sequences of the global batch, over all processes; who needs which of its rows, also some of
  them twice, is the caller's to say.
  """

  def __init__(self, packed: Packed, *, batch_size: int, seed: int):
    if batch_size < 1:
      raise UsageError(f"batch size {batch_size}: a step takes at least one sequence")
    if not 0 <= seed < 1 << 63:
      raise UsageError(f"seed is {seed}; it is at least 0 and less than 2^63")
    self.packed, self.batch_size = packed, batch_size
    # Whether batches say where documents end.
    self.segments = packed.segments
    self._order = Order(records=packed.records, seed=seed)
    self._source = grain.sources.ArrayRecordDataSource([str(packed.path / shard.file) for shard in packed.shards])

  def indices(self, step: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns which record each of these rows of the batch of `step` is."""
    if step < 0:
      raise UsageError(f"step is {step}; steps count from 0")
    if len(rows) and not 0 <= rows.min() <= rows.max() < self.batch_size:
      raise UsageError(f"rows {rows.min()}..{rows.max()}: the batch has rows 0..{self.batch_size - 1}")
    return self._order(step * self.batch_size + rows)

  def batch(self, step: int, rows: NDArray[np.int64]) -> Batch:
    """Returns these rows of the batch of `step`."""
    packed, size = self.packed, self.packed.seq_len + 1
    records = [decode(self._source[index], packed.dtypes, size) for index in self.indices(step, rows).tolist()]
    arrays = {name: np.stack([record[name] for record in records]) for name in packed.dtypes}
    return batch_of(arrays[TOKENS], arrays.get(SEGMENTS))

  def from_step(self, step: int, rows: NDArray[np.int64]) -> Generator[Batch, None, None]:
    """Yields these rows of the batches of `step`, `step` + 1, … without end, read ahead by threads.

    Close it when done.
    """
    steps = grain.MapDataset.range(step, _STEPS).map(functools.partial(self.batch, rows=rows))
    reading = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
    with contextlib.closing(iter(steps.to_iter_dataset(reading))) as batches:
      yield from batches

  def close(self) -> None:
    """Closes the files; the loader opens them again when it is used again."""
    self._source.__exit__(None, None, None)
