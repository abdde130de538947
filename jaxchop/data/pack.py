"""Text packed once into fixed-length token records: array_record shards and a manifest that vouches for them.

Every document is followed by EOS and all are concatenated. A record holds seq_len + 1 tokens, and the next one starts
at its last token: so every token of the stream but the first is predicted exactly once. Conversations are laid whole
into records instead (whole.py). What stands in the folder does not depend on how many processes tokenised, nor on how
often the building was stopped.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import logging
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxchop.data.cut import Cut, Record
from jaxchop.data.journal import JOURNAL, BuildJournal, Place
from jaxchop.data.packed import FORMAT, MANIFEST, SHARD_NAME, Packed, manifest_bytes, read_manifest, tokenizer_digest
from jaxchop.data.record import FEATURES, INFO, SEGMENTS, TARGETS, TOKENS, encode, id_dtype, tfds_files
from jaxchop.data.shards import ASIDE, ShardWriter, keep_standing
from jaxchop.data.sources import Document
from jaxchop.data.tokenise import Parts, tokenised
from jaxchop.data.whole import Whole
from jaxchop.errors import JaxchopError, UsageError
from jaxchop.files import LOCK, locked, write_bytes
from jaxchop.progress import Bar, stage

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast

log = logging.getLogger("jaxchop")
# What the manifest says of one file of records.
Shard = dict[str, Any]
# Bytes of tokens in one shard, about.
SHARD_BYTES = 1 << 26
# Characters tokenised at once: enough to keep a process busy, little against the machine's memory.
_BATCH = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
  """What a record holds, and how documents get into it."""

  seq_len: int
  dtypes: dict[str, Any]
  eos: int
  whole: bool


class Account:
  """What was read so far: documents and bytes of each source, and a digest of all texts."""

  def __init__(self) -> None:
    self.documents = 0
    self._all = hashlib.sha256()
    self._counts: dict[str, dict[str, int]] = {}
    self._digests: dict[str, Any] = {}

  @property
  def digest(self) -> str:
    return self._all.hexdigest()

  def add(self, document: Document) -> None:
    data = document.text.encode()
    marked = data if document.answers is None else data + repr(document.answers).encode()
    source = self._counts.setdefault(document.source, {"documents": 0, "bytes": 0})
    source["documents"] += 1
    source["bytes"] += len(data)
    for total in (self._digests.setdefault(document.source, hashlib.sha256()), self._all):
      total.update(len(marked).to_bytes(8, "little") + marked)
    self.documents += 1

  def sources(self) -> list[dict[str, Any]]:
    """Returns the manifest's entries of the sources; a digest is over the texts, each behind its length."""
    return [{"name": name, "sha256": self._digests[name].hexdigest(), **n} for name, n in self._counts.items()]


class _TextChanged(Exception):
  """The documents before a place are not those that were read when the place was noted."""


