"""Batches of packed records: the batch of step n is a function of (seed, n) alone, on any number of processes.

Shapes: R rows of the global batch.
"""

import atexit
import contextlib
import functools
import signal
import weakref
from collections.abc import Generator, Mapping, Sequence

import absl.flags
import grain
import numpy as np
from numpy.typing import NDArray

from jaxchop.data.batch import Batch, batch_of
from jaxchop.data.likely import LikelyTokens
from jaxchop.data.mixture import Mixture
from jaxchop.data.packed import Packed
from jaxchop.data.record import SEGMENTS, TARGETS, TOKENS, decode
from jaxchop.data.workers import serve_parent
from jaxchop.errors import UsageError

# Steps that the reading threads may run ahead.
_AHEAD = 8
_THREADS = 2
# More steps than any run takes: Grain wants to know a length.
_STEPS = 1 << 62
# Weights of corpora from a step on.
Schedule = Mapping[int, Sequence[float]]


class Loader:
  """Batches of packed records by step. Its only state is the number of the next step, which the caller keeps.

  `packed` is one cache or several, read side by side as `weights` say: {0: (0.7, 0.3), 1000: (0.5, 0.5)} changes the
  shares at step 1000; without weights every record is read equally often. `batch_size` counts the sequences of the
  global batch, over all processes; who needs which of its rows, also some of them twice, is the caller's to say.
  `workers` processes read ahead, or threads where it is 0; with processes, a program must guard its own main module.
  """

  def __init__(
    self,
    packed: Packed | Sequence[Packed],
    *,
    batch_size: int,
    seed: int,
    weights: Schedule | None = None,
    workers: int = 0,
  ):
    """Raises UsageError on settings that make no sense and on caches that do not go together."""
    if batch_size < 1:
      raise UsageError(f"batch size {batch_size}: a step takes at least one sequence")
    if not 0 <= seed < 1 << 63:
      raise UsageError(f"seed is {seed}; it is at least 0 and less than 2^63")
    self.corpora = (packed,) if isinstance(packed, Packed) else tuple(packed)
    self.batch_size, self._workers = batch_size, workers
    # By corpus, what a teacher expects of its records; batches have that too, once it is here.
    self.likely: Sequence[LikelyTokens] | None = None
    # Whether batches say where documents end.
    self.segments = any(corpus.segments for corpus in self.corpora)
    if len(lengths := {corpus.seq_len for corpus in self.corpora}) != 1:
      raise UsageError(f"corpora of records of {sorted(lengths)} tokens: pack them with the same seq_len")
    records = [corpus.records for corpus in self.corpora]
    schedule = sorted((weights or {0: records}).items())
    if schedule[0][0] != 0 or any(len(shares) != len(records) for _, shares in schedule):
      raise UsageError("data.weights: begin with step 0 and give every corpus a weight")
    phases = [(step * batch_size, shares) for step, shares in schedule]
    self._mixture = Mixture(records=records, phases=phases, seed=seed)
    # Weights that make no sense are refused here, not in the first batch.
    self._mixture(np.zeros(1, np.int64))
    self._sources = [
      grain.sources.ArrayRecordDataSource([str(corpus.path / shard.file) for shard in corpus.shards])
      for corpus in self.corpora
    ]

  def epochs(self, steps: int) -> list[float]:
    """Returns how often so many steps read each corpus."""
    given = self._mixture.given(steps * self.batch_size)
    return [count / corpus.records for count, corpus in zip(given.tolist(), self.corpora, strict=True)]

  def records(self, steps: int) -> list[NDArray[np.int64]]:
    """Returns which records of each corpus so many steps read, in order."""
    corpus_N, index_N = self._mixture(np.arange(steps * self.batch_size))
    return [np.unique(index_N[corpus_N == corpus]) for corpus in range(len(self.corpora))]

  def indices(self, step: int, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns of each of these rows of the batch of `step` which corpus it is of, and which record of that."""
    if step < 0:
      raise UsageError(f"step is {step}; steps count from 0")
    if len(rows) and not 0 <= rows.min() <= rows.max() < self.batch_size:
      raise UsageError(f"rows {rows.min()}..{rows.max()}: the batch has rows 0..{self.batch_size - 1}")
    return self._mixture(step * self.batch_size + rows)

  def batch(self, step: int, rows: NDArray[np.int64]) -> Batch:
    """Returns these rows of the batch of `step`."""
    places = list(zip(*map(np.ndarray.tolist, self.indices(step, rows)), strict=True))
    batch = self.read(places)
    if self.likely is None:
      return batch
    said = zip(*(self.likely[corpus][index] for corpus, index in places), strict=True)
    return batch._replace(likely=tuple(map(np.stack, said)))

  def read(self, places: Sequence[tuple[int, int]]) -> Batch:
    """Returns records as rows: each is a corpus and the number of one of its records."""
    found = [self._record(*place) for place in places]
    ids_RS, segments_RS, targets_RS = (np.stack([row[name] for row in found]) for name in (TOKENS, SEGMENTS, TARGETS))
    return batch_of(ids_RS, segments_RS if self.segments else None, targets_RS)

  def _record(self, corpus: int, index: int) -> dict[str, np.ndarray]:
    packed = self.corpora[corpus]
    found = decode(self._sources[corpus][index], packed.dtypes, packed.seq_len + 1)
    # A cache that does not say where documents end counts as one document a record, all of it to be predicted.
    return {name: np.ones(packed.seq_len + 1, np.int32) for name in (SEGMENTS, TARGETS)} | found

  def from_step(self, step: int, rows: NDArray[np.int64]) -> Generator[Batch, None, None]:
    """Yields these rows of the batches of `step`, `step` + 1, … without end, read ahead.

    Close it when done.
    """
    batches = self._read(step, rows)
    # What a program leaves open would be ended when half of the interpreter is gone, with noise.
    atexit.register(_close, weakref.ref(batches))
    return batches

  def _read(self, step: int, rows: NDArray[np.int64]) -> Generator[Batch, None, None]:
    steps = grain.MapDataset.range(step, _STEPS).map(functools.partial(self.batch, rows=rows))
    dataset = steps.to_iter_dataset(grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD))
    with contextlib.closing(iter(_by_processes(dataset, self._workers) if self._workers else dataset)) as batches:
      yield from batches

  def close(self) -> None:
    """Closes the files; the loader opens them again when it is used again."""
    for source in self._sources:
      source.__exit__(None, None, None)


def _close(batches: weakref.ref[Generator[Batch, None, None]]) -> None:
  if (left := batches()) is not None:
    left.close()


def _by_processes(dataset: grain.IterDataset, workers: int) -> grain.IterDataset:
  """Returns the same batches in the same order, read by processes."""
  # Grain reads command-line flags, which are parsed only in programs that run by absl.
  if not absl.flags.FLAGS.is_parsed():
    absl.flags.FLAGS.mark_as_parsed()
  # Batches come through pipes: shared memory is left behind by a process that is killed.
  options = grain.experimental.DatasetOptions(min_shm_size=1 << 62)
  ahead = max(_AHEAD // workers, 1)
  return grain.experimental.WithOptionsIterDataset(dataset, options).mp_prefetch(
    grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead), worker_init_fn=_begin
  )


def _begin(index: int, count: int) -> None:
  """Sets up a process that reads; a preempted run still needs its batch of the running step."""
  del index, count
  serve_parent((signal.SIGINT, signal.SIGTERM))
