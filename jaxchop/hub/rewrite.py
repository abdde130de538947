"""Prunes folder to folder: the kept tensors' bytes are copied under new names, and no model is built."""

import concurrent.futures
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxchop.hub import digest, names
from jaxchop.hub.checkpoint import Checkpoint, Tensor
from jaxchop.hub.export import Exported, config_dtype, plan, write_folder
from jaxchop.hub.hf_config import cut_config
from jaxchop.hub.safetensors import DTYPES
from jaxchop.hub.writer import BLOCK_BYTES, MAX_SHARD_SIZE, Planned, Written, blocks, cast


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
  asks for another type.
  Raises JaxchopError, naming the tensor, on values that are not finite.
  """
  keep = names.checked_keep(keep, checkpoint.layers)
  config = cut_config(checkpoint.config, keep, dtype=config_dtype(checkpoint, dtype))
  origin = {new: name for name in checkpoint.tensors if (new := names.renumber(name, keep))}

  def source(tensor: Planned) -> Iterator[np.ndarray]:
    for block in row_blocks(checkpoint.tensors[origin[tensor.name]]):
      yield from blocks(cast(block, DTYPES[tensor.dtype]))

  planned = plan(checkpoint, keep, config, dtype)
  copied = {t.name: name for t in planned if checkpoint.tensors[name := origin[t.name]].dtype == DTYPES[t.dtype]}
  # Copied tensors have their digest from the copying; the others are read for it meanwhile.
  beside = concurrent.futures.ThreadPoolExecutor(1)
  others = {
    name: beside.submit(tensor.digest) for name, tensor in checkpoint.tensors.items() if name not in copied.values()
  }

  def source_digest(written: Written) -> str:
    known = {name: written.digests[new] for new, name in copied.items()}
    return digest.combine(known | {name: other.result() for name, other in others.items()})

  try:
    return write_folder(
      checkpoint,
      out,
      keep=keep,
      config=config,
      planned=planned,
      source=source,
      source_digest=source_digest,
      max_shard_size=max_shard_size,
      overwrite=overwrite,
      readme=readme,
      provenance=provenance,
    )
  finally:
    beside.shutdown(cancel_futures=True)


def row_blocks(tensor: Tensor) -> Iterator[np.ndarray]:
  """Yields a tensor some megabytes of whole rows at a time."""
  step = max(1, BLOCK_BYTES * tensor.shape[0] // tensor.bytes)
  for start in range(0, tensor.shape[0], step):
    yield tensor.read(slice(start, min(start + step, tensor.shape[0])))
