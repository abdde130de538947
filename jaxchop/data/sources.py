"""Documents out of a data spec: files and globs, tfds://, hf:// or `builtin`, streamed in a fixed order."""

import dataclasses
import difflib
import glob
import hashlib
import importlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import huggingface_hub

from jaxchop.data import files
from jaxchop.data.remote import matching
from jaxchop.errors import JaxchopError, UsageError

BUILTIN = "builtin"
# What is read of a data set repository.
_HUB = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
  """One text, called SOURCE:KEY: a topic, a piece of a text file, a line of a .jsonl, a row of a data set."""

  name: str
  text: str
  # From where to where, half-open, the text is to be predicted; None means all of it.
  answers: tuple[tuple[int, int], ...] | None = None

  @property
  def source(self) -> str:
    return self.name.rpartition(":")[0]

  @property
  def parts(self) -> tuple[tuple[str, bool], ...]:
    """The text in pieces, each with whether it is to be predicted; they are tokenised one by one, as prompts are."""
    if self.answers is None:
      return ((self.text, True),)
    edges = [0, *itertools.chain.from_iterable(self.answers), len(self.text)]
    pieces = ((self.text[start:end], bool(number % 2)) for number, (start, end) in enumerate(itertools.pairwise(edges)))
    return tuple(piece for piece in pieces if piece[0])


Entry = TypeVar("Entry", covariant=True)


class Reader(Protocol[Entry]):
  """What becomes of the rows of a data set: documents, or something else that has a name."""

  def file(self, path: files.Source, name: str) -> Iterator[Entry]:
    """Yields what is in a file, by names that begin with `name`."""
    ...

  def row(self, row: Mapping[str, Any], name: str) -> Entry | None:
    """Returns what is in one row, if anything."""
    ...


@dataclasses.dataclass(frozen=True, slots=True)
class _Texts:
  """Reads one text field a row."""

  text_field: str
  # Whether rows of blanks are texts, too.
  blank: bool = False

  def file(self, path: files.Source, name: str) -> Iterator[Document]:
    found = files.texts(path, self.text_field, blank=self.blank)
    return (Document(f"{name}:{number}", text) for number, text in found)

  def row(self, row: Mapping[str, Any], name: str) -> Document | None:
    text = files.as_text(dict(row), self.text_field, name)
    return Document(name, text) if self.blank or text.strip() else None


def documents(spec: str, *, text_field: str = "text", blank: bool = False) -> Iterator[Document]:
  """Returns the documents of `spec` one by one, in the same order every time; blank rows are left out unless `blank`.

  `spec` is a file or glob (.txt .md .jsonl .parquet, the first three also .gz and .zst), also one in a bucket (gs://),
  `tfds://name/config[?split=train&data_dir=…]` (prepared array_record folders; TensorFlow is not used),
  `hf://org/name[/folder][@revision][:split]` (the .parquet and .jsonl files of a data set repository; without a split,
  all of them), or `builtin` (the topics of the standard library's help). `text_field` names the text of a .jsonl
  object, a .parquet column or a feature. Raises UsageError at once on a spec that names nothing, JaxchopError while
  reading on bad content and when there is no document at all.
  """
  return _builtin() if spec == BUILTIN else entries(spec, _Texts(text_field, blank))


def entries(spec: str, reader: Reader[Entry]) -> Iterator[Entry]:
  """Returns what a reader makes of the rows of `spec`, but for `builtin` as `documents` does; raises as that does."""
  scheme, separator, rest = spec.partition("://")
  kinds: dict[str, Callable[[str, Reader[Entry]], Iterator[Entry]]] = {"tfds": _tfds, "hf": _hub, "gs": _bucket}
  if separator and scheme not in kinds:
    raise UsageError(f"data {spec!r}: unknown scheme {scheme}://; use a file, a glob, gs://, tfds://, hf:// or builtin")
  return _not_empty(kinds[scheme](rest, reader) if separator else _files(spec, reader), spec)


class Corpus:
  """The documents of several specs in a row, read anew each time they are iterated over."""

  def __init__(self, specs: Sequence[str], *, text_field: str = "text"):
    self.specs, self.text_field = specs, text_field

  def __iter__(self) -> Iterator[Document]:
    # All are looked up before the first is read: a misspelt last one is not found out an hour later.
    return itertools.chain.from_iterable([documents(spec, text_field=self.text_field) for spec in self.specs])


def digest(documents: Iterable[Document]) -> str:
  """Returns a sha256 over names and texts in order: the identity of the text that something was computed on."""
  total = hashlib.sha256()
  for document in documents:
    answers = () if document.answers is None else (repr(document.answers).encode(),)
    for part in (document.name.encode(), document.text.encode(), *answers):
      total.update(len(part).to_bytes(8, "little") + part)
  return total.hexdigest()


