"""What is finished of a cache that is being built: a line a shard, so that a killed build goes on behind the last one.

The file begins with a line that says what is built. Each line carries a digest of itself: what a killed process or a
bad disk left of one ends the journal there.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from jaxchop.errors import JaxchopError
from jaxchop.files import write_text

JOURNAL = "building.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Place:
  """Where in the stream of documents the next record begins."""

  # The document, counted from 0, that the record's first token is of.
  document: int = 0
  # Which token of the document it is.
  token: int = 0
  # Digest of all documents before, see `Account` in pack.py.
  before: str = hashlib.sha256().hexdigest()
  # Tokens of all documents before.
  tokens: int = 0
  # Those of them that are in no record.
  dropped: int = 0
  # Records before.
  records: int = 0


class BuildJournal:
  """The journal in one folder; `finished` holds the shards' entries and the places behind them."""

  def __init__(self, folder: Path, about: dict[str, Any]):
    """Takes over what is noted of a build that is `about` the same; any other is forgotten at the first note."""
    self.path = folder / JOURNAL
    self.finished: list[tuple[dict[str, Any], Place]] = []
    header, *lines = _read(self.path) or [{}]
    if header == about:
      self.finished = [(line["shard"], Place(**line["next"])) for line in lines]
    self._about = about

  @property
  def place(self) -> Place:
    return self.finished[-1][1] if self.finished else Place()

  def keep(self, count: int) -> None:
    """Forgets all but the first `count` shards."""
    del self.finished[count:]

  def begin(self) -> None:
    """Writes what is kept; the lines of other builds are gone then."""
    lines = [_line({"shard": shard, "next": dataclasses.asdict(place)}) for shard, place in self.finished]
    write_text(self.path, "".join([_line(self._about), *lines]))

  def note(self, shard: dict[str, Any], place: Place) -> None:
    """Adds a finished shard; it is in the file when this returns."""
    self.finished.append((shard, place))
    try:
      with self.path.open("a", encoding="utf-8") as file:
        file.write(_line({"shard": shard, "next": dataclasses.asdict(place)}))
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
      raise JaxchopError(
        f"{self.path}: cannot be written: {error.strerror}; free the disk, then run the same command again"
      ) from error


def _read(path: Path) -> list[dict[str, Any]]:
  found = []
  try:
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
      content = json.loads(line)
      content.pop("sha256")
      if _line(content) != line:
        break
      found.append(content)
  except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
    # Whatever is behind an unreadable line is built again.
    pass
  return found


def _line(content: dict[str, Any]) -> str:
  digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
  return json.dumps(content | {"sha256": digest}) + "\n"
