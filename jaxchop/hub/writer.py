"""Streams tensors into safetensors shards: one block in memory, each tensor hashed and refused when it is not finite.

Format: https://github.com/huggingface/safetensors. Element bytes are little-endian and row-major.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import FileIO
from pathlib import Path

import numpy as np

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.hub import digest
from jaxchop.hub.finite import refuse_not_finite
from jaxchop.hub.safetensors import DTYPES, SINGLE
from jaxchop.hub.staging import named
from jaxchop.progress import stage

# What transformers 4, the Hub's own library and mergekit write; transformers 5 writes 50 GB.
MAX_SHARD_SIZE = 5_000_000_000
# Bytes handed on at a time: large enough for the disk, small enough for the processor's caches.
BLOCK_BYTES = 1 << 20
# Bytes after which the disk is set to work while more come.
_FLUSH_BYTES = 128 << 20


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
  """A tensor that will be written: everything its header entry says."""

  # Name in the header.
  name: str
  # Name of the element type, as the format spells it: "BF16".
  dtype: str
  shape: tuple[int, ...]

  @property
  def bytes(self) -> int:
    return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Written:
  """What the shards hold."""

  # Names of the files, in order.
  files: tuple[str, ...]
  # {tensor: sha256}, see digest.py.
  digests: dict[str, str]
  # Content of the index, or None for a single file.
  index: bytes | None


# Gives a planned tensor's bytes as arrays of uint8, each a whole number of elements and valid until the next is asked.
Source = Callable[[Planned], Iterable[np.ndarray]]


def write_tensors(
  folder: Path,
  tensors: Sequence[Planned],
  source: Source,
  *,
  max_shard_size: int = MAX_SHARD_SIZE,
  threads: int = 1,
  title: str = "write",
) -> Written:
  """Writes all tensors into shards of at most `max_shard_size` bytes of tensor data, and waits until they are on disk.

  So many `threads` take a tensor each; with one, `source` is asked in the order of `plan_shards`. The index is
  returned, not written: it is the caller's to write last. Raises JaxchopError, naming the tensor, on values that are
  not finite.
  """
  digests: dict[str, str] = {}
  shards = plan_shards(tensors, max_shard_size)
  refused = threading.Event()
  with _Disk() as disk, stage(title, len(tensors), "tensors") as bar:
    for file, members in shards.items():
      stream = disk.open(folder / file)
      header = _header(members)
      with named(folder / file), concurrent.futures.ThreadPoolExecutor(threads) as pool:
        _write_at(stream, memoryview(header), 0)
        ends = itertools.accumulate((tensor.bytes for tensor in members), initial=len(header))
        jobs = [
          pool.submit(_write_unless, refused, stream, tensor, at, source)
          for tensor, at in zip(members, ends, strict=False)
        ]
        try:
          for tensor, job in zip(members, jobs, strict=True):
            digests[tensor.name] = job.result()
            bar.advance(1, tensor.name)
            disk.wrote(tensor.bytes)
        finally:
          for job in jobs:
            job.cancel()
    disk.finish()
  return Written(files=tuple(shards), digests=digests, index=_index(shards) if len(shards) > 1 else None)


def _write_unless(refused: threading.Event, stream: FileIO, tensor: Planned, start: int, source: Source) -> str:
  """Writes a tensor unless one before it was refused: no thread begins the next while that news travels."""
  if refused.is_set():
    raise concurrent.futures.CancelledError
  try:
    return _write_tensor(stream, tensor, start, source)
  except BaseException:
    refused.set()
    raise


def _write_tensor(stream: FileIO, tensor: Planned, start: int, source: Source) -> str:
  """Writes one tensor from byte `start` on and returns its digest; block after block, each still in the cache."""
  total, size = digest.start(DTYPES[tensor.dtype], tensor.shape), 0
  for block in source(tensor):
    if size + block.nbytes > tensor.bytes:
      raise JaxchopError(f"tensor {tensor.name}: more bytes than the {tensor.bytes} that its shape takes")
    total.update(block)
    refuse_not_finite(tensor.name, tensor.dtype, block, size)
    _write_at(stream, block.data, start + size)
    size += block.nbytes
  if size < tensor.bytes:
    raise JaxchopError(f"tensor {tensor.name}: {size} bytes, but its shape takes {tensor.bytes}")
  return total.hexdigest()


def _write_at(stream: FileIO, block: memoryview, at: int) -> None:
  while block:
    written = os.pwrite(stream.fileno(), block, at)
    block, at = block[written:], at + written


class _Disk:
  """Files written one after the other; a thread makes them durable while the next bytes come."""

  def __enter__(self) -> "_Disk":
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._stream: FileIO | None = None
    self._syncs: list[concurrent.futures.Future[None]] = []
    self._unsynced = 0
    return self

  def __exit__(self, *_: object) -> None:
    self._thread.shutdown()
    if self._stream is not None:
      self._stream.close()

  def open(self, path: Path) -> FileIO:
    """Returns a new file; the one before is closed when it is on disk."""
    self._sync(last=True)
    self._stream = path.open("wb", buffering=0)
    return self._stream

  def wrote(self, size: int) -> None:
    """Sets the disk to work when enough has come since it last began."""
    self._unsynced += size
    if self._unsynced >= _FLUSH_BYTES and all(sync.done() for sync in self._syncs):
      self._sync(last=False)

  def finish(self) -> None:
    """Waits until everything is on disk."""
    self._sync(last=True)
    for sync in self._syncs:
      sync.result()

  def _sync(self, *, last: bool) -> None:
    if self._stream is not None:
      self._syncs.append(self._thread.submit(_to_disk, self._stream, last))
    self._stream, self._unsynced = None if last else self._stream, 0


def _to_disk(stream: FileIO, last: bool) -> None:
  with named(Path(stream.name)):
    os.fsync(stream.fileno())
    if last:
      stream.close()


def plan_shards(tensors: Sequence[Planned], max_shard_size: int) -> dict[str, list[Planned]]:
  """Returns {file name: its tensors}, filled in order; a tensor larger than `max_shard_size` gets a file of its own."""
  if max_shard_size < 1:
    raise UsageError(f"max_shard_size is {max_shard_size}; it must be at least 1 byte")
  shards: list[list[Planned]] = [[]]
  size = 0
  for tensor in tensors:
    if shards[-1] and size + tensor.bytes > max_shard_size:
      shards.append([])
      size = 0
    shards[-1].append(tensor)
    size += tensor.bytes
  if len(shards) == 1:
    return {SINGLE: _aligned(shards[0])}
  return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": _aligned(shard) for i, shard in enumerate(shards, 1)}


def cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """Returns the array in another type, itself if it has it; what is too large becomes infinite and is refused later."""
  with np.errstate(over="ignore"):
    return array.astype(dtype, copy=False)


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
  """Yields the bytes of an array in blocks, without a copy when it is contiguous and little-endian."""
  if sys.byteorder == "big":
    array = array.byteswap()
  flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  for start in range(0, flat.size, BLOCK_BYTES):
    yield flat[start : start + BLOCK_BYTES]


def _aligned(shard: list[Planned]) -> list[Planned]:
  """Wide elements first, so that every tensor starts at a multiple of its element size."""
  return sorted(shard, key=lambda tensor: -DTYPES[tensor.dtype].itemsize)


def _header(members: Sequence[Planned]) -> bytes:
  entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
  at = 0
  for tensor in members:
    entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, at + tensor.bytes]}
    at += tensor.bytes
  raw = json.dumps(entries, separators=(",", ":")).encode()
  # Spaces up to a multiple of 8 keep the tensors aligned in a mapped file.
  raw += b" " * (-len(raw) % 8)
  return len(raw).to_bytes(8, "little") + raw


def _index(shards: dict[str, list[Planned]]) -> bytes:
  tensors = [tensor for members in shards.values() for tensor in members]
  metadata = {
    "total_parameters": sum(math.prod(tensor.shape) for tensor in tensors),
    "total_size": sum(tensor.bytes for tensor in tensors),
  }
  weight_map = {tensor.name: file for file, members in shards.items() for tensor in members}
  return (json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n").encode()
