"""A model becomes a stock Hugging Face folder, tensor by tensor, and the folder appears whole or not at all."""

import collections
import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.hub import names
from jaxchop.hub.checkpoint import WEIGHT_DTYPES, Checkpoint
from jaxchop.hub.hf_config import cut_config, parse_config
from jaxchop.hub.manifest import manifest
from jaxchop.hub.safetensors import DTYPES, INDEX
from jaxchop.hub.staging import MANIFEST, check_target, staged, write_file
from jaxchop.hub.writer import (
  BLOCK_BYTES,
  MAX_SHARD_SIZE,
  Planned,
  Source,
  Written,
  blocks,
  cast,
  plan_shards,
  write_tensors,
)
from jaxchop.model.llama import Llama
from jaxchop.model.tree import flatten

log = logging.getLogger("jaxchop")
# What a GGUF file becomes: its quantised blocks have no element type of their own.
_DTYPE_OF_GGUF = "bfloat16"
_HALVES = ("float16", "bfloat16")
_TEMPLATE = "chat_template.jinja"
_HEADER_NAMES = {dtype.name: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
  """What was written."""

  folder: Path
  # Names of all files in the folder, sorted.
  files: tuple[str, ...]
  layers: int
  # Number of weights; a tied head counts once.
  parameters: int
  # Size of all tensors.
  bytes: int
  # What config.json says otherwise than the source's: {key: (before, after)}, None where a key is absent.
  changes: Mapping[str, tuple[Any, Any]]


def export_model(
  model: Llama,
  checkpoint: Checkpoint,
  out: Path,
  *,
  keep: Sequence[int],
  dtype: str | None = None,
  max_shard_size: int = MAX_SHARD_SIZE,
  overwrite: bool = False,
  readme: str,
  provenance: Mapping[str, Any],
) -> Exported:
  """Writes a model that was made of the layers `keep` of `checkpoint`, as a Hugging Face folder `out`.

  One tensor at a time is on the host, wherever the model's arrays lie; with several processes all must call it, and
  process 0 writes. `dtype` None keeps each tensor's source dtype (GGUF: see `config_dtype`). Rows that pad the
  vocabulary are cut off. `provenance` goes into jaxchop.json; its key "reference" names what the weights equal when
  that is no longer the source. Raises JaxchopError, naming the tensor, on values that are not finite.
  """
  keep = names.checked_keep(keep, checkpoint.layers)
  if len(model.layers) != len(keep):
    raise UsageError(f"the model has {len(model.layers)} layers, but its keep-list names {len(keep)}")
  config = cut_config(checkpoint.config, keep, tied=model.config.tied, dtype=config_dtype(checkpoint, dtype))
  leaves = {names.hf_name(name): leaf for name, leaf in flatten(model).items()}
  planned = plan(checkpoint, keep, config, dtype)
  if wrong := sorted({tensor.name for tensor in planned} ^ set(leaves)):
    raise JaxchopError(
      f"tensor {wrong[0]} is in only one of the model and {checkpoint.name}'s config; export needs both alike"
    )

  # Before the first tensor, and in every process: the others must not wait for one that was refused.
  check_target(out, overwrite=overwrite, source=checkpoint.path)
  order = [tensor.name for shard in plan_shards(planned, max_shard_size).values() for tensor in shard]
  arrays = (on_host(leaves[name]) for name in order)

  def source(tensor: Planned) -> Iterator[np.ndarray]:
    array = next(arrays)
    return _rows(array.T if names.transposed(names.dotted_name(tensor.name)) else array, tensor)

  try:
    if jax.process_index():
      return _summary(Path(out), (), planned, config, checkpoint)
    return write_folder(
      checkpoint,
      out,
      keep=keep,
      config=config,
      planned=planned,
      source=source,
      source_digest=lambda written: checkpoint.digest(),
      max_shard_size=max_shard_size,
      overwrite=overwrite,
      readme=readme,
      provenance=provenance,
    )
  finally:
    # Gathering is every process's work; one that stopped early would leave the others waiting.
    if jax.process_count() > 1:
      collections.deque(arrays, maxlen=0)


def write_folder(
  checkpoint: Checkpoint,
  out: Path,
  *,
  keep: Sequence[int],
  config: dict[str, Any],
  planned: Sequence[Planned],
  source: Source,
  source_digest: Callable[[Written], str],
  threads: int = 1,
  max_shard_size: int,
  overwrite: bool,
  readme: str,
  provenance: Mapping[str, Any],
) -> Exported:
  """Writes a folder from tensors that `source` gives; index and config come last, and the folder's name after them."""
  assets = {**carried(checkpoint), "README.md": readme.encode()}
  with staged(out, overwrite=overwrite, source=checkpoint.path) as folder:
    title = f"writing {Path(out).name}"
    written = write_tensors(folder, planned, source, max_shard_size=max_shard_size, threads=threads, title=title)
    for name, content in assets.items():
      write_file(folder / name, content)
    files = [*written.files, *assets, "config.json", *([INDEX] if written.index else [])]
    about = manifest(
      checkpoint,
      keep,
      dtypes=[DTYPES[tensor.dtype].name for tensor in planned],
      digests=written.digests,
      source_digest=source_digest(written),
      files=files,
      provenance=provenance,
    )
    write_file(folder / MANIFEST, about)
    if written.index:
      write_file(folder / INDEX, written.index)
    write_file(folder / "config.json", (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())
  exported = _summary(Path(out), [*files, MANIFEST], planned, config, checkpoint)
  for key, (before, after) in exported.changes.items():
    log.info("config.json: %s: %s -> %s", key, json.dumps(before), json.dumps(after))
  return exported


def plan(checkpoint: Checkpoint, keep: Sequence[int], config: dict[str, Any], dtype: str | None) -> tuple[Planned, ...]:
  """Returns the tensors that an export with this config holds: embedding, layer after layer, norm, head."""
  shapes = names.expected(parse_config(config, "config.json"), len(keep))
  own = {new: tensor.dtype.name for name, tensor in checkpoint.tensors.items() if (new := names.renumber(name, keep))}
  common = config_dtype(checkpoint, dtype)

  def place(name: str) -> float:
    layer = names.layer_of(name)
    return layer if layer is not None else -1 if name == names.EMBEDDING else math.inf

  return tuple(
    # A head that training untied from the embedding takes the embedding's dtype.
    Planned(name=name, dtype=_HEADER_NAMES[common or own.get(name, own[names.EMBEDDING])], shape=shapes[name])
    for name in sorted(shapes, key=place)
  )


def config_dtype(checkpoint: Checkpoint, dtype: str | None) -> str | None:
  """Returns the dtype to write, None for each tensor's own; raises UsageError on one that cannot be written.

  A GGUF file of mostly float16 or bfloat16 weights stays that, any other becomes bfloat16.
  """
  if dtype is not None and dtype not in WEIGHT_DTYPES:
    raise UsageError(f"dtype {dtype} cannot be written; choose one of {', '.join(WEIGHT_DTYPES)}")
  if dtype is None and checkpoint.path.is_file():
    main = checkpoint.config.get("dtype")
    return main if main in _HALVES else _DTYPE_OF_GGUF
  return dtype


def carried(checkpoint: Checkpoint) -> dict[str, Path | bytes]:
  """Returns the files to copy, and the chat template as a file of its own where tokenizer_config.json alone has it."""
  assets = dict(checkpoint.assets)
  tokenizer = json.loads(checkpoint.asset("tokenizer_config.json") or b"{}")
  template = tokenizer.get("chat_template") if isinstance(tokenizer, dict) else None
  if isinstance(template, str) and _TEMPLATE not in assets:
    assets[_TEMPLATE] = template.encode()
  return assets


def on_host(leaf: jax.Array) -> np.ndarray:
  """Returns a parameter as one NumPy array, wherever its shards lie; every process must ask for it."""
  if not leaf.is_fully_addressable:
    return multihost_utils.process_allgather(leaf, tiled=True)
  # An Array keeps the host copy it once gave for as long as it lives: a copy of it takes that copy along when it goes.
  return np.asarray(jnp.copy(leaf))


def _rows(array: np.ndarray, tensor: Planned) -> Iterator[np.ndarray]:
  """Yields the bytes of the rows that the file will hold, cast block by block, on the host: it flushes nothing to 0."""
  rows, dtype = tensor.shape[0], DTYPES[tensor.dtype]
  padded = tensor.name in (names.EMBEDDING, names.HEAD) and array.shape[0] > rows
  if array.shape[1:] != tensor.shape[1:] or (array.shape[0] != rows and not padded):
    raise JaxchopError(f"tensor {tensor.name}: the model's has shape {array.shape}, the config asks for {tensor.shape}")
  step = max(1, BLOCK_BYTES // (math.prod(tensor.shape[1:]) * 4))
  for start in range(0, rows, step):
    yield from blocks(cast(array[start : min(start + step, rows)], dtype))


def _summary(
  out: Path, files: Sequence[str], planned: Sequence[Planned], config: dict[str, Any], checkpoint: Checkpoint
) -> Exported:
  before = checkpoint.config
  keys = [key for key in {**before, **config} if before.get(key) != config.get(key)]
  return Exported(
    folder=out,
    files=tuple(sorted(files)),
    layers=config["num_hidden_layers"],
    parameters=sum(math.prod(tensor.shape) for tensor in planned),
    bytes=sum(tensor.bytes for tensor in planned),
    changes={key: (before.get(key), config.get(key)) for key in keys},
  )
