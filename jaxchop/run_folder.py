"""A run folder: what lies where, one writer at a time, and stages whose results stand."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from jaxchop.files import locked, read_json, write_json


class RunFolder:
  """Paths of one run."""

  def __init__(self, path: Path):
    self.path = path
    self.recipe = path / "recipe.yaml"
    self.scores = path / "scores.json"
    self.plan = path / "plan.json"
    self.data = path / "data"
    self.checkpoints = path / "checkpoints"
    self.metrics = path / "metrics.jsonl"
    self.measured = path / "measured"
    self.evaluation = path / "eval.json"
    self.summary = path / "summary.json"
    self.export = path / "export"
    self.report = path / "report.html"

  @contextlib.contextmanager
  def locked(self) -> Generator[None]:
    """Keeps other writers out while the block runs; the system frees the lock of a process that died."""
    with locked(self.path):
      yield


def standing(
  path: Path,
  key: Any,
  make: Callable[[], dict[str, Any]],
  *,
  product: Path | None = None,
  since: float | None = None,
) -> dict[str, Any]:
  """Returns the JSON result in `path` if it was made for the same `key`, else makes and writes it.

  The key names everything the result depends on; its digest is kept in the file, and so is the time it took. Without
  the file `product`, which making it also wrote, the result does not stand. `since`, of time.monotonic(), says when the
  work began where that was before this call.
  """
  if (found := stood(path, key, product=product)) is not None:
    return found
  start = time.monotonic() if since is None else since
  content = make() | {"key": _digest(key), "seconds": time.monotonic() - start}
  write_json(path, content)
  # What a later process would read: tuples have become lists.
  return json.loads(json.dumps(content))


def stood(path: Path, key: Any, *, product: Path | None = None) -> dict[str, Any] | None:
  """Returns the result that `standing` would find; None where it would be made."""
  if path.exists() and (product is None or product.exists()):
    found = read_json(path)
    if isinstance(found, dict) and found.get("key") == _digest(key):
      return found
  return None


def _digest(key: Any) -> str:
  return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
