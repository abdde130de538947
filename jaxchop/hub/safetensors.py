"""Reads safetensors folders as hostile input: every header and the index are checked before a tensor is touched.

The safetensors library accepts duplicate names and does not name the tensor at fault; so the header is parsed here.
Format: 8 bytes of header length, a JSON header, then the tensors without gaps. Nothing in it is code.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from types import EllipsisType
from typing import Any

import ml_dtypes
import numpy as np

from jaxchop.errors import JaxchopError
from jaxchop.hub.folder import parse_json, read_json, regular_file, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES: Mapping[str, np.dtype] = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
  "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "I16": np.dtype(np.int16),
  "I8": np.dtype(np.int8),
  "U64": np.dtype(np.uint64),
  "U32": np.dtype(np.uint32),
  "U16": np.dtype(np.uint16),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
# The limit of the format's reference implementation.
_MAX_HEADER = 100_000_000
Index = slice | EllipsisType | tuple[slice, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
  """Where one tensor lies: bytes start..stop (half-open) of a file, row-major and little-endian."""

  # Name in the header.
  name: str
  # File that holds it.
  file: Path
  # Name of the element type, as the format spells it: "BF16".
  dtype: str
  shape: tuple[int, ...]
  # First byte, counted from the beginning of the file.
  start: int
  # Byte after the last.
  stop: int


def read_headers(folder: Path) -> dict[str, Stored]:
  """Returns {name: where it lies} of every tensor of a checkpoint folder, one file or sharded with an index.

  Raises JaxchopError, naming file and tensor, on a file or an index that is not exactly what the format says.
  """
  single, index = (folder / SINGLE).is_symlink() or (folder / SINGLE).exists(), (folder / INDEX).exists()
  if single and index:
    raise JaxchopError(f"{folder} holds both {SINGLE} and {INDEX}; remove the one that does not belong to the model")
  if single:
    return read_header(regular_file(folder, SINGLE))
  if index:
    return _read_shards(folder)
  raise JaxchopError(_why_no_weights(folder))


def read_header(file: Path) -> dict[str, Stored]:
  """Returns {name: where it lies} of every tensor of one safetensors file; raises JaxchopError on a broken one."""
  size = file.stat().st_size
  with file.open("rb") as stream:
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > min(_MAX_HEADER, size - 8):
      raise JaxchopError(
        f"{file}: a header of {length} bytes does not fit a file of {size}; truncated or no safetensors"
      )
    raw = stream.read(length)
  header = parse_json(raw, f"{file}: header")
  metadata = header.pop("__metadata__", {})
  if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
    raise JaxchopError(f"{file}: __metadata__ holds something else than strings; the file is broken")
  tensors = {name: _stored(name, entry, file, 8 + length) for name, entry in header.items()}
  _check_no_gaps(file, tensors, 8 + length, size)
  return tensors


def read(stored: Stored, index: Index | None = None) -> np.ndarray:
  """Returns a tensor, or the part `index` (slices of step 1) of it, as an array of its own.

  Whole rows are read into the array without a second copy; other parts touch only the pages they lie on.
  """
  dtype = DTYPES[stored.dtype]
  limits = bounds(stored.shape, index)
  if any(limit != (0, size) for limit, size in zip(limits[1:], stored.shape[1:], strict=True)):
    whole = np.memmap(stored.file, dtype, "r", stored.start, stored.shape)
    return np.array(whole[tuple(slice(*limit) for limit in limits)])
  shape = tuple(stop - start for start, stop in limits)
  skipped = limits[0][0] * math.prod(stored.shape[1:]) * dtype.itemsize if limits else 0
  raw = np.fromfile(stored.file, np.uint8, math.prod(shape) * dtype.itemsize, offset=stored.start + skipped)
  if raw.size != math.prod(shape) * dtype.itemsize:
    raise JaxchopError(
      f"tensor {shown(stored.name)} in {stored.file}: the file ends inside it; it changed while it was open"
    )
  return raw.view(dtype).reshape(shape)


def bounds(shape: tuple[int, ...], index: Index | None) -> list[tuple[int, int]]:
  """Returns (start, stop) along each axis for the part of a tensor that slices of step 1 pick; None is all of it."""
  given = () if index is None or index is ... else index if isinstance(index, tuple) else (index,)
  slices = (*given, *[slice(None)] * (len(shape) - len(given)))
  ranges = [part.indices(size) for part, size in zip(slices, shape, strict=True)]
  if any(step != 1 for *_, step in ranges):
    raise ValueError(f"index {index} has a step; only plain slices are read")
  return [(start, max(start, stop)) for start, stop, _ in ranges]


def _stored(name: str, entry: Any, file: Path, base: int) -> Stored:
  where = f"tensor {shown(name)} in {file}"
  if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
    raise JaxchopError(f"{where}: its header entry is not dtype, shape and data_offsets; the file is broken")
  dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
  if not isinstance(dtype, str) or dtype not in DTYPES:
    raise JaxchopError(f"{where}: unknown dtype {shown(dtype)}; known are {', '.join(DTYPES)}")
  if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
    raise JaxchopError(f"{where}: shape {shown(shape)} or offsets {shown(offsets)} are not whole numbers from 0")
  count = math.prod(shape) * DTYPES[dtype].itemsize
  if offsets[1] - offsets[0] != count:
    raise JaxchopError(
      f"{where}: shape {shown(shape)} of {dtype} takes {count} bytes, its offsets give {offsets[1] - offsets[0]}"
    )
  start, stop = base + offsets[0], base + offsets[1]
  return Stored(name=name, file=file, dtype=dtype, shape=tuple(shape), start=start, stop=stop)


def _naturals(value: Any) -> bool:
  return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_no_gaps(file: Path, tensors: Mapping[str, Stored], base: int, size: int) -> None:
  at = base
  for stored in sorted(tensors.values(), key=lambda stored: (stored.start, stored.stop)):
    if stored.start != at:
      what = "overlaps the tensor before it" if stored.start < at else "leaves unused bytes before it"
      raise JaxchopError(f"tensor {shown(stored.name)} in {file} {what}; the file is broken")
    at = stored.stop
    if at > size:
      where = f"tensor {shown(stored.name)} in {file}"
      raise JaxchopError(f"{where} ends at byte {at} of {size}; the file is truncated: fetch it again")
  if at != size:
    raise JaxchopError(f"{file}: {size - at} bytes follow the last tensor; the file is broken")


def _read_shards(folder: Path) -> dict[str, Stored]:
  where = folder / INDEX
  index = read_json(folder, INDEX)
  weight_map, metadata = index.get("weight_map"), index.get("metadata", {})
  if not isinstance(weight_map, dict) or not weight_map or not isinstance(metadata, dict):
    raise JaxchopError(f"{where}: no weight_map from tensors to files; the index is broken")
  tensors: dict[str, Stored] = {}
  for name in sorted(set(map(str, weight_map.values()))):
    for stored in read_header(regular_file(folder, name, str(where))).values():
      if stored.name in tensors:
        both = f"{tensors[stored.name].file.name} and {name}"
        raise JaxchopError(f"{where}: tensor {shown(stored.name)} lies in both {both}; remove one")
      tensors[stored.name] = stored
  _check_index(where, weight_map, metadata, tensors)
  return tensors


def _check_index(
  where: Path, weight_map: dict[str, Any], metadata: dict[str, Any], tensors: Mapping[str, Stored]
) -> None:
  for name, file in weight_map.items():
    if name not in tensors:
      raise JaxchopError(f"{where}: tensor {shown(name)} is not in {shown(file)}, nor in any other file of the index")
    if tensors[name].file.name != file:
      raise JaxchopError(
        f"{where}: tensor {shown(name)} is said to be in {shown(file)}, but is in {tensors[name].file.name}"
      )
  if extra := sorted(set(tensors) - set(weight_map)):
    raise JaxchopError(f"{where}: tensor {shown(extra[0])} in {tensors[extra[0]].file.name} is not in the index")
  size, total = sum(stored.stop - stored.start for stored in tensors.values()), metadata.get("total_size")
  if total is not None and total != size:
    raise JaxchopError(
      f"{where}: total_size is {shown(total)}, the tensors take {size} bytes; a file is another version's"
    )


def _why_no_weights(folder: Path) -> str:
  names = {path.name for path in folder.iterdir()}
  if "adapter_model.safetensors" in names:
    return f"{folder} holds a LoRA adapter, not a model; merge it into its base model first (peft: merge_and_unload)"
  if shards := sorted(name for name in names if name.startswith("model-") and name.endswith(".safetensors")):
    return f"{folder} holds {shards[0]} but no {INDEX}; copy the index beside it"
  if pickles := sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))):
    return (
      f"{folder} holds weights only as pickle ({pickles[0]}), which can run code and is never read; convert them once "
      f"where you trust them: transformers' AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)"
    )
  return f"{folder} holds neither {SINGLE} nor {INDEX}; jaxchop reads safetensors and GGUF weights only"
