"""The GGUF container: metadata and a table of tensors, every length checked before it is believed.

Format: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3, little-endian. The `gguf` library's own reader loops
over lengths that the file states, and leaves bounds to numpy; so only its block sizes and dequantisers are used.
"""

import dataclasses
import itertools
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from jaxchop.errors import JaxchopError
from jaxchop.hub.folder import shown

QuantType = gguf.GGMLQuantizationType
# Element types that are kept as they are; all others are dequantised to float32.
_PLAIN = {QuantType.F32: np.float32, QuantType.F16: np.float16, QuantType.BF16: ml_dtypes.bfloat16}
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9
_MAX_DIMS = 4


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
  """Where one tensor lies in a GGUF file, and how its rows are packed."""

  # Name in the file: "blk.0.attn_q.weight".
  name: str
  file: Path
  # Packing of a row's elements.
  kind: gguf.GGMLQuantizationType
  # Row-major: the last axis is contiguous.
  shape: tuple[int, ...]
  # First byte, counted from the beginning of the file.
  start: int

  @property
  def row_bytes(self) -> int:
    block, size = gguf.GGML_QUANT_SIZES[self.kind]
    return self.shape[-1] // block * size

  @property
  def stop(self) -> int:
    """Byte after the last."""
    return self.start + math.prod(self.shape[:-1]) * self.row_bytes

  @property
  def dtype(self) -> np.dtype:
    """Element type that `unpack` returns."""
    return np.dtype(_PLAIN.get(self.kind, np.float32))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GgufFile:
  """The header of a GGUF file."""

  path: Path
  metadata: Mapping[str, Any]
  tensors: Mapping[str, Packed]