def pack(
  documents: Iterable[Document | str],
  tokenizer: "PreTrainedTokenizerFast",
  *,
  seq_len: int,
  out: Path,
  eos: int,
  segments: bool = False,
  whole: bool = False,
  workers: int = 1,
  overwrite: bool = False,
) -> Packed:
  """Tokenises the documents into records of `seq_len` + 1 ids in folder `out` and returns what was written.

  `segments` stores beside every token which of the record's documents it is of. `whole` is for documents that say which
  parts of them are answers: each lies whole in one record, only answers are to be predicted, and nothing is put behind
  them. The same documents, tokenizer, settings and versions give the same bytes.

  Shards are written aside and the manifest comes last: what stood in the folder stands until all is done, and a later
  call goes on behind the shards that an interrupted one finished. `workers` above 1 starts processes, so a program must
  guard its own main module. Raises UsageError on a folder that holds other files, or a finished cache without
  `overwrite`, and on an impossible setting; JaxchopError when another process builds there or the text does not fill
  one record.
  """
  if seq_len < 1:
    raise UsageError(f"seq_len is {seq_len}; a record predicts at least one token")
  if workers < 1:
    raise UsageError(f"workers is {workers}; at least one process tokenises")
  if not 0 <= eos < len(tokenizer):
    raise UsageError(f"EOS token {eos} is outside the tokenizer's vocabulary of {len(tokenizer)}; use one inside")
  begun = out.exists()
  _refuse_others(out)
  with contextlib.ExitStack() as stack:
    if not begun:
      stack.callback(_remove_empty, out)
    stack.enter_context(locked(out))
    if not overwrite and (out / MANIFEST).exists():
      raise UsageError(f"{out}: holds a finished cache; choose another folder, or say overwrite to replace it")
    # A record's segments count from 1 and are at most as many as its tokens.
    dtypes = {TOKENS: id_dtype(len(tokenizer))} | ({SEGMENTS: id_dtype(seq_len + 2)} if segments or whole else {})
    dtypes |= {TARGETS: np.dtype("u1")} if whole else {}
    build = _Build(Layout(seq_len=seq_len, dtypes=dtypes, eos=eos, whole=whole), tokenizer, out, workers)
    try:
      build.run(documents)
    except _TextChanged:
      if iter(documents) is documents:
        raise JaxchopError(
          f"{out}: the text has changed since this cache was begun; delete {out / JOURNAL} to begin anew"
        ) from None
      log.warning("%s: the text has changed since this cache was begun; it is built anew", out)
      build.journal.keep(0)
      build.run(documents)
  return read_manifest(out)


