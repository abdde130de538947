"""Text packed once into fixed-length token records: array_record shards and a manifest that vouches for them.

Every document is followed by EOS and all are concatenated. A record holds seq_len + 1 tokens, and the next one starts
at its last token: so every token of the stream but the first is predicted exactly once.
"""

import hashlib
import importlib.metadata
import itertools
import os
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from array_record.python import array_record_module

from jaxchop.data.packed import FORMAT, MANIFEST, SHARD_NAME, Packed, open_packed, read_manifest, tokenizer_digest
from jaxchop.data.sources import Document
from jaxchop.errors import JaxchopError, UsageError
from jaxchop.files import write_json
from jaxchop.progress import Bar, stage

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast

__all__ = ["Packed", "open_packed", "pack"]
# Bytes of tokens in one shard, about.
SHARD_BYTES = 1 << 26
# Characters tokenised at once: enough to keep every core busy, little against the machine's memory.
_BATCH = 1 << 20
# Behind a shard's name until all of them are written.
_ASIDE = ".tmp"


def pack(
  documents: Iterable[Document], tokenizer: "PreTrainedTokenizerFast", *, seq_len: int, out: Path, eos: int
) -> Packed:
  """Tokenises the documents into records of `seq_len` + 1 ids in folder `out` and returns what was written.

  The same documents, tokenizer and versions give the same bytes. Shards are written aside; the manifest comes last, so
  that an interrupted run leaves what stood there before or nothing that `open_packed` accepts. Raises UsageError on a
  folder that holds other files or on an impossible setting, JaxchopError when the text does not fill one record.
  """
  if seq_len < 1:
    raise UsageError(f"seq_len is {seq_len}; a record predicts at least one token")
  if not 0 <= eos < len(tokenizer):
    raise UsageError(f"EOS token {eos} is outside the tokenizer's vocabulary of {len(tokenizer)}; use one inside")
  _prepare(out)
  stream = _Stream(tokenizer, eos)
  total = len(documents) if isinstance(documents, Sized) else None
  with stage("Packing text into records", total, "documents") as bar:
    shards = list(_write_shards(_records(stream.ids(documents, bar), seq_len), out))
  if not shards:
    raise JaxchopError(
      f"the text has {stream.tokens} tokens, too few for a record of {seq_len + 1}: name more text, or set seq_len to "
      f"at most {max(stream.tokens - 1, 1)}"
    )
  records = sum(shard["records"] for shard in shards)
  counts = {"seq_len": seq_len, "records": records, "dropped_tokens": stream.tokens - records * seq_len - 1}
  _commit(out, shards)
  content = {"format": FORMAT, "versions": _versions(), **counts, **stream.description(), "shards": shards}
  write_json(out / MANIFEST, content)
  return read_manifest(out)


