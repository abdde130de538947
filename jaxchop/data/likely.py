"""A teacher's most likely tokens for packed records, on disk: computed once, read beside the records.

A folder holds safetensors files, which appear whole, and an index with their digests. What stands is not computed
again; more records add files. Shapes: N records of a file, T tokens that a record predicts, K likely tokens.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save

from jaxchop.errors import JaxchopError
from jaxchop.files import read_json, write_bytes, write_json

INDEX = "likely.json"
RECORDS, IDS, SHARES = "records", "ids", "shares"


class LikelyTokens:
  """The folder of one corpus and teacher."""

  def __init__(self, folder: Path, about: dict[str, Any]):
    """Takes over what was computed `about` the same; anything else is forgotten with the first new file.

    Raises JaxchopError on a file that is missing or changed.
    """
    # As it reads in the index.
    self._folder, self._about = folder, json.loads(json.dumps(about))
    self._files: list[dict[str, Any]] = []
    # {record: (file, row)}.
    self._places: dict[int, tuple[int, int]] = {}
    self._open: dict[int, Any] = {}
    index = read_json(folder / INDEX) if (folder / INDEX).exists() else {}
    if isinstance(index, dict) and index.get("about") == self._about:
      for entry in index["files"]:
        self._take(entry, _checked(folder / entry["file"], entry))

  def missing(self, records: Iterable[int]) -> list[int]:
    """Returns those of the records, in order, that are not here."""
    return sorted(set(records) - self._places.keys())

  def add(self, records: Sequence[int], ids_NTK: NDArray[np.int32], shares_NTK: NDArray[np.float32]) -> None:
    """Writes what is known of some records; it stands when this returns."""
    # The format writes an array's memory as it lies.
    arrays = {
      RECORDS: np.array(records, np.int64),
      IDS: np.ascontiguousarray(ids_NTK),
      SHARES: np.ascontiguousarray(shares_NTK),
    }
    content = save(arrays)
    entry = {"file": f"likely-{len(self._files):05d}.safetensors", "sha256": hashlib.sha256(content).hexdigest()}
    write_bytes(self._folder / entry["file"], content)
    write_json(self._folder / INDEX, {"about": self._about, "files": [*self._files, entry]})
    self._take(entry, list(records))

  def __getitem__(self, record: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Returns ids_TK and the logarithms shares_TK of a record."""
    number, row = self._places[record]
    if number not in self._open:
      self._open[number] = safetensors.safe_open(self._folder / self._files[number]["file"], framework="numpy")
    ids_TK, shares_TK = (self._open[number].get_slice(name)[row] for name in (IDS, SHARES))
    return ids_TK, shares_TK

  def __getstate__(self) -> dict[str, Any]:
    # Open files stay in this process.
    return self.__dict__ | {"_open": {}}

  def _take(self, entry: dict[str, Any], records: Sequence[int]) -> None:
    self._places |= {record: (len(self._files), row) for row, record in enumerate(records)}
    self._files.append(entry)


def _checked(path: Path, entry: dict[str, Any]) -> list[int]:
  """Returns which records a file is about, after comparing every byte with the index."""
  found = None
  with contextlib.suppress(OSError), path.open("rb") as file:
    found = hashlib.file_digest(file, "sha256").hexdigest()
  if found != entry["sha256"]:
    raise JaxchopError(
      f"{path}: {'it changed since it was written' if found else 'missing'}; remove {path.parent} and run the same "
      "command again, which computes it anew"
    )
  with safetensors.safe_open(path, framework="numpy") as file:
    return file.get_tensor(RECORDS).tolist()