class _Build:
  """One cache in the making."""

  def __init__(self, layout: Layout, tokenizer: "PreTrainedTokenizerFast", out: Path, workers: int):
    self.layout, self.out, self.workers = layout, out, workers
    self.tokenizer = tokenizer.backend_tokenizer.to_str()
    self.about = {
      "format": FORMAT,
      "versions": {name: importlib.metadata.version(name) for name in ("jaxchop", "array_record", "tokenizers")},
      "seq_len": layout.seq_len,
      "dtypes": {name: dtype.name for name, dtype in layout.dtypes.items()},
      "eos": layout.eos,
      "tokenizer_sha256": tokenizer_digest(tokenizer),
    }
    self.per_shard = max(SHARD_BYTES // (layout.dtypes[TOKENS].itemsize * (layout.seq_len + 1)), 1)
    self.journal = BuildJournal(out, self.about | {"per_shard": self.per_shard})
    keep_standing(self.journal, out)

  def run(self, documents: Iterable[Document | str]) -> None:
    """Writes what is missing of the cache; raises _TextChanged when what stands is of another text."""
    if self.journal.finished:
      log.info("%s: %d files of an earlier build stand; going on behind them", self.out, len(self.journal.finished))
    self.journal.begin()
    account, total = Account(), len(documents) if isinstance(documents, Sized) else None
    with stage("Packing text into records", total, "documents") as bar:
      cut, last = self._write(_named(documents), account, bar)
    shards = [shard for shard, _ in self.journal.finished] + ([last] if last else [])
    if not shards:
      size = self.layout.seq_len + 1
      if self.layout.whole:
        raise JaxchopError(f"no answer begins within {size} tokens of a conversation: set seq_len higher")
      raise JaxchopError(
        f"the text has {cut.tokens} tokens, too few for a record of {size}: name more text, or set seq_len to at most "
        f"{max(cut.tokens - 1, 1)}"
      )
    self._commit(shards, cut, account)

  def _write(self, documents: Iterator[Document], account: Account, bar: Bar) -> tuple[Cut | Whole, Shard | None]:
    """Returns what has cut the stream, and the entry of the last shard where that is not in the journal."""
    layout, place = self.layout, self.journal.place
    writer = ShardWriter(self.out, self.per_shard, len(self.journal.finished))
    cut = Whole(layout.seq_len, place, layout.eos) if layout.whole else Cut(layout.seq_len, place)
    eos = None if layout.whole else layout.eos
    source = _batches(documents, account, place)
    batches = tokenised(source, self.tokenizer, eos, layout.dtypes[TOKENS], self.workers)
    with contextlib.closing(batches):
      for before, found in batches:
        for record in cut.records(found, before):
          if shard := writer.write(self._bytes(record)):
            self.journal.note(shard, cut.behind())
        rate = (cut.tokens - place.tokens) / max(bar.seconds, 1e-9)
        bar.advance(account.documents - bar.done, f"{cut.tokens:,} tokens, {rate:,.0f} tokens/s")
    bar.advance(account.documents - bar.done)
    full = [writer.write(self._bytes(record)) for record in cut.last()]
    return cut, next(filter(None, full), None) or writer.finish()

  def _bytes(self, record: Record) -> bytes:
    return encode({TOKENS: record.ids, SEGMENTS: record.segments, TARGETS: record.targets}, self.layout.dtypes)

  def _commit(self, shards: list[Shard], cut: Cut | Whole, account: Account) -> None:
    """Puts the new files in the place of the old ones; until then the folder stays as it was."""
    seq_len, records = self.layout.seq_len, sum(shard["records"] for shard in shards)
    total_bytes = sum(shard["bytes"] for shard in shards)
    files = tfds_files(self.layout.dtypes, seq_len + 1, [shard["records"] for shard in shards], total_bytes)
    content = self.about | {
      "records": records,
      "tokens": cut.tokens,
      "dropped_tokens": cut.dropped,
      "sources": account.sources(),
      "shards": shards,
      "beside": [
        {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
      ],
    }
    files[MANIFEST] = manifest_bytes(content)
    for name, data in files.items():
      write_bytes(self.out / (name + ASIDE), data)
    (self.out / MANIFEST).unlink(missing_ok=True)
    names = [shard["file"] for shard in shards] + list(files)
    for path in list(self.out.iterdir()):
      if path.name not in (LOCK, JOURNAL) and path.name.removesuffix(ASIDE) not in names:
        path.unlink()
    for name in names:
      if (aside := self.out / (name + ASIDE)).exists():
        aside.rename(self.out / name)
    (self.out / JOURNAL).unlink()


def _named(documents: Iterable[Document | str]) -> Iterator[Document]:
  for number, document in enumerate(documents, start=1):
    yield Document(f"python:{number}", document) if isinstance(document, str) else document


def _batches(
  documents: Iterator[Document], account: Account, place: Place
) -> Iterator[tuple[list[Place], list[Parts]]]:
  """Yields the texts from the place on, in batches, each with the places at which its documents begin."""
  places: list[Place] = []
  texts: list[Parts] = []
  size = 0
  for document in documents:
    number = account.documents
    if number == place.document and account.digest != place.before:
      raise _TextChanged
    if number >= place.document:
      places.append(Place(document=number, before=account.digest))
      texts.append(document.parts)
      size += len(document.text)
    account.add(document)
    if size >= _BATCH:
      yield places, texts
      places, texts, size = [], [], 0
  if account.documents <= place.document and place.document:
    raise _TextChanged
  if texts:
    yield places, texts


def _remove_empty(out: Path) -> None:
  """Removes a folder in which no shard was finished: nothing in it would be taken up again."""
  names = {path.name for path in out.iterdir()}
  if names <= {LOCK, JOURNAL}:
    for name in names:
      (out / name).unlink()
    out.rmdir()


def _refuse_others(out: Path) -> None:
  """Makes the folder; refuses one that holds files packing did not write."""
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise JaxchopError(f"{out}: no folder can be made there ({error.strerror}); choose another one") from error
  if others := sorted(path for path in out.iterdir() if not _ours(path.name)):
    raise UsageError(f"{others[0]}: packing did not write this file; choose an empty folder")


def _ours(name: str) -> bool:
  whole = name.removesuffix(ASIDE)
  # The last ones are what an interruption while one of these was written leaves.
  written = (MANIFEST, FEATURES, INFO, JOURNAL)
  return (
    SHARD_NAME.fullmatch(whole) is not None
    or whole in (*written, LOCK)
    or name.startswith(tuple(f".{file}." for file in written))
  )
