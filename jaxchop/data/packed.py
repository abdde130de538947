"""Packed token records on disk: the manifest that describes them, and the checks before anything trusts them."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxchop.data.record import FEATURES, INFO, SEGMENTS, TARGETS, TOKENS
from jaxchop.errors import JaxchopError
from jaxchop.progress import stage

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast

FORMAT = "jaxchop packed tokens 2"
MANIFEST = "manifest.json"
SHARD_NAME = re.compile(r"tokens-\d{5}\.array_record")
_BESIDE = re.compile("|".join(map(re.escape, (FEATURES, INFO))))
_COUNTS = ("seq_len", "records", "tokens", "dropped_tokens", "eos")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class File:
  """One file of the cache; of records, where it is an array_record file."""

  file: str
  bytes: int
  sha256: str
  records: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
  """Packed token records, as their manifest describes them."""

  # The folder.
  path: Path
  # Tokens that one record predicts; it holds one more.
  seq_len: int
  # Records over all shards.
  records: int
  # Tokens of the whole stream, EOS included.
  tokens: int
  # Tokens that are in no record: at the end of a stream of text, or of documents that are longer than a record.
  dropped_tokens: int
  # What is stored of each token, and its type, little endian: its id, and in some caches the document it is of and
  # whether it is to be predicted.
  dtypes: dict[str, np.dtype]
  # Token that ends each document.
  eos: int
  # The tokenizer that made the ids, see `tokenizer_digest`.
  tokenizer_sha256: str
  # sha256 of the manifest: the identity of the data.
  digest: str
  # Array_record files, in order.
  shards: tuple[File, ...]
  # What makes the folder a data set of TFDS.
  beside: tuple[File, ...]
  # Where the text came from: name, sha256, documents and bytes.
  sources: tuple[dict[str, Any], ...]

  @property
  def segments(self) -> bool:
    """Whether the records say where documents end."""
    return SEGMENTS in self.dtypes

  @property
  def targets(self) -> bool:
    """Whether the records say which tokens are to be predicted, as those of conversations do."""
    return TARGETS in self.dtypes

  def describe(self) -> dict[str, Any]:
    """Returns what a person or a script wants to know of the cache."""
    return {
      "folder": str(self.path),
      **{name: getattr(self, name) for name in ("records", "seq_len", "tokens", "dropped_tokens", "eos")},
      "segments": self.segments,
      "targets": self.targets,
      "dtypes": {name: dtype.name for name, dtype in self.dtypes.items()},
      "files": len(self.shards),
      "bytes": sum(shard.bytes for shard in self.shards),
      "documents": sum(source["documents"] for source in self.sources),
      "sources": list(self.sources),
      "tokenizer_sha256": self.tokenizer_sha256,
      "digest": self.digest,
    }


def open_packed(path: Path, tokenizer: "PreTrainedTokenizerFast | None" = None) -> Packed:
  """Returns the packed records in folder `path` after checking every byte of them against the manifest.

  Raises JaxchopError, naming the file, when one is missing, truncated or changed, or when the records were made with
  another tokenizer than `tokenizer`.
  """
  packed = read_manifest(path, tokenizer)
  with stage("Checking packed records", len(packed.shards), "files") as bar:
    for file in (*packed.beside, *packed.shards):
      _verify(path / file.file, file)
      bar.advance(int(file in packed.shards))
  return packed


def tokenizer_digest(tokenizer: "PreTrainedTokenizerFast") -> str:
  """Returns a sha256 over all that decides which ids a text gets."""
  state = json.loads(tokenizer.backend_tokenizer.to_str())
  # These two are set and reset by calls of the tokenizer.
  kept = {key: value for key, value in state.items() if key not in ("truncation", "padding")}
  return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def manifest_bytes(content: dict[str, Any]) -> bytes:
  """Returns the manifest's file, which carries a digest of itself."""
  return (json.dumps(content | {"sha256": _digest(content)}, indent=2, ensure_ascii=False) + "\n").encode()


