"""Compiles the programs of the tests fast instead of well, but for those marked `optimised`.

XLA's optimisations of the machine code take two thirds of the suite's time, and what is computed stays the same but for
rounding. `jax.jit` takes compiler options for one program at a time; here they are meant for all of them, the many that
run one operation too, and for the programs of processes that a test starts.
"""

import os
from typing import Any

from jax._src import compiler

_OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": 0}
_GIVEN = os.environ.get("XLA_FLAGS", "")
_optimised = compiler.get_compile_options


def _quick(*args: Any, **kwargs: Any) -> Any:
  options = _optimised(*args, **kwargs)
  # Those that the program itself asks for come last and win.
  options.env_option_overrides = [*_OPTIONS.items(), *options.env_option_overrides]
  return options


def compile_quickly(quickly: bool) -> None:
  """Says how programs are compiled from here on."""
  compiler.get_compile_options = _quick if quickly else _optimised
  flags = [_GIVEN, *(f"--{name}={str(value).lower()}" for name, value in _OPTIONS.items())] if quickly else [_GIVEN]
  os.environ["XLA_FLAGS"] = " ".join(flags).strip()
