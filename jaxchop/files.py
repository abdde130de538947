"""Files that appear whole or not at all: written beside their place, flushed, renamed."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

from jaxchop.errors import JaxchopError, UsageError

# Stands in a folder that one process at a time may write to.
LOCK = ".lock"


def cache_folder() -> Path:
  """Returns where what can be had again is kept: $JAXCHOP_CACHE or ~/.cache/jaxchop."""
  return Path(os.environ.get("JAXCHOP_CACHE") or Path.home() / ".cache" / "jaxchop")


def local_path(name: str) -> Path:
  """Returns what is to be written as a path of this machine; raises UsageError for a place in a bucket.

  As a path, gs://bucket/run would be a folder called gs: in the working folder, lost with the machine.
  """
  if "://" in name:
    raise UsageError(
      f"{name}: models and runs are written to folders; mount the bucket with gcsfuse and name the folder there "
      "(docs/tpu.md), or write to a local one and copy it with `gcloud storage rsync`"
    )
  return Path(name)


def free_bytes(path: Path) -> int:
  """Returns the bytes that are free where a file or folder is, or would be made."""
  usage = shutil.disk_usage(next(there for there in (path, *path.parents) if there.exists()))
  # A file system that does not tell its size has no known end.
  return usage.free if usage.total else sys.maxsize


def write_text(path: Path, text: str) -> None:
  """Writes a UTF-8 file by rename; raises JaxchopError naming it when the disk refuses."""
  write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
  """Writes a file by rename; raises JaxchopError naming it when the disk refuses."""
  aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside.open("wb") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    aside.replace(path)
  except OSError as error:
    with contextlib.suppress(OSError):
      aside.unlink()
    raise JaxchopError(
      f"{path}: cannot be written: {error.strerror}; free the disk or choose another folder"
    ) from error


def write_json(path: Path, content: Any) -> None:
  """Writes a JSON file by rename."""
  write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
  """Returns a JSON file's content; raises JaxchopError naming the file and what is wrong."""
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except OSError as error:
    raise JaxchopError(f"{path}: cannot be read: {error.strerror}") from error
  except ValueError as error:
    raise JaxchopError(f"{path}: not a JSON file: {error}") from error


@contextlib.contextmanager
def locked(folder: Path) -> Generator[None]:
  """Keeps other writers out of a folder while the block runs; the system frees the lock of a process that died."""
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / LOCK).open("a+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      raise JaxchopError(
        f"{folder}: another jaxchop writes here ({file.read().strip()}); wait for it or choose another folder"
      ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    try:
      yield
    finally:
      file.truncate(0)
