"""One program compiled for devices that need not be there: its memory and its cost, kept by the program's digest.

This runs in a process of its own, see alone.py: the TPU compiler wants its settings before JAX is imported.
"""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxchop.files import read_json, write_json
from jaxchop.parallel.hlo import read_cost
from jaxchop.parallel.topology import chip_of
from jaxchop.preflight.schedule import schedule
from jaxchop.recover.saved import program_digest, save, saved_digest

# Answers of another form, or read in another way, are got anew.
_FORM = 3
_OOM = re.compile(r"\((?P<need>[\d.]+)(?P<unit>[KMGT]?)\) exceeds available HBM \((?P<most>[\d.]+)(?P<per>[KMGT]?)\)")
_USED = re.compile(r"Used (?P<need>[\d.]+)(?P<unit>[KMGT]?) of (?P<most>[\d.]+)(?P<per>[KMGT]?) hbm", re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def compiled(
  lowered: Any, options: Mapping[str, Any], devices: Sequence[jax.Device], cache: Path, keep: Path | None = None
) -> dict[str, Any]:
  """Returns what compiling tells, now or when the same program was compiled before, as plain JSON.

  `devices` stand in the order of the program's numbers; `keep` is a file for the compiled program. `memory` holds bytes
  of one device, or `needed` and `limit` alone where it does not fit; `schedule` is that of schedule.py, or None.
  """
  digest = program_digest(lowered, options, devices)
  path, chip = cache / f"{digest[:40]}-{_FORM}.json", chip_of(devices[0])
  cached = path.exists() and (keep is None or saved_digest(keep) == digest)
  found = read_json(path) if cached else _compiled(lowered, len(devices), digest, keep)
  if not cached:
    write_json(path, found)
  cost = found.pop("cost")
  spent = None if cost is None else schedule(cost, chip, devices)
  return found | {"cached": cached, "schedule": spent, "limit": found["memory"].get("limit", chip.hbm)}


def _compiled(lowered: Any, devices: int, digest: str, keep: Path | None) -> dict[str, Any]:
  start = time.monotonic()
  try:
    program = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    text = str(error)
    said = _OOM.search(text) or _USED.search(text)
    if said is None:
      raise
    found: dict[str, Any] = {"fits": False, "memory": _too_much(said), "cost": None}
  else:
    cost = read_cost(program.as_text(), devices)
    each = [one._asdict() for one in cost.collectives]
    found = {"fits": True, "memory": _memory(program), "cost": cost._asdict() | {"collectives": each}}
    if keep is not None:
      save(program, digest, keep)
  return found | {"compile_seconds": time.monotonic() - start, "digest": digest}


def _memory(program: Any) -> dict[str, int]:
  said = program.memory_analysis()
  return {
    "peak": said.peak_memory_in_bytes,
    "arguments": said.argument_size_in_bytes,
    "temporaries": said.temp_size_in_bytes,
    "results": said.output_size_in_bytes - said.alias_size_in_bytes,
    "code": said.generated_code_size_in_bytes,
  }


def _too_much(said: re.Match[str]) -> dict[str, int]:
  """Returns what the compiler's refusal says, in bytes; its G is 2^30."""
  found = {"needed": (said["need"], said["unit"]), "limit": (said["most"], said["per"])}
  return {name: round(float(value) * _UNITS[unit.upper()]) for name, (value, unit) in found.items()}
