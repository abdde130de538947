"""What a model answered, kept line by line in a file, so that an interrupted evaluation goes on where it stopped."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxchop.errors import JaxchopError
from jaxchop.hub.digest import combine, tensor_digest
from jaxchop.model.llama import Llama
from jaxchop.model.tree import flatten

log = logging.getLogger("jaxchop")
FILE = "answers.jsonl"


def identity(model: Llama) -> str:
  """Returns what a model's answers depend on, as one digest: its settings and the content of every weight."""
  flat = {name: np.ascontiguousarray(leaf) for name, leaf in flatten(model).items()}
  weights = {name: tensor_digest(w.dtype, w.shape, [w.reshape(-1).view(np.uint8)]) for name, w in flat.items()}
  return hashlib.sha256(f"{model.config}\n{combine(weights)}".encode()).hexdigest()


class Halted(Exception):
  """Whoever asked has no time for more answers."""


class Answers:
  """{key: answer}; with a folder, what was put there by the same model is there again.

  A key is a digest of the model and the request, so the file may hold answers of many models. A last line that was cut
  off is forgotten.
  """

  def __init__(self, folder: Path | None = None, about: str = "", stopped: Callable[[], bool] = lambda: False):
    """`about` names the model, see `identity`; once `stopped` says so, the next answers raise Halted.

    Raises JaxchopError when the file cannot be read or written.
    """
    self._about, self._known, self._stopped = about, {}, stopped
    self._path = folder and folder / FILE
    if self._path is None:
      return
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      with self._path.open("ab+") as file:
        file.seek(0)
        self._known = _read(file.read())
        # Whole lines alone: the next one must not be glued to a half.
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
          file.write(b"\n")
    except OSError as error:
      raise JaxchopError(f"{self._path}: cannot be used: {error.strerror}; name another folder for answers") from error
    if self._known:
      log.info("%s: %d answers stand there", self._path, len(self._known))

  def key(self, *request: Any) -> str:
    """Returns the key of a request, anything that JSON holds."""
    return hashlib.sha256(json.dumps([self._about, *request]).encode()).hexdigest()

  def get(self, key: str) -> Any:
    """Returns an answer, None where there is none yet."""
    return self._known.get(key)

  def made(self, key: str, make: Callable[..., Any], *arguments: Any) -> Any:
    """Returns an answer, which `make` gives for the arguments where there is none yet."""
    if key not in self._known:
      self.put({key: make(*arguments)})
    return self._known[key]

  def put(self, answers: Mapping[str, Any]) -> None:
    """Adds answers; they are in the file when this returns. Raises JaxchopError when the disk refuses."""
    if self._stopped():
      raise Halted
    self._known.update(answers)
    if self._path is None:
      return
    lines = "".join(json.dumps({"key": key, "answer": answer}) + "\n" for key, answer in answers.items())
    try:
      # Another process that asked the same model may have finished and removed it.
      self._path.parent.mkdir(parents=True, exist_ok=True)
      with self._path.open("a", encoding="utf-8") as file:
        file.write(lines)
    except OSError as error:
      raise JaxchopError(
        f"{self._path}: cannot be written: {error.strerror}; free the disk, then run the same command again"
      ) from error


def _read(content: bytes) -> dict[str, Any]:
  known = {}
  for line in content.splitlines():
    try:
      entry = json.loads(line)
      known[entry["key"]] = entry["answer"]
    except (ValueError, KeyError, TypeError):
      continue
  return known
