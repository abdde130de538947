"""The array_record files of a cache while they are written: aside, flushed, read back, with a digest."""

import hashlib
import os
from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from jaxchop.data.journal import BuildJournal
from jaxchop.errors import JaxchopError

# Behind a file's name until all of them are written.
ASIDE = ".tmp"


def shard_name(number: int) -> str:
  return f"tokens-{number:05d}.array_record"


class ShardWriter:
  """Writes records to one shard after the other, each of `per_shard` records."""

  def __init__(self, folder: Path, per_shard: int, number: int):
    self._folder, self._per_shard, self._number = folder, per_shard, number
    self._writer: Any = None
    self._records = 0

  def write(self, record: bytes) -> dict[str, Any] | None:
    """Adds a record; returns the shard's entry in the manifest when this one fills it."""
    try:
      if self._writer is None:
        # One record a group: any record can be read alone. The writer pads small files to what its reader accepts.
        self._writer = array_record_module.ArrayRecordWriter(str(self._path), "group_size:1")
      self._writer.write(record)
    except (OSError, RuntimeError, ValueError) as error:
      raise self._unwritable(error) from error
    self._records += 1
    return self.finish() if self._records == self._per_shard else None

  def finish(self) -> dict[str, Any] | None:
    """Returns the entry of the shard that is being written, None where none is; the next record begins another."""
    if self._writer is None:
      return None
    path, count = self._path, self._records
    try:
      self._writer.close()
      reader = array_record_module.ArrayRecordReader(str(path))
      written = reader.num_records()
      reader.close()
    except (OSError, RuntimeError, ValueError) as error:
      raise self._unwritable(error) from error
    if written != count:
      raise self._unwritable(f"it holds {written} of {count} records")
    with path.open("rb+") as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
      os.fsync(file.fileno())
    entry = {"file": shard_name(self._number), "records": count, "bytes": path.stat().st_size, "sha256": digest}
    self._writer, self._records, self._number = None, 0, self._number + 1
    return entry

  @property
  def _path(self) -> Path:
    return self._folder / (shard_name(self._number) + ASIDE)

  def _unwritable(self, error: object) -> JaxchopError:
    self._path.unlink(missing_ok=True)
    return JaxchopError(
      f"{self._path}: cannot be written ({error}); free space and run the same command again, or choose another folder"
    )


def keep_standing(journal: BuildJournal, folder: Path) -> None:
  """Lets the journal forget the first shard whose file is not as noted, and those behind it."""
  for number, (shard, _) in enumerate(journal.finished):
    # Killed while the new files took the old ones' place, a build leaves shards under either name.
    paths = (folder / (shard["file"] + ASIDE), folder / shard["file"])
    if not any(path.is_file() and _digest(path) == shard["sha256"] for path in paths):
      journal.keep(number)
      return


def _digest(path: Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
