"""A process of its own that compiles for TPUs, which answers one question: `python -m jaxchop.preflight.alone CACHE`.

The question comes pickled through standard input from the process that started it, and from nowhere else; the answer
goes to standard output as JSON.
"""

import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.parallel.topology import environment, require_compiler

if TYPE_CHECKING:
  from jaxchop.preflight.compiled import Question


def cache_folder() -> Path:
  """Returns where answers are kept: in $JAXCHOP_CACHE or ~/.cache/jaxchop."""
  return Path(os.environ.get("JAXCHOP_CACHE") or Path.home() / ".cache" / "jaxchop") / "preflight"


def ask(question: "Question", cache: Path | None = None) -> dict[str, Any]:
  """Returns the answer of compiled.answer, from another process; raises the error that it met."""
  require_compiler()
  command = [sys.executable, "-m", "jaxchop.preflight.alone", str(cache or cache_folder())]
  done = subprocess.run(command, input=pickle.dumps(question), stdout=subprocess.PIPE, env=environment(), check=False)
  try:
    said = json.loads(done.stdout.splitlines()[-1])
  except (ValueError, IndexError) as error:
    raise JaxchopError(
      f"the process that compiles ended with {done.returncode} and without an answer; a large program may have found "
      "too little memory on this machine"
    ) from error
  if "error" in said:
    raise (UsageError if said["usage"] else JaxchopError)(said["error"])
  return said


def main() -> None:
  # The compiler may print; the answer alone is to be on standard output.
  out = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  question = pickle.load(sys.stdin.buffer)
  logging.basicConfig(level=logging.WARNING, format="%(message)s")
  from jaxchop.preflight.compiled import answer

  try:
    said = answer(question, Path(sys.argv[1]))
  except JaxchopError as error:
    said = {"error": str(error), "usage": isinstance(error, UsageError)}
  out.write(json.dumps(said) + "\n")
  out.flush()


if __name__ == "__main__":
  main()
