"""Texts out of one file: plain text, JSON lines or Parquet, compressed or not, a piece at a time."""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

import pyarrow
import pyarrow.parquet

from jaxchop.data.remote import RemoteFile
from jaxchop.errors import JaxchopError, UsageError

Source: TypeAlias = Path | RemoteFile
# Characters after which a plain text is cut at the next blank line.
PIECE = 4_000
_COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
_FORMATS = (".txt", ".md", ".jsonl", ".parquet")
# What a text is called in an error: its line in a .jsonl, its row in a .parquet, its piece in a .txt; from 1 on.
Numbered = tuple[int, str]
Item = TypeVar("Item")


def check_suffix(path: Source) -> None:
  """Raises UsageError unless the name ends as a file that `texts` reads."""
  if _kind(path.name) is None:
    raise UsageError(
      f"{path}: a file of text ends in {', '.join(_FORMATS)}, or in .gz or .zst behind the first three; rename it"
    )


def texts(path: Source, text_field: str, *, blank: bool = False) -> Iterator[Numbered]:
  """Yields (number, text) of one file, in order, holding no more than a piece, a line or a row group.

  A .txt or .md is cut at blank lines into pieces of about 4,000 characters; joined with a blank line between them they
  give back the text, its line ends normalised to \\n. Texts of blanks only are left out, unless rows are to be
  `blank`. Raises JaxchopError, with the line or offset, on text that is not UTF-8, on a line that is not JSON and on
  broken compression; UsageError when the text field is missing.
  """
  check_suffix(path)
  if _kind(path.name) in (".txt", ".md"):
    found = _text(path)
  else:
    found = ((number, as_text(row, text_field, f"{path}:{number}")) for number, row in rows(path, (text_field,)))
  return ((number, text) for number, text in _readable(path, found) if blank or text.strip())


def rows(path: Source, columns: Sequence[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (number, row) of one .jsonl or .parquet, in order, holding no more than a line or a row group.

  Only `columns` are read of a .parquet, if they are given. Raises like `texts`, and UsageError on other files.
  """
  check_suffix(path)
  kind = _kind(path.name)
  if kind in (".txt", ".md"):
    raise UsageError(f"{path}: plain text has no rows; name a .jsonl or .parquet file")
  return _readable(path, _json_lines(path) if kind == ".jsonl" else _parquet(path, columns))


def _readable(path: Source, found: Iterator[Item]) -> Iterator[Item]:
  """Yields the same, with errors of reading told in one line."""
  try:
    yield from found
  except Exception as error:
    # The library of a bucket has exceptions of its own.
    told = isinstance(path, RemoteFile) and not isinstance(error, JaxchopError)
    if not told and not isinstance(error, OSError | pyarrow.ArrowException):
      raise
    raise JaxchopError(f"{path}: cannot be read ({_first_line(error)}); get the file again") from error


def _kind(name: str) -> str | None:
  """Returns the ending that says what a file holds, without that of its compression; None where it says nothing."""
  stem, dot, last = name.lower().rpartition(".")
  compressed = dot + last in _COMPRESSED
  suffix = "." + (stem.rpartition(".")[2] if compressed else last)
  return suffix if suffix in _FORMATS and not (compressed and suffix == ".parquet") else None


def _open(path: Source) -> IO[bytes]:
  compression = _COMPRESSED.get(path.suffix.lower())
  if compression is None or (path.size() if isinstance(path, RemoteFile) else path.stat().st_size) == 0:
    return path.open("rb")
  raw = path.open("rb") if isinstance(path, RemoteFile) else str(path)
  # Unlike the zstandard package, Arrow's stream notices a file that ends early.
  return io.BufferedReader(pyarrow.input_stream(raw, compression=compression))  # pyrefly: ignore


def _lines(path: Source) -> Iterator[str]:
  """Yields the lines with their ends; a byte order mark is dropped."""
  with _open(path) as file:
    offset = 0
    for raw in file:
      try:
        yield raw.decode("utf-8-sig" if offset == 0 else "utf-8")
      except UnicodeDecodeError as error:
        where = f"byte {offset + error.start}" + (" after decompression" if path.suffix in _COMPRESSED else "")
        raise JaxchopError(f"{path}: {where} is not UTF-8; convert the file to UTF-8") from error
      offset += len(raw)


def _text(path: Source) -> Iterator[Numbered]:
  normalised = (line for raw in _lines(path) for line in io.StringIO(raw, newline=None))
  return enumerate(pieces(normalised), start=1)


def pieces(lines: Iterable[str]) -> Iterator[str]:
  """Cuts a text, given as lines that keep their \\n, at blank lines; no piece is blank, "\\n\\n" joins them again."""
  piece: list[str] = []
  # Blank lines behind a piece that is long enough: the cut is made only when text follows them.
  blank: list[str] = []
  size = 0
  for line in lines:
    if (line == "\n" and size >= PIECE) or (blank and not line.strip()):
      blank.append(line)
      continue
    if blank:
      yield "".join(piece)[:-1]
      piece, blank, size = blank[1:], [], 0
    piece.append(line)
    size += len(line) if size or line.strip() else 0
  if size:
    yield "".join(piece + blank)


def _json_lines(path: Source) -> Iterator[tuple[int, dict[str, Any]]]:
  for number, line in enumerate(_lines(path), start=1):
    if not line.strip():
      continue
    where = f"{path}:{number}"
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise JaxchopError(f"{where}: not JSON ({_first_line(error)}); a .jsonl holds one object a line") from error
    if not isinstance(row, dict):
      raise JaxchopError(f"{where}: not an object but {type(row).__name__}; a .jsonl holds one object a line")
    yield number, row


def _parquet(path: Source, columns: Sequence[str] | None) -> Iterator[tuple[int, dict[str, Any]]]:
  with path.open("rb") as raw, pyarrow.parquet.ParquetFile(raw) as file:
    names = file.schema_arrow.names
    if missing := set(columns or ()) - set(names):
      raise missing_field(str(path), missing.pop(), names)
    number = 0
    for batch in file.iter_batches(batch_size=1024, columns=columns):
      for values in zip(*batch.columns, strict=True):
        number += 1
        where = f"{path}:{number}"
        yield number, {name: _scalar(value, where) for name, value in zip(batch.schema.names, values, strict=True)}


def _scalar(value: pyarrow.Scalar, where: str) -> object:
  try:
    return value.as_py()
  except UnicodeDecodeError as error:
    raise JaxchopError(f"{where}: byte {error.start} of the text is not UTF-8; write the file again") from error


def as_text(row: dict[str, object], text_field: str, where: str) -> str:
  """Returns the text of one row, "" for null; raises UsageError without the field, JaxchopError when it is no text."""
  if text_field not in row:
    raise missing_field(where, text_field, row)
  value = row[text_field]
  if value is None:
    return ""
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError as error:
      raise JaxchopError(f"{where}: byte {error.start} of {text_field!r} is not UTF-8; write it again") from error
  if not isinstance(value, str):
    raise UsageError(f"{where}: field {text_field!r} holds {type(value).__name__}, not text; set text_field")
  if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
    raise JaxchopError(f"{where}: {text_field!r} holds half of a surrogate pair, which is no character; write it again")
  return value


def missing_field(where: str, text_field: str, names: Iterable[str]) -> UsageError:
  """Returns the error that names the fields there are."""
  found = ", ".join(sorted(map(str, names))) or "no field at all"
  return UsageError(f"{where}: no field {text_field!r} but {found}; set text_field")


def _first_line(error: BaseException) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0]
