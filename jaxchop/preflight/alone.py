"""A process of its own that compiles for TPUs: `python -m jaxchop.preflight.alone`.

What it is to do comes pickled through standard input from the process that started it, and from nowhere else; what it
found goes back through a file that this process reads. Its log goes to standard error, as that of any command.
"""

import dataclasses
import logging
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxchop.errors import JaxchopError
from jaxchop.parallel.topology import environment, require_compiler

log = logging.getLogger("jaxchop")


@dataclasses.dataclass(frozen=True)
class _Errand:
  """A function with its arguments, and where its result goes."""

  function: Callable[..., Any]
  arguments: tuple[Any, ...]
  result: Path
  level: int


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
  """Returns what a function of a module gives in a process that compiles for TPUs; raises the JaxchopError it meets."""
  require_compiler()
  with tempfile.TemporaryDirectory() as folder:
    errand = _Errand(function, arguments, Path(folder) / "result", log.getEffectiveLevel())
    command = [sys.executable, "-m", "jaxchop.preflight.alone"]
    # Standard output is the caller's, and the compiler may print.
    done = subprocess.run(
      command, input=pickle.dumps(errand), stdout=subprocess.DEVNULL, env=environment(), check=False
    )
    if not errand.result.exists():
      why = (
        "the machine may have too little memory for a program so large" if done.returncode < 0 else "it says why above"
      )
      raise JaxchopError(f"the process that compiles ended with {done.returncode} and without an answer; {why}")
    found = pickle.loads(errand.result.read_bytes())
  if isinstance(found, JaxchopError):
    raise found
  return found


def main() -> None:
  errand: _Errand = pickle.load(sys.stdin.buffer)
  logging.basicConfig(level=logging.WARNING, format="%(message)s")
  log.setLevel(errand.level)
  try:
    found: Any = errand.function(*errand.arguments)
  except JaxchopError as error:
    found = error
  errand.result.write_bytes(pickle.dumps(found))


if __name__ == "__main__":
  main()
