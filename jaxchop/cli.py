"""The command line: parses, calls one function of `commands`, prints what it returns.

Exit codes: 0 done, 1 failed, 2 wrong usage, 75 stopped by SIGTERM after a safe save, 130 interrupted. With --json one
object goes to standard output and nothing else; progress and logs go to standard error.
"""

import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from typing import Any, NoReturn

from jsonargparse import Namespace

from jaxchop.arguments import parser
from jaxchop.errors import JaxchopError, Preempted
from jaxchop.heap import keep_freed_memory
from jaxchop.programs import keep_programs

# Commands that take steps, for which a process sets up its memory; one that calls `main` has its own ways.
_STEPPING = "compare", "forecast", "recover", "run"


class _ToStderr(logging.Handler):
  """Writes to standard error as it is when a line comes: a caller of `main` may have put another in its place."""

  def emit(self, record: logging.LogRecord) -> None:
    # Orbax shows the stack of a thread that died, and raises the same error where its work is waited for.
    if not (record.name == "absl" and record.exc_info):
      sys.stderr.write(self.format(record) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit code."""
  root = parser()
  parsed = root.parse_args(_recipe_first(list(sys.argv[1:] if argv is None else argv)))
  name, given = _chosen(parsed)
  try:
    _, settings = _chosen(root.instantiate(parsed))
    _set_up(name, settings, alone=argv is None)
    # JAX and all that follows load here, so that --help and wrong usage answer at once.
    commands = importlib.import_module("jaxchop.commands")
    with _terminable():
      result: Any = getattr(commands, name.replace(" ", "_"))(settings)
  except JaxchopError as error:
    if given.debug:
      raise
    sys.stderr.write(f"jaxchop {name}: error: {' '.join(str(error).split())}\n")
    return error.exit_code
  except KeyboardInterrupt:
    sys.stderr.write(f"jaxchop {name}: interrupted; what was finished is kept, run the same command again to go on\n")
    return 130
  if result is None:
    # One of several processes, of which another one speaks.
    return 0
  if settings.json:
    sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
  else:
    importlib.import_module("jaxchop.show").show(name, result)
  # `check` answers for itself; `export` and `run` carry the answer of theirs.
  return 0 if result.get("check", result).get("ok", True) else 1


def _set_up(name: str, settings: Namespace, *, alone: bool) -> None:
  """Says where log lines go and, in a process that the command has `alone`, what memory and programs are kept."""
  level = logging.WARNING if settings.quiet else logging.INFO
  logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_ToStderr()])
  logging.getLogger("jaxchop").setLevel(level)
  # It warns of texts longer than the model's window, which jaxchop cuts into windows.
  logging.getLogger("transformers").setLevel(logging.ERROR)
  # transformers would remark that torch is absent: jaxchop takes only tokenizers from it.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  if alone and name in _STEPPING:
    keep_freed_memory()
  # Preflight says how long it takes to compile, and keeps its answers itself.
  if alone and name != "preflight":
    keep_programs()


def _chosen(options: Namespace) -> tuple[str, Namespace]:
  """Returns the command, as "data build", and its settings."""
  name: str = options.subcommand
  settings: Namespace = options[name]
  if inner := settings.get("subcommand"):
    return f"{name} {inner}", settings[inner]
  return name, settings


@contextlib.contextmanager
def _terminable() -> Generator[None]:
  """Turns SIGTERM into an error of one line; a recovery has handlers of its own, which save first."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def stop(*_: object) -> NoReturn:
    raise Preempted("stopped by SIGTERM; what was finished is kept, run the same command again to go on")

  before = signal.signal(signal.SIGTERM, stop)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def _recipe_first(argv: list[str]) -> list[str]:
  """Lets recipes stand as plain arguments: `run a.yaml b.yaml` is `run --config a.yaml --config b.yaml`."""
  if argv[:1] not in (["run"], ["preflight"]):
    return argv
  recipes = []
  while len(argv) > 1 + len(recipes) and argv[1 + len(recipes)].endswith((".yaml", ".yml")):
    recipes.append(argv[1 + len(recipes)])
  return [argv[0], *(part for recipe in recipes for part in ("--config", recipe)), *argv[1 + len(recipes) :]]
