"""Files in a bucket, named gs://bucket/path: texts are read there, caches are copied to this machine and proven."""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec

from jaxchop.data.packed import MANIFEST, read_manifest
from jaxchop.errors import JaxchopError, UsageError
from jaxchop.files import cache_folder, write_bytes
from jaxchop.progress import stage

log = logging.getLogger("jaxchop")
_SCHEME = "gs://"
_BLOCK = 1 << 22


def is_remote(name: str) -> bool:
  return name.startswith(_SCHEME)


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteFile:
  """A file in a bucket, as far as reading asks for what a `Path` can."""

  url: str

  def __str__(self) -> str:
    return self.url

  @property
  def name(self) -> str:
    return PurePosixPath(self.url).name

  @property
  def suffix(self) -> str:
    return PurePosixPath(self.url).suffix

  def open(self, mode: str = "rb") -> IO[bytes]:
    with _said(self.url):
      return _files(self.url).open(self.url, mode)

  def size(self) -> int:
    with _said(self.url):
      return _files(self.url).size(self.url)


def matching(spec: str) -> list[RemoteFile]:
  """Returns the file of that name or the files that match it as a glob, in order; raises UsageError where none does."""
  with _said(spec):
    files = _files(spec)
    found = [spec] if files.isfile(spec) else [files.unstrip_protocol(name) for name in sorted(files.glob(spec))]
    found = [name for name in found if files.isfile(name)]
  if not found:
    raise UsageError(f"data {spec}: no such file, nor does one match; check bucket and path")
  return [RemoteFile(name) for name in found]


def is_remote_cache(spec: str) -> bool:
  """Returns whether a folder in a bucket holds a finished cache."""
  with _said(spec):
    return is_remote(spec) and _files(spec).isfile(f"{spec.rstrip('/')}/{MANIFEST}")


def fetched(folder: str) -> Path:
  """Returns a cache in a bucket as a folder on this machine, copied there but for what it holds already.

  The copy goes by the digest of the manifest, so that it is another one when the cache in the bucket changes. Raises
  JaxchopError when a file is not what the manifest says.
  """
  folder = folder.rstrip("/")
  with RemoteFile(f"{folder}/{MANIFEST}").open() as file, _said(folder):
    manifest = file.read()
  out = _copies() / hashlib.sha256(manifest).hexdigest()
  if (out / MANIFEST).exists():
    return out
  # Parsed under another name: the folder is a cache once all of it is there.
  write_bytes(out / "fetching" / MANIFEST, manifest)
  packed = read_manifest(out / "fetching")
  wanted = [*packed.beside, *packed.shards]
  with stage(f"Fetching {folder}", sum(file.bytes for file in wanted), "bytes") as bar:
    for entry in wanted:
      if not (out / entry.file).exists():
        _fetch(RemoteFile(f"{folder}/{entry.file}"), out / entry.file, entry.sha256)
      bar.advance(entry.bytes)
  write_bytes(out / MANIFEST, manifest)
  return out


def staging(folder: str) -> Path:
  """Returns where on this machine a cache is built that is to go to a bucket."""
  return _copies() / f"building-{hashlib.sha256(folder.rstrip('/').encode()).hexdigest()}"


def send(cache: Path, folder: str) -> Path:
  """Copies a finished cache into a bucket, its manifest last, and returns where the copy on this machine is now."""
  folder, packed = folder.rstrip("/"), read_manifest(cache)
  with stage(f"Sending {folder}", sum(shard.bytes for shard in packed.shards), "bytes") as bar, _said(folder):
    files = _files(folder)
    for entry in (*packed.shards, *packed.beside):
      files.put_file(str(cache / entry.file), f"{folder}/{entry.file}")
      bar.advance(entry.bytes)
    files.put_file(str(cache / MANIFEST), f"{folder}/{MANIFEST}")
  kept = _copies() / packed.digest
  if not kept.exists():
    cache.rename(kept)
  return kept


def _fetch(source: RemoteFile, out: Path, sha256: str) -> None:
  aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
  digest = hashlib.sha256()
  try:
    with source.open() as remote, aside.open("wb") as local:
      while block := _read(remote, source.url):
        digest.update(block)
        local.write(block)
      local.flush()
      os.fsync(local.fileno())
    if digest.hexdigest() != sha256:
      raise JaxchopError(f"{source}: its bytes changed since it was packed (sha256 differs); build the cache again")
    aside.replace(out)
  except OSError as error:
    raise JaxchopError(f"{out}: cannot be written: {error.strerror}; free the disk or set JAXCHOP_CACHE") from error
  finally:
    aside.unlink(missing_ok=True)


def _read(remote: IO[bytes], url: str) -> bytes:
  with _said(url):
    return remote.read(_BLOCK)


def _copies() -> Path:
  return cache_folder() / "data"


def _files(url: str) -> Any:
  return fsspec.core.url_to_fs(url)[0]


@contextmanager
def _said(url: str) -> Generator[None]:
  """Turns whatever a bucket's library raises into one line; each has exceptions of its own."""
  try:
    yield
  except JaxchopError:
    raise
  except ImportError as error:
    raise UsageError(f"{url}: buckets need the package gcsfs; pip install 'jaxchop[gcs]'") from error
  except Exception as error:
    reason = " ".join(str(error).split())[:200]
    raise JaxchopError(
      f"{url}: the bucket cannot be used ({type(error).__name__}: {reason}); check its name, network and login"
    ) from error