def _not_empty(stream: Iterator[Entry], spec: str) -> Iterator[Entry]:
  empty = True
  for entry in stream:
    empty = False
    yield entry
  if empty:
    raise JaxchopError(f"data {spec}: no text in it; name data that holds some")


def _builtin() -> Iterator[Document]:
  topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
  return (Document(f"{BUILTIN}:{name}", topics[name]) for name in sorted(topics))


def _files(spec: str, reader: Reader[Entry]) -> Iterator[Entry]:
  return _read(_expand(spec), reader)


def _bucket(rest: str, reader: Reader[Entry]) -> Iterator[Entry]:
  return _read(matching(f"gs://{rest}"), reader)


def _read(paths: Sequence[files.Source], reader: Reader[Entry]) -> Iterator[Entry]:
  for path in paths:
    files.check_suffix(path)
  return itertools.chain.from_iterable(reader.file(path, str(path)) for path in paths)


def _expand(spec: str) -> list[Path]:
  path = Path(spec)
  if path.is_file():
    return [path]
  if path.is_dir():
    raise UsageError(f"data {spec}: a folder; name its files, as {path / '*.jsonl'}")
  if glob.has_magic(spec):
    found = [Path(name) for name in sorted(glob.glob(spec, recursive=True)) if Path(name).is_file()]
    if not found:
      raise UsageError(f"data {spec}: no file matches; check the pattern")
    return found
  if not path.parent.is_dir():
    raise UsageError(f"data {spec}: there is no folder {path.parent}; check the path")
  around = [str(path.parent / other.name) for other in path.parent.iterdir() if other.is_file()]
  nearest = difflib.get_close_matches(str(path), [*around, BUILTIN], n=3)
  hint = f"the nearest is {', '.join(nearest)}" if nearest else "name a file, a glob, tfds://, hf:// or builtin"
  raise UsageError(f"data {spec}: no such file; {hint}")


def _tfds(rest: str, reader: Reader[Entry]) -> Iterator[Entry]:
  name, _, query = rest.partition("?")
  settings = {key: value for key, _, value in (pair.partition("=") for pair in query.split("&") if pair)}
  if not name or not settings.keys() <= {"split", "data_dir"}:
    raise UsageError(f"data tfds://{rest}: expected tfds://name/config?split=train&data_dir=FOLDER")
  split = settings.get("split", "train")
  rows = _prepared(name, split, settings.get("data_dir"))
  named = ((f"tfds://{name}?split={split}:{number + 1}", number) for number in range(len(rows)))
  found = (reader.row(rows[number], where) for where, number in named)
  return (entry for entry in found if entry is not None)


def _prepared(name: str, split: str, folder: str | None) -> Any:
  """Returns a random-access source of one split; without `download=False` tfds would start to build the data set."""
  import tensorflow_datasets as tfds

  try:
    return tfds.data_source(name, split=split, data_dir=folder, download=False)
  except (ImportError, NotImplementedError, AssertionError, ValueError, KeyError, OSError) as error:
    reason = (str(error).splitlines() or [""])[0].rstrip(".")
    place = folder or tfds.core.constants.DATA_DIR
    raise JaxchopError(
      f"data tfds://{name}: cannot be read from {place} ({type(error).__name__}: {reason}); without TensorFlow only "
      "folders prepared with file_format='array_record' can: prepare it elsewhere and set data_dir"
    ) from error


def _hub(rest: str, reader: Reader[Entry]) -> Iterator[Entry]:
  match = re.fullmatch(r"([^/@:]+/[^/@:]+)(?:/([^@:]+))?(?:@([^:]+))?(?::([^:/]+))?", rest)
  if match is None:
    raise UsageError(f"data hf://{rest}: expected hf://org/name, then /folder, @revision and :split where needed")
  name, folder, revision, split = match.groups()
  root = _snapshot(f"hf://{rest}", name, folder, revision, split)
  names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
  wanted = re.compile(rf"(.*[/_.-])?{re.escape(split)}[/_.-].*" if split else ".*")
  under = f"{folder.rstrip('/')}/" if folder else ""
  found = [file for file in names if file.startswith(under) and file.endswith(_HUB) and wanted.fullmatch(file)]
  if not found:
    raise UsageError(f"data hf://{rest}: no .parquet or .jsonl file of that folder and split in the repository")
  return itertools.chain.from_iterable(reader.file(root / file, f"hf://{name}/{file}") for file in found)


def _snapshot(spec: str, name: str, folder: str | None, revision: str | None, split: str | None) -> Path:
  """Returns the folder of the hub's cache that holds the wanted files, fetched where they are not there yet."""
  patterns = [f"{folder or ''}*{split or ''}*{suffix}" for suffix in _HUB]
  try:
    return Path(
      huggingface_hub.snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns)
    )
  except (OSError, ValueError) as error:
    reason = " ".join(str(error).split())[:200]
    raise JaxchopError(
      f"data {spec}: cannot be fetched ({type(error).__name__}: {reason}); check name and network, or use files"
    ) from error