def read_gguf(path: Path) -> GgufFile:
  """Returns metadata and tensor table of a GGUF file; raises JaxchopError, naming key or tensor, on a broken one."""
  with path.open("rb") as stream:
    data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
  cursor = _Cursor(data, path)
  if cursor.take(4, "magic") != b"GGUF":
    raise JaxchopError(f"{path} is not a GGUF file: it does not begin with GGUF")
  version = cursor.scalar("I", "version")
  if version not in (2, 3):
    raise JaxchopError(f"{path}: GGUF version {version} is not supported (2 and 3, little-endian, are)")
  tensor_count, key_count = cursor.scalar("Q", "tensor count"), cursor.scalar("Q", "key count")
  metadata: dict[str, Any] = {}
  for _ in range(key_count):
    key = cursor.text("a key")
    if key in metadata:
      raise JaxchopError(f"{path}: key {shown(key)} stands there twice; the file is broken")
    metadata[key] = cursor.value(cursor.scalar("I", key), key)
  rows = [cursor.tensor_row() for _ in range(tensor_count)]
  alignment = metadata.get("general.alignment", 32)
  if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
    raise JaxchopError(f"{path}: general.alignment is {shown(alignment)}; expected a power of two")
  base = -(-cursor.at // alignment) * alignment
  return GgufFile(path=path, metadata=metadata, tensors=_table(path, rows, base, alignment))


def unpack(packed: Packed, rows: slice | np.ndarray) -> np.ndarray:
  """Returns rows of a tensor (a slice, or indices in any order) with their packing undone; a vector is one row."""
  count = math.prod(packed.shape[:-1])
  raw = np.memmap(packed.file, np.uint8, "r", packed.start, (count, packed.row_bytes))[rows]
  if packed.kind in _PLAIN:
    return np.array(raw).view(packed.dtype)
  return gguf.dequantize(raw, packed.kind)


class _Cursor:
  """Reads forward through a file's bytes; whatever would pass the end is an error that names what was being read."""

  def __init__(self, data: mmap.mmap | bytes, path: Path):
    self.data, self.path, self.at, self.size = data, path, 0, len(data)

  def take(self, count: int, what: str) -> bytes:
    if count > self.size - self.at:
      raise JaxchopError(f"{self.path}: the file ends inside {shown(what)}; it is truncated or broken")
    self.at += count
    return self.data[self.at - count : self.at]

  def scalar(self, form: str, what: str) -> Any:
    return struct.unpack("<" + form, self.take(struct.calcsize("<" + form), what))[0]

  def text(self, what: str) -> str:
    try:
      return self.take(self.scalar("Q", what), what).decode("utf-8")
    except UnicodeDecodeError as error:
      raise JaxchopError(f"{self.path}: {shown(what)} is not UTF-8; the file is broken") from error

  def value(self, kind: int, key: str) -> Any:
    if kind == _STRING:
      return self.text(key)
    if kind == _ARRAY:
      return self._array(key)
    if kind not in _SCALARS:
      raise JaxchopError(f"{self.path}: {shown(key)} has the unknown type {kind}; the file is broken")
    number = self.scalar(_SCALARS[kind], key)
    # The shortest decimal of a float32 is what was written; its widening to a double is not.
    return float(str(np.float32(number))) if kind == _FLOAT32 else number

  def _array(self, key: str) -> list[Any]:
    kind, count = self.scalar("I", key), self.scalar("Q", key)
    if kind == _STRING:
      # Each string takes 8 bytes at least: a count beyond that is a lie, found before anything is allocated.
      if count * 8 > self.size - self.at:
        raise JaxchopError(f"{self.path}: {shown(key)} states {count} strings; the file is truncated or broken")
      return [self.text(key) for _ in range(count)]
    if kind not in _SCALARS:
      raise JaxchopError(f"{self.path}: {shown(key)} is an array of type {kind}, which is not supported")
    form = np.dtype("<" + _SCALARS[kind]) if kind != 7 else np.dtype(np.bool_)
    return np.frombuffer(self.take(count * form.itemsize, key), form).tolist()

  def tensor_row(self) -> tuple[str, tuple[int, ...], int, int]:
    name = self.text("a tensor's name")
    dims = self.scalar("I", name)
    if not 0 < dims <= _MAX_DIMS:
      raise JaxchopError(f"tensor {shown(name)} in {self.path} has {dims} dimensions; the file is broken")
    shape = tuple(self.scalar("Q", name) for _ in range(dims))[::-1]
    return name, shape, self.scalar("I", name), self.scalar("Q", name)


def _table(
  path: Path, rows: list[tuple[str, tuple[int, ...], int, int]], base: int, alignment: int
) -> dict[str, Packed]:
  tensors: dict[str, Packed] = {}
  size = path.stat().st_size
  for name, shape, kind, offset in rows:
    where = f"tensor {shown(name)} in {path}"
    if name in tensors:
      raise JaxchopError(f"{where} stands there twice; the file is broken")
    if not _dequantisable(kind):
      known = QuantType(kind).name if kind in QuantType.__members__.values() else f"type {kind}"
      raise JaxchopError(f"{where} is packed as {known}, which the gguf library cannot dequantise")
    packed = Packed(name=name, file=path, kind=QuantType(kind), shape=shape, start=base + offset)
    if 0 in shape or shape[-1] % gguf.GGML_QUANT_SIZES[packed.kind][0] or offset % alignment:
      raise JaxchopError(f"{where}: shape {shape} or offset {offset} does not fit its packing {packed.kind.name}")
    if packed.stop > size:
      raise JaxchopError(f"{where} ends at byte {packed.stop} of {size}; the file is truncated: fetch it again")
    tensors[name] = packed
  ordered = sorted(tensors.values(), key=lambda packed: packed.start)
  for before, after in itertools.pairwise(ordered):
    if before.stop > after.start:
      raise JaxchopError(f"tensor {shown(after.name)} in {path} overlaps {shown(before.name)}; the file is broken")
  return tensors


def _dequantisable(kind: int) -> bool:
  if kind not in QuantType.__members__.values():
    return False
  if QuantType(kind) in _PLAIN:
    return True
  try:
    gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[QuantType(kind)][1]), np.uint8), QuantType(kind))
  except NotImplementedError:
    return False
  return True
