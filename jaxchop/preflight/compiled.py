"""One program compiled for devices that need not be there: its memory and its cost, kept by the program's digest.

This runs in a process of its own, see alone.py: the TPU compiler wants its settings before JAX is imported.
"""

import dataclasses
import hashlib
import json
import logging
import os
import re
import time
from pathlib import Path
from typing import Any

import jax
import jaxlib

from jaxchop.compiler import compiler_options
from jaxchop.files import read_json, write_json
from jaxchop.parallel.hlo import read_cost
from jaxchop.parallel.peak import peak
from jaxchop.parallel.sharding import bytes_per_device
from jaxchop.parallel.topology import chip_of, devices_of
from jaxchop.preflight.schedule import schedule
from jaxchop.preflight.shapes import Planned, Training, activations, plan
from jaxchop.preflight.work import product_flops

log = logging.getLogger("jaxchop")
# Answers of another form, or got in another way, are got anew.
_FORM = 1
_OOM = re.compile(
  r"memory required for HLO temporaries \((?P<need>[\d.]+)(?P<unit>[KMGT]?)\) exceeds available HBM "
  r"\((?P<limit>[\d.]+)(?P<limit_unit>[KMGT]?)\)"
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
  """What is to be compiled, and for which slices."""

  training: Training
  topology: str
  slices: int = 1


def answer(question: Question, cache: Path) -> dict[str, Any]:
  """Returns what is known of a training step, as plain JSON: bytes are those of one device.

  `memory` holds the compiler's own figures, or `needed` and `limit` alone where the program does not fit.
  """
  devices = devices_of(question.topology, question.slices)
  planned, chip = plan(question.training, devices), chip_of(devices[0])
  start = time.monotonic()
  with planned.set():
    traced = planned.traced()
    lowered = traced.lower()
    options = compiler_options(deterministic=question.training.config.deterministic, device=devices[0])
  about = {
    "device_kind": devices[0].device_kind,
    "devices": len(devices),
    "chips": len(devices) // chip.devices,
    "mesh": {} if planned.mesh is None else {name: size for name, size in planned.mesh.shape.items() if size > 1},
    "parts": _parts(planned),
    "flops_per_step": product_flops(traced.jaxpr.jaxpr),
    "model_flops_per_step": planned.model_flops,
    "peak_flops_per_second": peak(devices, question.training.config.compute_dtype).flops_per_second,
    "trace_seconds": time.monotonic() - start,
  }
  found = about | _kept(lowered, question, options, cache, len(devices))
  numbered = devices if planned.mesh is None else list(planned.mesh.devices.flat)
  return found | {"limit": chip.hbm, "schedule": found["cost"] and schedule(found.pop("cost"), chip, numbered)}


def _parts(planned: Planned) -> dict[str, int]:
  state = planned.state
  return {
    "parameters": bytes_per_device(state.trained),
    "frozen": bytes_per_device(state.frozen),
    "optimizer": bytes_per_device(state.opt_state),
    "activations": activations(planned),
  }


def _kept(lowered: Any, question: Question, options: Any, cache: Path, devices: int) -> dict[str, Any]:
  """Returns what compiling told, now or when the same program was compiled before."""
  versions = [_FORM, jax.__version__, jaxlib.__version__, _compiler(), os.environ.get("XLA_FLAGS", "")]
  about = json.dumps([versions, question.topology, question.slices, options], sort_keys=True)
  digest = hashlib.sha256(about.encode() + lowered.as_text().encode()).hexdigest()
  path = cache / f"{digest[:40]}.json"
  if path.exists():
    return read_json(path) | {"cached": True}
  start = time.monotonic()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if (said := _OOM.search(str(error))) is None:
      raise
    found: dict[str, Any] = {"fits": False, "memory": _too_much(said), "cost": None}
  else:
    cost = read_cost(compiled.as_text(), devices)
    each = [one._asdict() for one in cost.collectives]
    found = {"fits": True, "memory": _memory(compiled), "cost": cost._asdict() | {"collectives": each}}
  found |= {"compile_seconds": time.monotonic() - start, "digest": digest}
  write_json(path, found)
  return found | {"cached": False}


def _memory(compiled: Any) -> dict[str, int]:
  said = compiled.memory_analysis()
  return {
    "peak": said.peak_memory_in_bytes,
    "arguments": said.argument_size_in_bytes,
    "temporaries": said.temp_size_in_bytes,
    "results": said.output_size_in_bytes - said.alias_size_in_bytes,
    "code": said.generated_code_size_in_bytes,
  }


def _too_much(said: re.Match[str]) -> dict[str, int]:
  need, limit = (round(float(said[name]) * _UNITS[said[unit]]) for name, unit in _OOM_PARTS)
  return {"needed": need, "limit": limit}


_OOM_PARTS = (("need", "unit"), ("limit", "limit_unit"))


def _compiler() -> str:
  from importlib.metadata import version

  return version("libtpu")
