"""metrics.jsonl: one line a step, exact to the bit, one curve however often the run was stopped."""

import json
import os
from pathlib import Path
from typing import Any

from jaxchop.errors import JaxchopError
from jaxchop.files import write_text


def read_curve(path: Path) -> list[dict[str, Any]]:
  """Returns the steps in a metrics file up to the first line that a killed process left unfinished."""
  steps = []
  if path.exists():
    for line in path.read_text(encoding="utf-8").splitlines():
      try:
        steps.append(json.loads(line))
      except ValueError:
        break
  return steps


class Curve:
  """A metrics file open for the steps after `start`; what stood there of later steps is cut."""

  def __init__(self, path: Path, start: int, *, writes: bool = True):
    """`writes` is false in all processes of a run but one; these keep the curve in memory."""
    self.path = path
    self.steps = [line for line in read_curve(path) if line["step"] <= start]
    self._file = None
    if writes:
      write_text(path, "".join(json.dumps(line) + "\n" for line in self.steps))
      self._file = path.open("a", encoding="utf-8")

  def append(self, line: dict[str, Any]) -> None:
    """Adds one step; it is in the file when this returns."""
    self.steps.append(line)
    if self._file is None:
      return
    try:
      self._file.write(json.dumps(line) + "\n")
      self._file.flush()
    except OSError as error:
      raise JaxchopError(f"{self.path}: cannot be written: {error.strerror}; free the disk") from error

  def sync(self) -> None:
    """Makes sure the lines outlive the machine, so that no checkpoint is newer than its curve."""
    if self._file is not None:
      os.fsync(self._file.fileno())

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
