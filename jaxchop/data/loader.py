"""Batches of packed records: the batch of step n is a function of (seed, n) alone, on any number of processes.

Shapes: B sequences of the global batch, T tokens predicted by one record, N positions.
"""

import contextlib
import dataclasses
from collections.abc import Generator, Iterator

import grain
import numpy as np
from numpy.typing import NDArray

from jaxchop.data.packed import Packed
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

  `batch_size` counts the sequences of the global batch, over all processes; each process gets its own contiguous slice
  of the rows. Raises UsageError when the processes cannot share it evenly.
  """

  def __init__(self, packed: Packed, *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1):
    if batch_size < 1 or batch_size % process_count:
      raise UsageError(f"batch size {batch_size}: {process_count} processes cannot share it evenly; use a multiple")
    if not 0 <= process_index < process_count:
      raise UsageError(f"process {process_index} is none of 0..{process_count - 1}")
    if not 0 <= seed < 1 << 63:
      raise UsageError(f"seed is {seed}; it is at least 0 and less than 2^63")
    self.packed, self.batch_size = packed, batch_size
    share = batch_size // process_count
    self._rows = np.arange(process_index * share, (process_index + 1) * share, dtype=np.int64)
    self._order = Order(records=packed.records, seed=seed)
    self._source = grain.sources.ArrayRecordDataSource([str(packed.path / shard.file) for shard in packed.shards])

  def indices(self, step: int) -> NDArray[np.int64]:
    """Returns which records make this process's slice of the batch of `step`, row by row."""
    if step < 0:
      raise UsageError(f"step is {step}; steps count from 0")
    return self._order(step * self.batch_size + self._rows)

  def batch(self, step: int) -> NDArray[np.int32]:
    """Returns ids_BT, int32 [rows of this process, seq_len + 1], of `step`."""
    records = [self._source[index] for index in self.indices(step).tolist()]
    dtype = np.dtype(self.packed.dtype).newbyteorder("<")
    return np.stack([np.frombuffer(record, dtype) for record in records]).astype(np.int32)

  def __iter__(self) -> Iterator[NDArray[np.int32]]:
    return self.from_step(0)

  def from_step(self, step: int) -> Generator[NDArray[np.int32], None, None]:
    """Yields the batches of `step`, `step` + 1, … without end, read ahead by threads; close it when done."""
    steps = grain.MapDataset.range(step, _STEPS).map(self.batch)
    reading = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
    with contextlib.closing(iter(steps.to_iter_dataset(reading))) as batches:
      yield from batches

  def close(self) -> None:
    """Closes the files; the loader opens them again when it is used again."""
    self._source.__exit__(None, None, None)