class _Stream:
  """The tokens of all documents in a row, and the account of where they came from."""

  def __init__(self, tokenizer: "PreTrainedTokenizerFast", eos: int):
    self.tokenizer, self.eos = tokenizer, eos
    self.dtype = np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<u4")
    self.tokens = 0
    self._sources: dict[str, dict[str, int]] = {}
    self._digests: dict[str, Any] = {}

  def ids(self, documents: Iterable[Document], bar: Bar) -> Iterator[np.ndarray]:
    """Yields the ids of the documents, each ended by EOS, a batch of documents at a time."""
    for batch in _batches(documents):
      texts = [document.text for document in batch]
      ids = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
      for document in batch:
        self._account(document)
      joined = np.concatenate([np.array([*row, self.eos], self.dtype) for row in ids])
      self.tokens += len(joined)
      bar.advance(len(batch), f"{self.tokens} tokens")
      yield joined

  def _account(self, document: Document) -> None:
    data = document.text.encode()
    source = self._sources.setdefault(document.source, {"documents": 0, "bytes": 0})
    source["documents"] += 1
    source["bytes"] += len(data)
    digest = self._digests.setdefault(document.source, hashlib.sha256())
    digest.update(len(data).to_bytes(8, "little") + data)

  def description(self) -> dict[str, Any]:
    """Returns the manifest's fields about tokens and sources; a digest is over the texts, each behind its length."""
    return {
      "dtype": self.dtype.name,
      "eos": self.eos,
      "tokens": self.tokens,
      "tokenizer_sha256": tokenizer_digest(self.tokenizer),
      "sources": [
        {"name": name, "sha256": self._digests[name].hexdigest(), **counts} for name, counts in self._sources.items()
      ],
    }


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
  batch: list[Document] = []
  size = 0
  for document in documents:
    batch.append(document)
    size += len(document.text)
    if size >= _BATCH:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def _records(stream: Iterable[np.ndarray], seq_len: int) -> Iterator[np.ndarray]:
  """Yields records of seq_len + 1 ids; the first id of each but the first repeats the last of the one before."""
  rest = np.array([], np.uint16)
  for ids in stream:
    # Of the ids' type, also when the rest is the empty start.
    rest = np.concatenate([rest.astype(ids.dtype), ids])
    count = max(len(rest) - 1, 0) // seq_len
    for start in range(0, count * seq_len, seq_len):
      yield rest[start : start + seq_len + 1]
    rest = rest[count * seq_len :]


def _write_shards(records: Iterator[np.ndarray], out: Path) -> Iterator[dict[str, Any]]:
  for number in itertools.count():
    first = next(records, None)
    if first is None:
      return
    rest = itertools.islice(records, max(SHARD_BYTES // first.nbytes, 1) - 1)
    yield _write_shard(itertools.chain([first], rest), out / f"tokens-{number:05d}.array_record")


def _write_shard(records: Iterable[np.ndarray], path: Path) -> dict[str, Any]:
  """Writes one shard aside and reads its count back; returns its entry in the manifest."""
  temporary = path.with_name(path.name + _ASIDE)
  count = 0
  try:
    # One record a group: any record can be read alone. The writer pads small files to what its reader accepts.
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
    for record in records:
      writer.write(record.tobytes())
      count += 1
    writer.close()
    reader = array_record_module.ArrayRecordReader(str(temporary))
    written = reader.num_records()
    reader.close()
  except (OSError, RuntimeError, ValueError) as error:
    temporary.unlink(missing_ok=True)
    raise JaxchopError(f"{temporary}: cannot be written ({error}); free space or choose another folder") from error
  if written != count:
    raise JaxchopError(f"{temporary}: holds {written} of {count} records; free space or choose another folder")
  with temporary.open("rb+") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    os.fsync(file.fileno())
  return {"file": path.name, "records": count, "bytes": temporary.stat().st_size, "sha256": digest}


def _prepare(out: Path) -> None:
  """Makes the folder; refuses one that holds files packing did not write."""
  out.mkdir(parents=True, exist_ok=True)
  others = sorted(path for path in out.iterdir() if path.name != MANIFEST and not _ours(path))
  if others:
    raise UsageError(f"{others[0]}: packing did not write this file; choose an empty folder")


def _ours(path: Path) -> bool:
  name = path.name
  # The second is what an interruption while the manifest was written leaves.
  return SHARD_NAME.fullmatch(name.removesuffix(_ASIDE)) is not None or name.startswith(f".{MANIFEST}.")


def _commit(out: Path, shards: list[dict[str, Any]]) -> None:
  """Puts the new shards in the place of the old ones; until then the folder stays as it was."""
  (out / MANIFEST).unlink(missing_ok=True)
  names = {shard["file"] for shard in shards}
  for path in list(out.iterdir()):
    if path.name not in names and path.name.removesuffix(_ASIDE) not in names:
      path.unlink()
  for name in names:
    (out / (name + _ASIDE)).rename(out / name)


def _versions() -> dict[str, str]:
  return {name: importlib.metadata.version(name) for name in ("jaxchop", "array_record", "tokenizers")}
