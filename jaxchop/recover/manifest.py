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
_FORMAT = 1
# {item: {dotted name: array}}; the items are the model and the optimizer.
Items: TypeAlias = Mapping[str, Mapping[str, Any]]


class Damaged(Exception):
  """A checkpoint that is not what was saved; the message says in which way."""


def describe(items: Items) -> dict[str, dict[str, dict[str, Any]]]:
  """Returns dtype, shape and digest of every array; raises Damaged on a value that is not finite."""
  return {item: {name: _leaf(f"{item} {name}", a) for name, a in flat.items()} for item, flat in items.items()}


def write(path: Path, *, step: int, meta: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
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


def verify(items: Items, leaves: Mapping[str, Any]) -> None:
  """Raises Damaged, naming the first array that differs from what the manifest says of it."""
  for item, flat in items.items():
    for name, array in flat.items():
      if _leaf(f"{item} {name}", array) != leaves[item][name]:
        raise Damaged(f"{item} {name} has changed since it was written")


def _leaf(name: str, array: Any) -> dict[str, Any]:
  content = np.ascontiguousarray(array)
  if not np.isfinite(content).all():
    raise Damaged(f"{name} holds a value that is not finite")
  shape = list(np.shape(array))
  digest = hashlib.sha256(f"{content.dtype} {shape} ".encode())
  digest.update(content.reshape(-1).view(np.uint8).data)
  return {"dtype": str(content.dtype), "shape": shape, "sha256": digest.hexdigest()}


def _digest(content: Any) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
