"""A model folder from outside: which of its files may be opened, and its JSON, read without trust."""

import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxchop.errors import JaxchopError


def shown(text: object) -> str:
  """Returns a name from a file so that it fits one line of an error, whatever is in it."""
  text = str(text)
  text = text if len(text) <= 200 else text[:200] + "..."
  return text if text.isprintable() else ascii(text)


def regular_file(folder: Path, name: str, where: str = "") -> Path:
  """Returns the path of a plain file of `folder`; raises JaxchopError on anything else.

  A link is followed only inside the folder, or, in a snapshot of the Hugging Face cache (models--ORG--NAME/snapshots/
  REVISION, where every file is a link), into that cache's `blobs` folders. `where` says who named the file.
  """
  prefix = f"{where}: " if where else ""
  if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
    raise JaxchopError(f"{prefix}file name '{shown(name)}' is not a plain name inside {folder}; refused")
  path = folder / name
  real = path.resolve()
  if not any(real.is_relative_to(root) for root in _roots(folder)):
    raise JaxchopError(f"{prefix}{path} is a link to {shown(real)}, outside the folder; put the file itself there")
  try:
    mode = real.stat().st_mode
  except OSError as error:
    raise JaxchopError(f"{prefix}{shown(path)} cannot be read: {error.strerror}") from error
  if not stat.S_ISREG(mode):
    raise JaxchopError(f"{prefix}{shown(path)} is not a file")
  return path


def _roots(folder: Path) -> Sequence[Path]:
  real = folder.resolve()
  entry = real.parent.parent
  snapshot = real.parent.name == "snapshots" and entry.name.startswith("models--")
  return (real, entry / "blobs", entry.parent / "blobs") if snapshot else (real,)


def parse_json(raw: bytes, where: str) -> dict[str, Any]:
  """Returns a JSON object; raises JaxchopError when it is none, or when a key stands in it twice."""

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
      keys = [key for key, _ in pairs]
      twice = next(key for key in keys if keys.count(key) > 1)
      raise JaxchopError(f"{where}: '{shown(twice)}' stands there twice; the file is broken")
    return result

  try:
    value = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
  except (ValueError, RecursionError) as error:
    raise JaxchopError(f"{where} is not JSON: {shown(error)}") from error
  if not isinstance(value, dict):
    raise JaxchopError(f"{where} is not a JSON object")
  return value


def read_json(folder: Path, name: str) -> dict[str, Any]:
  """Returns the JSON object in a file of the folder."""
  path = regular_file(folder, name)
  return parse_json(path.read_bytes(), str(path))
