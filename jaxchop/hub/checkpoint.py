"""A model on disk, opened and checked, whatever its format: architecture, tensors by Hugging Face name, other files."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxchop.errors import JaxchopError
from jaxchop.hub import names
from jaxchop.hub.digest import combine, tensor_digest
from jaxchop.hub.folder import shown
from jaxchop.model.config import LlamaConfig
from jaxchop.progress import track

# Element types a weight may have.
WEIGHT_DTYPES = ("float32", "float16", "bfloat16")
# Elements compared or hashed at once: bounds the memory of reading a whole tensor.
_CHUNK = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
  """One weight in its Hugging Face layout; nothing is read before `read()`."""

  # Shape in the Hugging Face layout: a linear layer is [out, in].
  shape: tuple[int, ...]
  # Element type that `read` returns.
  dtype: np.dtype
  # Returns the tensor, or the part that slices of step 1 pick, as an array of its own.
  read: Callable[..., np.ndarray]
  # File that holds it.
  file: Path

  @property
  def bytes(self) -> int:
    """Size of the whole tensor as `read` returns it."""
    return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

  def chunks(self) -> Iterator[np.ndarray]:
    """Yields the tensor row block by row block, in order: the same bytes as the whole, in little memory."""
    rows = self.shape[0]
    step = max(1, _CHUNK // max(1, int(np.prod(self.shape[1:], dtype=np.int64))))
    for start in range(0, rows, step):
      yield self.read(slice(start, min(start + step, rows)))

  def digest(self) -> str:
    """Returns the sha256 over dtype, shape and bytes: the same for a copy in any other file."""
    return tensor_digest(self.dtype, self.shape, (chunk.view(np.uint8).data for chunk in self.chunks()))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
  """A model that was opened and checked: every tensor of the architecture is there, in shape, and nothing else."""

  # What the person called it: a folder, a file, a hub id, `builtin`.
  name: str
  # Folder or file on this machine.
  path: Path
  # Commit of a hub model or version of a package; None for a plain folder or file.
  revision: str | None
  # config.json as it stands in the folder, or as derived from a GGUF file.
  config: dict[str, Any]
  architecture: LlamaConfig
  # Number of decoder layers.
  layers: int
  # {Hugging Face name: tensor}.
  tensors: Mapping[str, Tensor]
  # Files that an export carries along unchanged: {name: path, or the bytes where no such file exists}.
  assets: Mapping[str, Path | bytes]

  @property
  def parameters(self) -> int:
    """Number of weights; a tied head counts once."""
    return sum(tensor.bytes // tensor.dtype.itemsize for tensor in self.tensors.values())

  @property
  def size(self) -> int:
    """Bytes of all tensors as they are read."""
    return sum(tensor.bytes for tensor in self.tensors.values())

  def asset(self, name: str) -> bytes | None:
    """Returns the content of a carried file, or None where the model has none."""
    content = self.assets.get(name)
    return content.read_bytes() if isinstance(content, Path) else content

  def digest(self) -> str:
    """Returns the sha256 over the name and the digest (dtype, shape, bytes) of every tensor, in the order of names."""
    every = track(self.tensors.items(), f"digest of {self.name}", len(self.tensors), "tensors")
    return combine({name: tensor.digest() for name, tensor in every})


def checked_tensors(
  tensors: Mapping[str, Tensor], architecture: LlamaConfig, layers: int, where: str
) -> dict[str, Tensor]:
  """Returns the tensors of the architecture, in its order; raises JaxchopError, naming file and tensor, if they differ.

  Stored rotary frequencies are left out, and so is the head of a tied model when it equals the embedding byte by byte.
  """
  # A lie about the layers must not cost the time to list them.
  if layers > len(tensors):
    raise JaxchopError(f"{where} states {layers:,} layers, but there are {len(tensors)} tensors in all; it is broken")
  wanted = names.expected(architecture, layers)
  found = {name: tensor for name, tensor in tensors.items() if not names.ignorable(name)}
  if names.HEAD in found and architecture.tied and names.EMBEDDING in found:
    _check_tied(found[names.EMBEDDING], found.pop(names.HEAD))
  for name, tensor in found.items():
    if name not in wanted:
      raise JaxchopError(
        f"tensor {shown(name)} in {tensor.file} is not part of a Llama of {layers} layers as {where} states"
      )
    if tensor.shape != wanted[name]:
      raise JaxchopError(f"tensor {name} in {tensor.file}: shape {tensor.shape}, expected {wanted[name]} by {where}")
    if tensor.dtype.name not in WEIGHT_DTYPES:
      kinds = ", ".join(WEIGHT_DTYPES)
      raise JaxchopError(f"tensor {name} in {tensor.file}: dtype {tensor.dtype.name}; weights must be one of {kinds}")
  if missing := [name for name in wanted if name not in found]:
    raise JaxchopError(f"tensor {missing[0]} is missing; {where} asks for it ({len(missing)} tensors missing in all)")
  return {name: found[name] for name in wanted}


def _check_tied(embedding: Tensor, head: Tensor) -> None:
  same = embedding.shape == head.shape and embedding.dtype == head.dtype
  if not (same and all(_equal(a, b) for a, b in zip(embedding.chunks(), head.chunks(), strict=True))):
    raise JaxchopError(
      f"tensor {names.HEAD} in {head.file} differs from the embedding, but the config says tie_word_embeddings; "
      f"set that to false if the model has a head of its own, or remove the tensor"
    )


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
  return np.array_equal(a.view(np.uint8), b.view(np.uint8))
