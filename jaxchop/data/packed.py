"""Packed token records on disk: the manifest that describes them, and the checks before anything trusts them."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxchop.errors import JaxchopError
from jaxchop.progress import stage

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast

FORMAT = "jaxchop packed tokens 1"
MANIFEST = "manifest.json"
SHARD_NAME = re.compile(r"tokens-\d{5}\.array_record")
_COUNTS = ("seq_len", "records", "tokens", "dropped_tokens", "eos")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
  """One array_record file."""

  file: str
  records: int
  bytes: int
  sha256: str


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
  # Tokens at the end of the stream that fill no record.
  dropped_tokens: int
  # Type of the stored ids: uint16 or uint32, little endian.
  dtype: str
  # Token that ends each document.
  eos: int
  # The tokenizer that made the ids, see `tokenizer_digest`.
  tokenizer_sha256: str
  # sha256 of the manifest: the identity of the data.
  digest: str
  # Files in order.
  shards: tuple[Shard, ...]


def open_packed(path: Path, tokenizer: "PreTrainedTokenizerFast | None" = None) -> Packed:
  """Returns the packed records in folder `path` after checking every byte of them against the manifest.

  Raises JaxchopError, naming the file, when one is missing, truncated or changed, or when the records were made with
  another tokenizer than `tokenizer`.
  """
  packed = read_manifest(path)
  if tokenizer is not None and packed.tokenizer_sha256 != tokenizer_digest(tokenizer):
    raise JaxchopError(f"{path / MANIFEST}: packed with another tokenizer than this model's; pack the text again")
  with stage("Checking packed records", len(packed.shards), "files") as bar:
    for shard in packed.shards:
      _verify(path / shard.file, shard)
      bar.advance()
  return packed


def tokenizer_digest(tokenizer: "PreTrainedTokenizerFast") -> str:
  """Returns a sha256 over all that decides which ids a text gets."""
  state = json.loads(tokenizer.backend_tokenizer.to_str())
  # These two are set and reset by calls of the tokenizer.
  kept = {key: value for key, value in state.items() if key not in ("truncation", "padding")}
  return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> Packed:
  """Returns what folder `path` says it holds; the shards are not opened. Raises JaxchopError on a broken manifest."""
  file = path / MANIFEST
  try:
    data = file.read_bytes()
    content = json.loads(data)
  except FileNotFoundError as error:
    raise JaxchopError(f"{file}: missing, so packing did not finish or was never done; pack the text") from error
  except (OSError, ValueError, RecursionError) as error:
    raise JaxchopError(f"{file}: cannot be read as JSON; pack the text again") from error
  if not isinstance(content, dict) or content.get("format") != FORMAT:
    raise JaxchopError(f"{file}: not the manifest of {FORMAT!r}; pack the text again with this version")
  return Packed(
    path=path,
    dtype=_field(file, content, "dtype", str),
    tokenizer_sha256=_field(file, content, "tokenizer_sha256", str),
    digest=hashlib.sha256(data).hexdigest(),
    shards=_shards(file, content),
    **{name: _field(file, content, name, int) for name in _COUNTS},
  )


def _shards(file: Path, content: dict[str, Any]) -> tuple[Shard, ...]:
  entries = _field(file, content, "shards", list)
  kinds = {"file": str, "records": int, "bytes": int, "sha256": str}
  shards = tuple(
    Shard(**{name: _field(file, entry if isinstance(entry, dict) else {}, name, kind) for name, kind in kinds.items()})
    for entry in entries
  )
  for shard in shards:
    if not SHARD_NAME.fullmatch(shard.file):
      raise JaxchopError(f"{file}: shard {shard.file!r} is not the name of a shard; pack the text again")
  if content.get("dtype") not in ("uint16", "uint32") or not shards:
    raise JaxchopError(f"{file}: dtype is neither uint16 nor uint32, or there is no shard; pack the text again")
  if sum(shard.records for shard in shards) != content.get("records"):
    raise JaxchopError(f"{file}: 'records' is not the sum of the shards' records; pack the text again")
  return shards


def _field(file: Path, content: dict[str, Any], name: str, kind: type) -> Any:
  value = content.get(name)
  if not isinstance(value, kind) or (kind is int and value < 0):
    raise JaxchopError(f"{file}: {name!r} is missing or not a valid {kind.__name__}; pack the text again")
  return value


def _verify(path: Path, shard: Shard) -> None:
  if not path.is_file():
    raise JaxchopError(f"{path}: missing; pack the text again")
  size = path.stat().st_size
  if size != shard.bytes:
    raise JaxchopError(f"{path}: {size} bytes, but {shard.bytes} were packed; pack the text again")
  with path.open("rb") as file:
    if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
      raise JaxchopError(f"{path}: its bytes changed since it was packed (sha256 differs); pack the text again")
