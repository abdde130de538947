"""Prunes folder to folder: the kept tensors' bytes are copied under new names, and no model is built."""

import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxchop.errors import JaxchopError
from jaxchop.hub import digest, names
from jaxchop.hub.checkpoint import Checkpoint, Tensor
from jaxchop.hub.export import Exported, config_dtype, plan, write_folder
from jaxchop.hub.hf_config import cut_config
from jaxchop.hub.safetensors import DTYPES, Stored, read_headers
from jaxchop.hub.writer import BLOCK_BYTES, MAX_SHARD_SIZE, Planned, Source, Written, blocks, cast

# Tensors copied at once: hashing is slower than a fast disk, and one hash runs in one thread.
_THREADS = 4


def prune_checkpoint(
  checkpoint: Checkpoint,
  keep: Sequence[int],
  out: Path,
  *,
  dtype: str | None = None,
  max_shard_size: int = MAX_SHARD_SIZE,
  overwrite: bool = False,
  readme: str,
  provenance: Mapping[str, Any],
) -> Exported:
  """Writes the model with only its layers `keep` to the Hugging Face folder `out`, in a few megabytes of memory.

  Tensors keep their bytes; a GGUF file is dequantised tensor by tensor (to bfloat16, see `config_dtype`), and `dtype`
  asks for another type. Raises JaxchopError, naming the tensor, on values that are not finite.
  """
  keep = names.checked_keep(keep, checkpoint.layers)
  config = cut_config(checkpoint.config, keep, dtype=config_dtype(checkpoint, dtype))
  planned = plan(checkpoint, keep, config, dtype)
  origin = {new: name for name in checkpoint.tensors if (new := names.renumber(name, keep))}
  with _source_digest(checkpoint, planned, origin) as source_digest:
    return write_folder(
      checkpoint,
      out,
      keep=keep,
      config=config,
      planned=planned,
      source=_source(checkpoint, origin),
      source_digest=source_digest,
      threads=min(_THREADS, os.cpu_count() or 1),
      max_shard_size=max_shard_size,
      overwrite=overwrite,
      readme=readme,
      provenance=provenance,
    )


def _source(checkpoint: Checkpoint, origin: Mapping[str, str]) -> Source:
  """Returns what gives a tensor's bytes: as they lie in the file, or row by row where they are cast."""
  stored = read_headers(checkpoint.path) if checkpoint.path.is_dir() else {}

  def source(tensor: Planned) -> Iterator[np.ndarray]:
    name = origin[tensor.name]
    if name in stored and stored[name].dtype == tensor.dtype:
      return byte_blocks(stored[name])
    rows = row_blocks(checkpoint.tensors[name])
    return (part for block in rows for part in blocks(cast(block, DTYPES[tensor.dtype])))

  return source


@contextlib.contextmanager
def _source_digest(
  checkpoint: Checkpoint, planned: Sequence[Planned], origin: Mapping[str, str]
) -> Generator[Callable[[Written], str]]:
  """Yields what gives the source's digest: copied tensors have theirs from copying, the others are read meanwhile."""
  kept = {origin[tensor.name]: tensor for tensor in planned}
  copied = {name: tensor for name, tensor in kept.items() if checkpoint.tensors[name].dtype == DTYPES[tensor.dtype]}
  beside = concurrent.futures.ThreadPoolExecutor(1)
  others = {n: beside.submit(tensor.digest) for n, tensor in checkpoint.tensors.items() if n not in copied}

  def of_source(written: Written) -> str:
    known = {name: written.digests[tensor.name] for name, tensor in copied.items()}
    return digest.combine(known | {name: other.result() for name, other in others.items()})

  try:
    yield of_source
  finally:
    beside.shutdown(cancel_futures=True)


def byte_blocks(stored: Stored) -> Iterator[np.ndarray]:
  """Yields the bytes of a tensor block by block, all in one buffer: no page of memory is touched for the first time."""
  buffer = np.empty(min(BLOCK_BYTES, stored.stop - stored.start), np.uint8)
  with stored.file.open("rb", buffering=0) as file:
    for start in range(stored.start, stored.stop, BLOCK_BYTES):
      block = buffer[: min(BLOCK_BYTES, stored.stop - start)]
      if os.preadv(file.fileno(), [block.data], start) != block.nbytes:
        raise JaxchopError(
          f"tensor {stored.name} in {stored.file}: the file ends inside it; it changed since it was opened"
        )
      yield block


def row_blocks(tensor: Tensor) -> Iterator[np.ndarray]:
  """Yields a tensor some megabytes of whole rows at a time."""
  step = max(1, BLOCK_BYTES * tensor.shape[0] // tensor.bytes)
  for start in range(0, tensor.shape[0], step):
    yield tensor.read(slice(start, min(start + step, tensor.shape[0])))