def read_manifest(path: Path, tokenizer: "PreTrainedTokenizerFast | None" = None) -> Packed:
  """Returns what folder `path` says it holds; the shards are not opened.

  Raises JaxchopError on a broken manifest, or when the records were made with another tokenizer than `tokenizer`.
  """
  file = path / MANIFEST
  try:
    data = file.read_bytes()
    content = json.loads(data)
  except (FileNotFoundError, NotADirectoryError) as error:
    raise JaxchopError(f"{file}: missing, so packing did not finish or was never done; pack the text") from error
  except (OSError, ValueError, RecursionError) as error:
    raise JaxchopError(f"{file}: cannot be read as JSON; pack the text again") from error
  if not isinstance(content, dict) or content.get("format") != FORMAT:
    raise JaxchopError(f"{file}: not the manifest of {FORMAT!r}; pack the text again with this version")
  if content.pop("sha256", None) != _digest(content):
    raise JaxchopError(f"{file}: it changed since it was written; pack the text again")
  if tokenizer is not None and _field(file, content, "tokenizer_sha256", str) != tokenizer_digest(tokenizer):
    raise JaxchopError(f"{file}: packed with another tokenizer than this model's; pack the text again")
  return Packed(
    path=path,
    dtypes=_dtypes(file, content),
    tokenizer_sha256=_field(file, content, "tokenizer_sha256", str),
    digest=hashlib.sha256(data).hexdigest(),
    shards=_files(file, content, "shards", SHARD_NAME, records=int),
    beside=_files(file, content, "beside", _BESIDE),
    sources=tuple(_field(file, content, "sources", list)),
    **{name: _field(file, content, name, int) for name in _COUNTS},
  )


def _digest(content: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _dtypes(file: Path, content: dict[str, Any]) -> dict[str, np.dtype]:
  names = _field(file, content, "dtypes", dict)
  kinds = {TOKENS: ("uint16", "uint32"), SEGMENTS: ("uint16", "uint32"), TARGETS: ("uint8",)}
  if TOKENS not in names or not all(names[name] in kinds.get(name, ()) for name in names):
    raise JaxchopError(f"{file}: 'dtypes' is not what this version stores; pack the text again")
  return {name: np.dtype(names[name]).newbyteorder("<") for name in kinds if name in names}


def _files(file: Path, content: dict[str, Any], field: str, named: re.Pattern[str], **more: type) -> tuple[File, ...]:
  kinds = {"file": str, "bytes": int, "sha256": str, **more}
  entries = [entry if isinstance(entry, dict) else {} for entry in _field(file, content, field, list)]
  found = tuple(File(**{name: _field(file, entry, name, kind) for name, kind in kinds.items()}) for entry in entries)
  for entry in found:
    if not named.fullmatch(entry.file):
      raise JaxchopError(f"{file}: {entry.file!r} is not the name of a packed file; pack the text again")
  if "records" in more and (not found or sum(shard.records for shard in found) != content.get("records")):
    raise JaxchopError(f"{file}: 'records' is not the sum of the shards' records; pack the text again")
  return found


def _field(file: Path, content: dict[str, Any], name: str, kind: type) -> Any:
  value = content.get(name)
  if not isinstance(value, kind) or (kind is int and value < 0):
    raise JaxchopError(f"{file}: {name!r} is missing or not a valid {kind.__name__}; pack the text again")
  return value


def _verify(path: Path, file: File) -> None:
  if not path.is_file():
    raise JaxchopError(f"{path}: missing; pack the text again")
  size = path.stat().st_size
  if size != file.bytes:
    raise JaxchopError(f"{path}: {size} bytes, but {file.bytes} were packed; pack the text again")
  with path.open("rb") as stream:
    if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
      raise JaxchopError(f"{path}: its bytes changed since it was packed (sha256 differs); pack the text again")
