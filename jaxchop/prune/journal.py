"""Losses that were measured, line by line in a file, so that an interrupted scoring goes on where it stopped."""

import json
from pathlib import Path

Key = tuple[str, int]


class Journal:
  """{(removed layers, batch): losses}; with a file, what was put there is there again for the same `about`.

  The file's first line says what it is about. A last line that was cut off, and a file about something else, are
  forgotten: both cost time alone.
  """

  def __init__(self, path: Path | None = None, about: str = ""):
    self._known: dict[Key, list[float]] = {}
    self._path = path
    if path is None:
      return
    first = json.dumps({"about": about})
    lines = path.read_text().splitlines() if path.exists() else []
    if lines[:1] != [first]:
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(first + "\n")
      return
    for line in lines[1:]:
      try:
        entry = json.loads(line)
      except ValueError:
        break
      self._known[entry["removed"], entry["batch"]] = entry["nll"]
    # Whole lines alone: the next one must not be glued to a half.
    self._write("w", [first, *(_line(key, nll) for key, nll in self._known.items())])

  def __getitem__(self, key: Key) -> list[float]:
    return self._known[key]

  def get(self, removed: str, batch: int) -> list[float] | None:
    return self._known.get((removed, batch))

  def put(self, removed: str, batch: int, nll: list[float]) -> None:
    self._known[removed, batch] = nll
    if self._path is not None:
      self._write("a", [_line((removed, batch), nll)])

  def close(self) -> None:
    """Removes the file: what it held stands in a result now."""
    if self._path is not None:
      self._path.unlink(missing_ok=True)

  def _write(self, mode: str, lines: list[str]) -> None:
    assert self._path is not None
    with self._path.open(mode) as file:
      file.writelines(line + "\n" for line in lines)


def _line(key: Key, nll: list[float]) -> str:
  return json.dumps({"removed": key[0], "batch": key[1], "nll": nll})
