"""A folder appears whole or not at all: written beside its place, made durable, and renamed last."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Generator
from pathlib import Path

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.files import free_bytes
from jaxchop.wording import size

# The file that says jaxchop wrote a folder; its "files" lists what else jaxchop put there.
MANIFEST = "jaxchop.json"
_TMP, _OLD = ".tmp-jaxchop", ".old-jaxchop"
_COPY_BYTES = 4 << 20
log = logging.getLogger("jaxchop")


@contextlib.contextmanager
def staged(out: Path, *, overwrite: bool = False, source: Path | None = None) -> Generator[Path]:
  """Yields an empty folder beside `out` that takes its place when the block ends well, and is removed when it does not.

  What a killed run left beside `out` is cleaned up first. `source` must survive: an `out` that is it, or holds it, is
  refused. Raises UsageError on a target that may not be replaced, JaxchopError on one that another process writes.
  """
  out = Path(out).resolve()
  check_target(out, overwrite=overwrite, source=source)
  aside, old = out.with_name(out.name + _TMP), out.with_name(out.name + _OLD)
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = _claim(aside, out)
  except OSError as error:
    raise _explained(error, out) from error
  try:
    _settle(old, out)
    yield aside
    _fsync(aside)
    check_target(out, overwrite=overwrite, source=source)
    _take_place(aside, out, old)
  except OSError as error:
    shutil.rmtree(aside, ignore_errors=True)
    raise _explained(error, out) from error
  except BaseException:
    shutil.rmtree(aside, ignore_errors=True)
    raise
  finally:
    os.close(lock)


def check_target(out: Path, *, overwrite: bool, source: Path | None = None) -> None:
  """Raises UsageError unless `out` is absent, empty, or, with `overwrite`, a folder of nothing but jaxchop's files."""
  out = Path(out).resolve()
  if source is not None and source.resolve().is_relative_to(out):
    raise UsageError(f"{out} is, or holds, the source {source}; write to another folder")
  if not out.exists():
    return
  if not out.is_dir():
    raise UsageError(f"{out} is a file; name a folder to write to")
  names = {path.name for path in out.iterdir()}
  if not names:
    return
  if not overwrite:
    raise UsageError(f"{out} is not empty; name another folder, or replace it with --overwrite")
  if MANIFEST not in names:
    raise UsageError(
      f"{out} was not written by jaxchop (it holds no {MANIFEST}) and is not replaced; remove it yourself"
    )
  if foreign := sorted(names - _listed(out / MANIFEST) - {MANIFEST}):
    raise UsageError(f"{out} holds {foreign[0]}, which jaxchop did not write, and is not replaced; move it away first")


def write_file(path: Path, content: bytes | Path) -> None:
  """Writes a file, or copies one byte for byte, and waits until it is on disk."""
  with named(path), path.open("wb") as stream:
    if isinstance(content, bytes):
      stream.write(content)
    else:
      with content.open("rb") as given:
        shutil.copyfileobj(given, stream, _COPY_BYTES)
    stream.flush()
    os.fsync(stream.fileno())


@contextlib.contextmanager
def named(path: Path) -> Generator[None]:
  """Makes an OSError of the block say which file it is about: a failed write does not."""
  try:
    yield
  except OSError as error:
    error.filename = error.filename or str(path)
    raise


def _listed(manifest: Path) -> set[str]:
  try:
    files = json.loads(manifest.read_bytes())["files"]
    return {name for name in files if isinstance(name, str)}
  except (ValueError, KeyError, TypeError):
    return set()


def _claim(aside: Path, out: Path) -> int:
  """Makes the folder beside, empties it of a killed run's files, and returns the lock that marks it as in use."""
  aside.mkdir(exist_ok=True)
  lock = os.open(aside, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    # Some network file systems know no locks; there two writers are the caller's care.
    if error.errno in (errno.EAGAIN, errno.EACCES):
      os.close(lock)
      raise JaxchopError(f"{out}: another process is writing it, in {aside}; wait for it, or end it") from error
  for leftover in list(aside.iterdir()):
    log.info("%s: removing %s, left by an interrupted run", out, leftover.name)
    shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
  return lock


def _settle(old: Path, out: Path) -> None:
  """Ends a replacement that was killed between its two renames: the old folder comes back, or goes for good."""
  if old.exists():
    shutil.rmtree(old) if out.exists() else os.rename(old, out)


def _take_place(aside: Path, out: Path, old: Path) -> None:
  replaced = out.exists() and any(out.iterdir())
  if replaced:
    os.rename(out, old)
  try:
    os.rename(aside, out)
  except OSError:
    _settle(old, out)
    raise
  _fsync(out.parent)
  # What cannot be removed now goes with the next export to this place.
  shutil.rmtree(old, ignore_errors=True)


def _fsync(folder: Path) -> None:
  handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def _explained(error: OSError, out: Path) -> JaxchopError:
  what, free = f"{error.filename}: " if error.filename else "", size(free_bytes(out.parent))
  return JaxchopError(f"{out} was not written: {what}{error.strerror} ({free} free there); nothing was left behind")
