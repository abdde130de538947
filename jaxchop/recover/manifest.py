"""What a checkpoint must be, leaf by leaf: Orbax restores flipped bits without a word, digests do not."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from jaxchop.files import write_json
from jaxchop.versions import versions

FILE = "manifest.json"
_FORMAT = 2
# {item: {dotted name: {"dtype", "shape", "digest"}}}; the items are the model and the optimizer.
Leaves: TypeAlias = Mapping[str, Mapping[str, Mapping[str, Any]]]


class Damaged(Exception):
  """A checkpoint that is not what was saved; the message says in which way."""


def described(items: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
  """Returns dtype and shape of every array."""

  def leaf(a: Any) -> dict[str, Any]:
    return {"dtype": str(a.dtype), "shape": list(np.shape(a))}

  return {item: {name: leaf(a) for name, a in flat.items()} for item, flat in items.items()}


def write(path: Path, *, step: int, meta: Mapping[str, Any], leaves: Leaves) -> None:
  """Writes the manifest, which carries a digest of itself."""
  content = {"format": _FORMAT, "step": step, "meta": meta, "versions": versions(), "leaves": leaves}
  write_json(path / FILE, content | {"sha256": _digest(content)})


def read(path: Path) -> dict[str, Any]:
  """Returns a checkpoint's manifest; raises Damaged when it is absent or not as written."""
  try:
    content = json.loads((path / FILE).read_text(encoding="utf-8"))
    digest = content.pop("sha256")
  except FileNotFoundError as error:
    raise Damaged(f"it has no {FILE}") from error
  except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
    raise Damaged(f"its {FILE} cannot be read") from error
  if digest != _digest(content):
    raise Damaged(f"its {FILE} has changed since it was written")
  if content["format"] != _FORMAT:
    raise Damaged(f"its format is {content['format']}; this version of jaxchop reads {_FORMAT}")
  return content


def _digest(content: Any) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
